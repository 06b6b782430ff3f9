"""The two towers as they are read: a text becomes a unit vector, and a user's vector is mixed of such vectors.

One encoder gives the vectors of queries and items. A user is ``normalize(a E(query) + sum_i w_i E(item_i))`` over the
history, with w by recency and the user's liking: item vectors lie in the catalogue, so that only the text of a query
is encoded while somebody waits, and that only once (it is remembered). The weights are learnt with the encoder; all of
it lies in one folder, which stage ``retriever`` writes and the catalogue copies.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tritonrank_runtime.images import without_images

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
TOWERS_FILE = "towers.json"
ENCODER_FILES = (MODEL_FILE, TOKENIZER_FILE, TOWERS_FILE)
"""What an encoder needs, all in one folder."""
FORMAT = 1
"""Of towers.json."""
CHARACTERS_PER_TOKEN = 32
"""A text is cut to so many characters per token before it is tokenized, so that a huge one costs no more than a short
one. English word pieces have 4 to 5 characters."""
REMEMBERED = 10_000
"""Texts whose vectors are kept, least recently used dropped first: 15 MB at 384 dimensions."""

Vector = NDArray[np.float32]


class EncoderError(ValueError):
    """An encoder's files are missing or damaged; names the file."""


@dataclass(frozen=True)
class Towers:
    """What ``towers.json`` says.

    Attributes:
        dimension: of the vectors.
        tokens: most that a text has, the special ones included; longer texts are cut at the end.
        query_weight: a, what the query counts beside the whole history.
        history_weights: w by recency, the newest item first; they are scaled to a sum of 1 over the items at hand.
            Older items than there are weights do not count.
    """

    dimension: int
    tokens: int
    query_weight: float
    history_weights: tuple[float, ...]

    def save(self, folder: Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        (folder / TOWERS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Towers":
        """Raises EncoderError where the file is missing, damaged, or written by a later version."""
        path = folder / TOWERS_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            history = tuple(float(weight) for weight in fields.pop("history_weights"))
            towers = cls(**fields, history_weights=history)
            numbers = np.array([towers.query_weight, *history])
            if not (towers.dimension > 0 and towers.tokens > 2 and history and np.isfinite(numbers).all()):
                raise ValueError("a value out of its range")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise EncoderError(f"{path}: {error!r}. To make it anew: tritonrank build RECIPE") from None
        return towers

    def mix(
        self, query: Vector | None, history: Vector, weights: Sequence[float] | NDArray[np.float64] | None = None
    ) -> Vector | None:
        """The vector of a user.

        Args:
            query: unit vector of the query's text; None where there is no query.
            history: unit vectors of the items, newest last, [n, dimension]; n may be 0.
            weights: how much the user liked each; what is not above 0 does not count. Default: 1 each.

        Returns:
            A unit vector; None where nothing is known.
        """
        mixed = np.zeros(self.dimension, dtype=np.float32)
        newest_first = history[::-1][: len(self.history_weights)]
        if len(newest_first):
            by_recency = np.asarray(self.history_weights[: len(newest_first)], dtype=np.float32)
            if weights is not None:
                liking = np.asarray(weights, dtype=np.float32)[::-1][: len(newest_first)]
                by_recency = by_recency * np.maximum(liking, 0)
            if (total := float(by_recency.sum())) > 0:
                mixed += np.einsum("i,ij->j", by_recency / total, newest_first)  # not `@`, see vectors.dots
        if query is not None:
            mixed += self.query_weight * query
        length = float(np.linalg.norm(mixed))
        return mixed / length if length > 0 else None


class TextTokenizer:
    """Texts -> token ids, as the encoder was trained with them."""

    def __init__(self, tokenizer: Tokenizer, tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=tokens)
        tokenizer.encode_special_tokens = True  # "[SEP]" in a title is text
        self._tokenizer = tokenizer
        self._characters = tokens * CHARACTERS_PER_TOKEN

    @classmethod
    def from_folder(cls, folder: Path, tokens: int) -> "TextTokenizer":
        """Raises EncoderError where the file cannot be read."""
        path = folder / TOKENIZER_FILE
        try:
            return cls(Tokenizer.from_file(str(path)), tokens)
        except Exception as error:  # noqa: BLE001 - tokenizers raises a bare Exception
            raise EncoderError(f"{path}: {error}. To make it anew: tritonrank build RECIPE") from None

    def save(self, folder: Path) -> None:
        self._tokenizer.save(str(folder / TOKENIZER_FILE))

    def cut(self, text: str) -> str:
        """What is read of a text at the most; an image that it names says nothing to who reads words."""
        return without_images(text)[: self._characters]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text its token ids with the special ones around them."""
        found = self._tokenizer.encode_batch([self.cut(text) for text in texts])
        return [encoding.ids for encoding in found]


class QueryEncoder:
    """Encodes texts in the thread that calls, one core each; safe to use from several threads.

    Each text is a run of its own, so that its vector does not depend on which others are encoded with it.
    """

    def __init__(self, towers: Towers, tokenizer: TextTokenizer, session: onnxruntime.InferenceSession) -> None:
        self.towers = towers
        self._tokenizer, self._session = tokenizer, session
        self._remembered: OrderedDict[str, Vector] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> "QueryEncoder":
        """Open an encoder's folder.

        Raises:
            EncoderError: a file is missing or damaged.
        """
        towers = Towers.load(folder)
        return cls(towers, TextTokenizer.from_folder(folder, towers.tokens), open_session(folder / MODEL_FILE))

    @property
    def dimension(self) -> int:
        return self.towers.dimension

    @property
    def remembered(self) -> int:
        """Texts whose vectors are kept."""
        return len(self._remembered)

    def embed(self, texts: Sequence[str]) -> Vector:
        """Unit vectors, [texts, dimension]; of an empty text zeros, which are like nothing."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for place, text in enumerate(texts):
            if text := self._tokenizer.cut(text).strip():
                vectors[place] = self._vector(text)
        return vectors

    def mix(
        self, query: Vector | None, history: Vector, weights: Sequence[float] | NDArray[np.float64] | None = None
    ) -> Vector | None:
        """The vector of a user; see ``Towers.mix``."""
        return self.towers.mix(query, history, weights)

    def _vector(self, text: str) -> Vector:
        with self._lock:
            if (known := self._remembered.get(text)) is not None:
                self._remembered.move_to_end(text)
                return known
        ids = np.array(self._tokenizer.ids([text]), dtype=np.int32)
        (vector,) = self._session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        with self._lock:
            self._remembered[text] = vector
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        found: Vector = vector
        return found


def open_session(model: Path) -> onnxruntime.InferenceSession:
    """An encoder's graph, to be run in the thread that calls.

    Raises:
        EncoderError: the file is missing or no graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class per status code without a common base
        raise EncoderError(f"{model}: {error}. To make it anew: tritonrank build RECIPE") from None
