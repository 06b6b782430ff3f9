"""Request -> token ids: the only definition, used by training, by the judge and by the server.

A request is a query (may be empty), a history of items (newest last) and the candidates. The context is
``query [SEP] oldest kept item [SEP] ... [SEP] newest item``; the history keeps its newest items within a token
budget of its own, so a long history never cuts a candidate.

What an engine takes depends on the architecture. A joint row is the pair (context, candidate) in the layout of the
checkpoint's own tokenizer, special tokens and segment ids included. For a shared-context ranker the context is one row,
``[CLS] context [SEP]``, and each candidate another, ``[CLS] candidate``: the [SEP] at its end would cost one token in
twelve and say nothing.

``assemble`` copies this file beside the server's models: it imports only the standard library, numpy and tokenizers.
"""

import json
import re
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

RULES_FILE = "text.json"
TOKENIZER_FILE = "tokenizer.json"

# A text is cut to this many characters per budgeted token before it is tokenized, so that a 64 kB text costs no more
# than a short one. English word pieces have 4 to 5 characters; 32 leaves room for long words and runs of blanks.
CHARACTERS_PER_TOKEN = 32

JOINT = "joint"
SHARED_CONTEXT = "shared-context"
PADDING = -1
"""Ends a shorter row of ``candidate_ids``: no vocabulary has a negative id."""


class TextError(ValueError):
    """A text of a request cannot be used; the message begins with the field, such as ``items[3]``."""


@dataclass(frozen=True)
class TextRules:
    """What turns a request into tokens, stored as text.json beside tokenizer.json in every model artifact."""

    item_template: str
    query_tokens: int
    history_items: int
    history_tokens: int
    candidate_tokens: int
    architecture: str = JOINT

    @property
    def context_tokens(self) -> int:
        """Longest possible context: query, one separator, history."""
        return self.query_tokens + 1 + self.history_tokens

    def save(self, folder: Path) -> None:
        (folder / RULES_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TextRules":
        return cls(**json.loads((folder / RULES_FILE).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class JointRows:
    """Rows of one request, padded to the longest: int32 arrays of shape (rows, tokens)."""

    input_ids: NDArray[np.int32]
    attention_mask: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]


@dataclass(frozen=True)
class SharedContextRows:
    """One request: int32 arrays of shape (tokens,) and (candidates, tokens), the latter padded with -1."""

    context_ids: NDArray[np.int32]
    candidate_ids: NDArray[np.int32]


@dataclass(frozen=True)
class Buckets:
    """The sizes that requests are padded to where an engine wants few shapes, ascending.

    Args:
        candidates: different candidates of a request; of a joint ranker its rows.
        tokens: of a candidate's row.
    """

    candidates: tuple[int, ...]
    tokens: tuple[int, ...]

    def shape(self, candidates: int, tokens: int) -> tuple[int, int]:
        """The smallest bucket that holds so many candidates of so many tokens.

        Raises:
            TextError: there is none.
        """
        if candidates > self.candidates[-1] or tokens > self.tokens[-1]:
            raise TextError(
                f"items: {candidates} different candidates of up to {tokens} tokens; the engine was built for "
                f"{self.candidates[-1]} of {self.tokens[-1]}"
            )
        return (
            self.candidates[bisect_left(self.candidates, candidates)],
            self.tokens[bisect_left(self.tokens, tokens)],
        )


class RequestTokenizer:
    """Tokenizes the parts of a request; item texts come from a bounded memory when they were seen before.

    Args:
        tokenizer: a Rust tokenizer; its own truncation and padding are switched off.
        rules: template and token budgets.
        cache_entries: item texts whose token ids are remembered, least recently used dropped first. Long texts
            are never remembered, so entries x (text + ids) stays bounded.
    """

    def __init__(self, tokenizer: Tokenizer, rules: TextRules, cache_entries: int = 0) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # "[SEP]" in a seller's title is text, not a way to end the context. SentencePiece models find some special
        # tokens in plain text all the same (they are pieces of the vocabulary), so those ids are dropped as well.
        tokenizer.encode_special_tokens = True
        self._reserved = _reserved_ids(tokenizer)
        self.rules = rules
        self._tokenizer = tokenizer
        self._layout = _pair_layout(tokenizer)
        self._cache: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._cache_entries = cache_entries
        self._cacheable_characters = rules.candidate_tokens * CHARACTERS_PER_TOKEN

    @classmethod
    def from_folder(cls, folder: Path, cache_entries: int = 0) -> "RequestTokenizer":
        """Load tokenizer.json and text.json of a model artifact."""
        return cls(Tokenizer.from_file(str(folder / TOKENIZER_FILE)), TextRules.load(folder), cache_entries)

    @property
    def row_tokens(self) -> int:
        """Longest possible joint row, special tokens included."""
        specials = len(self._layout.prefix) + len(self._layout.middle) + len(self._layout.suffix)
        return self.rules.context_tokens + self.rules.candidate_tokens + specials

    @property
    def context_row_tokens(self) -> int:
        """Longest possible context row of a shared-context ranker."""
        return len(self._layout.prefix) + self.rules.context_tokens + len(self._layout.suffix)

    @property
    def candidate_row_tokens(self) -> int:
        """Longest possible candidate row of a shared-context ranker."""
        return len(self._layout.prefix) + self.rules.candidate_tokens

    def render(self, text: str, field: str = "item") -> str:
        """The text of an item: a JSON object goes through the template, anything else is the text itself.

        An object without a value for any field of the template has no text: "", not the template's punctuation.

        Raises:
            TextError: a field that the template names holds something that is not text, number or list of these, or
                text that is not valid Unicode.
        """
        if not text.lstrip().startswith("{"):
            return text
        try:
            value = json.loads(text)
        except ValueError:
            return text
        except RecursionError:
            raise TextError(f"{field}: JSON nested too deeply; fields hold text, numbers or lists of these") from None
        if not isinstance(value, dict):
            return text
        template = self.rules.item_template
        named = re.findall(r"\{(\w+)\}", template)
        is_empty = all(value.get(name) in (None, "", []) for name in named)
        return "" if is_empty else render_fields(template, value, field)

    def context(self, query: str, history: Sequence[str]) -> list[int]:
        """Token ids of query and history, without the special tokens of the row's ends.

        History items that tokenize to nothing are left out: they say nothing about the user.
        """
        query_ids = self._encode([query], self.rules.query_tokens)[0] if query else ()
        newest = history[-self.rules.history_items :] if self.rules.history_items else []
        kept: list[tuple[int, ...]] = []
        budget = self.rules.history_tokens
        for ids in reversed([ids for ids in self.items(newest) if ids]):
            cost = len(ids) + (1 if kept else 0)
            if kept and cost > budget:
                break
            kept.append(ids[:budget])
            budget -= cost
        parts = [part for part in (query_ids, *reversed(kept)) if part]
        separated: list[int] = []
        for number, part in enumerate(parts):
            separated += ([self._layout.separator] if number else []) + [*part]
        return separated

    def items(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each item text, cut to the candidate budget; () for a text that tokenizes to nothing."""
        known: dict[str, tuple[int, ...]] = {}
        unknown: dict[str, None] = {}
        for text in texts:
            ids = self._recall(text)
            if ids is None:
                unknown[text] = None
            else:
                known[text] = ids
        for text, ids in zip(unknown, self._encode(list(unknown), self.rules.candidate_tokens), strict=True):
            known[text] = ids
            self._remember(text, ids)
        return [known[text] for text in texts]

    def tensors(self, context: Sequence[int], candidates: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int32]]:
        """What the engine takes for one request, by input name."""
        make_rows = self.joint_rows if self.rules.architecture == JOINT else self.shared_context_rows
        return vars(make_rows(context, candidates))

    def padded(self, tensors: Mapping[str, NDArray[np.int32]], buckets: Buckets) -> dict[str, NDArray[np.int32]]:
        """A request's tensors in the shape of a bucket, so that all requests of a bucket can run side by side.

        Its own candidates come first. A joint row of nothing but padding keeps one token in its mask, because attention
        over nothing is not a number.

        Args:
            tensors: what ``tensors`` gave. A context is padded to the longest there can be.
            buckets: the sizes of candidates and their tokens.

        Raises:
            TextError: no bucket is large enough.
        """
        if self.rules.architecture == JOINT:
            shape = buckets.shape(*tensors["input_ids"].shape)
            fillings = {"input_ids": self._layout.padding, "attention_mask": 0, "token_type_ids": 0}
            rows = {name: _filled(tensor, shape, fillings[name]) for name, tensor in tensors.items()}
            rows["attention_mask"][len(tensors["attention_mask"]) :, 0] = 1
            return rows
        candidate_ids = tensors["candidate_ids"]
        return {
            "context_ids": _filled(tensors["context_ids"], (self.context_row_tokens,), PADDING),
            "candidate_ids": _filled(candidate_ids, buckets.shape(*candidate_ids.shape), PADDING),
        }

    def shared_context_rows(self, context: Sequence[int], candidates: Sequence[Sequence[int]]) -> SharedContextRows:
        """The context's row (prefix, context, suffix) and one per candidate (prefix, candidate)."""
        prefix = self._layout.prefix
        lengths = np.array([len(prefix) + len(ids) for ids in candidates], dtype=np.int64)
        candidate_ids = np.full((len(candidates), int(lengths.max(initial=len(prefix)))), PADDING, dtype=np.int32)
        candidate_ids[:, : len(prefix)] = prefix
        # One assignment for all rows: a thousand small ones would take longer than the tokenizer.
        is_token = np.arange(candidate_ids.shape[1]) < lengths[:, np.newaxis]
        is_token[:, : len(prefix)] = False
        candidate_ids[is_token] = [token for ids in candidates for token in ids]
        context_ids = np.array([*prefix, *context, *self._layout.suffix], dtype=np.int32)
        return SharedContextRows(context_ids, candidate_ids)

    def joint_rows(self, context: Sequence[int], candidates: Sequence[Sequence[int]]) -> JointRows:
        """One row per candidate: prefix, context, middle, candidate, suffix; padded to the longest."""
        layout = self._layout
        head = [*layout.prefix, *context, *layout.middle]
        head_types = [*layout.prefix_types, *([layout.context_type] * len(context)), *layout.middle_types]
        lengths = [len(head) + len(ids) + len(layout.suffix) for ids in candidates]
        shape = (len(candidates), max(lengths, default=len(head) + len(layout.suffix)))
        input_ids = np.full(shape, layout.padding, dtype=np.int32)
        token_type_ids = np.zeros(shape, dtype=np.int32)
        input_ids[:, : len(head)] = head
        token_type_ids[:, : len(head)] = head_types
        for row, ids in enumerate(candidates):
            input_ids[row, len(head) : lengths[row]] = [*ids, *layout.suffix]
            token_type_ids[row, len(head) : lengths[row]] = [
                *([layout.candidate_type] * len(ids)),
                *layout.suffix_types,
            ]
        attention_mask = (np.arange(shape[1])[None, :] < np.array(lengths, dtype=np.int64)[:, None]).astype(np.int32)
        return JointRows(input_ids, attention_mask, token_type_ids)

    def _encode(self, texts: Sequence[str], tokens: int) -> list[tuple[int, ...]]:
        if not texts:
            return []
        cut = [text[: tokens * CHARACTERS_PER_TOKEN] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(cut, add_special_tokens=False)
        plain = ([token for token in encoding.ids if token not in self._reserved] for encoding in encodings)
        return [tuple(ids[:tokens]) for ids in plain]

    def _recall(self, text: str) -> tuple[int, ...] | None:
        ids = self._cache.get(text)
        if ids is not None:
            self._cache.move_to_end(text)
        return ids

    def _remember(self, text: str, ids: tuple[int, ...]) -> None:
        if not self._cache_entries or len(text) > self._cacheable_characters:
            return
        self._cache[text] = ids
        if len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)


def render_fields(template: str, fields: Mapping[str, Any], field: str = "item") -> str:
    """Fill ``{name}`` from the fields; absent and null ones become nothing, lists are joined with commas.

    Raises:
        TextError: a value is an object, or a list that holds something else than text and numbers.
    """

    def fill(match: re.Match[str]) -> str:
        value = fields.get(match[1])
        values = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, str | int | float) for part in values):
            raise TextError(f"{field}: field {match[1]!r} must be text, a number or a list of these")
        filled = ", ".join(str(part) for part in values if part is not None)
        if half := re.search("[\ud800-\udfff]", filled):  # JSON can escape one half of a surrogate pair
            raise TextError(f"{field}: field {match[1]!r} holds \\u{ord(half[0]):04x}, half a character")
        return filled

    return " ".join(re.sub(r"\{(\w+)\}", fill, template).split())


def decode_texts(raw: Iterable[bytes], field: str, max_bytes: int) -> list[str]:
    """UTF-8 texts of a BYTES tensor.

    Raises:
        TextError: a text is too long or not valid UTF-8; names the field and the element.
    """
    texts = []
    for position, value in enumerate(raw):
        if len(value) > max_bytes:
            raise TextError(f"{field}[{position}]: {len(value)} bytes; the limit is {max_bytes}")
        try:
            texts.append(value.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise TextError(
                f"{field}[{position}]: not valid UTF-8 (byte 0x{value[error.start]:02x} at offset {error.start})"
            ) from None
    return texts


def _filled(tensor: NDArray[np.int32], shape: tuple[int, ...], filling: int) -> NDArray[np.int32]:
    """The tensor in the corner of a larger one."""
    whole = np.full(shape, filling, dtype=np.int32)
    whole[tuple(map(slice, tensor.shape))] = tensor
    return whole


def unique_rows(rows: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], NDArray[np.int32]]:
    """Equal rows once, in order of first appearance, and for each given row its place among them."""
    places: dict[tuple[int, ...], int] = {}
    place_of_row = [places.setdefault(row, len(places)) for row in rows]
    return list(places), np.array(place_of_row, dtype=np.int32)


@dataclass(frozen=True)
class _PairLayout:
    """Special tokens around the two sequences of a pair, read from the tokenizer's own post-processor."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    prefix_types: list[int]
    middle_types: list[int]
    suffix_types: list[int]
    context_type: int
    candidate_type: int
    separator: int
    padding: int


def _pair_layout(tokenizer: Tokenizer) -> _PairLayout:
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in ("a", "b"))
    if not first.ids or not second.ids:
        raise TextError("tokenizer.json: the tokenizer makes no token of plain letters")
    pair = tokenizer.encode("a", "b")
    sequence = pair.sequence_ids
    first_start, second_start = sequence.index(0), sequence.index(1)
    first_end, second_end = first_start + len(first.ids), second_start + len(second.ids)
    if first_start > second_start or not pair.ids[second_end:]:
        raise TextError("tokenizer.json: pairs must read [prefix] first [middle] second [suffix]")
    return _PairLayout(
        prefix=pair.ids[:first_start],
        middle=pair.ids[first_end:second_start],
        suffix=pair.ids[second_end:],
        prefix_types=pair.type_ids[:first_start],
        middle_types=pair.type_ids[first_end:second_start],
        suffix_types=pair.type_ids[second_end:],
        context_type=pair.type_ids[first_start],
        candidate_type=pair.type_ids[second_start],
        separator=pair.ids[second_end],
        padding=_padding_id(tokenizer),
    )


def _reserved_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Special tokens that no text may contain; the unknown token stands for text and is none of them."""
    unknown = {tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>")}
    added = tokenizer.get_added_tokens_decoder().items()
    return frozenset({token_id for token_id, token in added if token.special} - unknown)


def _padding_id(tokenizer: Tokenizer) -> int:
    for name in ("[PAD]", "<pad>"):
        if (token := tokenizer.token_to_id(name)) is not None:
            return int(token)
    return 0  # masked out everywhere; any valid id does
