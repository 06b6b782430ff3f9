"""Request -> token ids: the only definition, used by training, by the judge and by the server.

A request is a query (may be empty), a history of items (newest last) and the candidates. The context is
``query [SEP] oldest kept item [SEP] ... [SEP] newest item``; the history keeps its newest items within a token
budget of its own, so a long history never cuts a candidate.

A language model's ranker has a prompt around its texts instead of [SEP] (``frame.py``).

Which rows the engine makes of them depends on the architecture (``joint.py``, ``shared_context.py``).
"""

import json
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tritonrank_runtime.architecture import SEGMENTS, VOCABULARY, Architecture
from tritonrank_runtime.architectures import DEFAULT, architecture_named
from tritonrank_runtime.frame import PLAIN, Frame, FrameIds, Slot, frame_ids, guarded, joined_with
from tritonrank_runtime.images import (
    REFERENCE,
    ImageRules,
    ImageTable,
    copy_images,
    with_image,
    without_images,
)
from tritonrank_runtime.item_text import render_item, squeezed, whole_words
from tritonrank_runtime.padding import Buckets
from tritonrank_runtime.pair_layout import PairLayout, padding_id, pair_layout, reserved_ids, unknown_id

RULES_FILE = "text.json"
TOKENIZER_FILE = "tokenizer.json"
SCORES_FILE = "scores.json"
"""What a score means: activation and calibration; models made before it was written have none."""
GOLDEN_TOKENS_FILE = "golden_tokens.json"
"""Pairs of texts with their token ids, where somebody proved them."""

# A text is cut to this many characters per budgeted token before it is tokenized, so that a 64 kB text costs no more
# than a short one. English word pieces have 4 to 5 characters; 32 leaves room for long words.
CHARACTERS_PER_TOKEN = 32
CACHED_TOKENS = 3_200_000
"""Of all remembered items together, were they as long as the budget allows: about 100 MB."""

Field = Literal["query", "history", "items"]
"""Of a request's texts."""


@dataclass(frozen=True)
class TextRules:
    """What turns a request into tokens, stored as text.json beside tokenizer.json in every model artifact."""

    item_template: str
    query_tokens: int
    history_items: int
    history_tokens: int
    candidate_tokens: int
    architecture: str = DEFAULT.name
    frame: Frame | None = None
    """The prompt around the texts; None where the tokenizer's own special tokens stand there."""
    images: ImageRules | None = None
    """How texts name images; None where the ranker reads texts alone."""

    @property
    def context_tokens(self) -> int:
        """Longest possible context without a frame: query, one separator, history."""
        return self.query_tokens + 1 + self.history_tokens

    def save(self, folder: Path) -> None:
        (folder / RULES_FILE).write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")

    def as_json(self) -> dict[str, Any]:
        """As text.json has it; without a frame, or without images, there is no word of them."""
        may_be_absent = {"frame", "images"}
        return {name: value for name, value in asdict(self).items() if name not in may_be_absent or value is not None}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "TextRules":
        """What ``as_json`` gave."""
        frame, images = values.get("frame"), values.get("images")
        parts = {"frame": frame and Frame(**frame), "images": images and ImageRules(**images)}
        return cls(**{**values, **parts})

    @classmethod
    def load(cls, folder: Path) -> "TextRules":
        return cls.of_json(json.loads((folder / RULES_FILE).read_text(encoding="utf-8")))


@dataclass
class TextCounts:
    """Texts of one field since the tokenizer was made."""

    total: int = 0
    cut: int = 0
    """those that the ranker reads in part or not at all, because a budget ends before they do"""


class _Tokens(tuple[int, ...]):
    """Token ids of one text within its budget."""

    is_cut = False
    """whether the text goes on behind them"""


class RequestTokenizer:
    """Tokenizes the parts of a request; item texts come from a bounded memory when they were seen before.

    ``counts`` says how many texts were cut.

    Args:
        tokenizer: a Rust tokenizer; its own truncation and padding are switched off.
        rules: template and token budgets.
        cache_entries: item texts whose token ids are remembered, least recently used dropped first; fewer where the
            budget of one is long. Long texts are never remembered, so entries x (text + ids) stays bounded.
        images: those that texts may name, where the rules have images; without them a text may name none.
    """

    def __init__(
        self, tokenizer: Tokenizer, rules: TextRules, cache_entries: int = 0, images: ImageTable | None = None
    ) -> None:
        tokenizer = guarded(tokenizer, rules.frame) if rules.frame else tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # "[SEP]" in a seller's title is text, not a way to end the context. SentencePiece models find some special
        # tokens in plain text all the same (they are pieces of the vocabulary), so those ids are dropped as well.
        tokenizer.encode_special_tokens = True
        self._reserved = reserved_ids(tokenizer)
        self._unknown = unknown_id(tokenizer)
        self.rules = rules
        self.images = images
        self.architecture: Architecture = architecture_named(rules.architecture)
        self._frame: FrameIds | None = frame_ids(tokenizer, rules.frame, padding_id(tokenizer)) if rules.frame else None
        self.layout: PairLayout = self._frame.layout if self._frame else pair_layout(tokenizer)
        self._tokenizer = tokenizer
        self.counts: dict[Field, TextCounts] = {"query": TextCounts(), "history": TextCounts(), "items": TextCounts()}
        self._cache: OrderedDict[tuple[Slot, str], _Tokens] = OrderedDict()
        self._cache_entries = min(cache_entries, CACHED_TOKENS // rules.candidate_tokens)
        self._cacheable_characters = rules.candidate_tokens * CHARACTERS_PER_TOKEN

    @property
    def remembered(self) -> int:
        """Items whose tokens are kept for the next request that has them."""
        return len(self._cache)

    @classmethod
    def from_folder(cls, folder: Path, cache_entries: int = 0) -> "RequestTokenizer":
        """Load tokenizer.json and text.json of a model artifact, and its images where it has some."""
        rules = TextRules.load(folder)
        images = ImageTable.beside(folder) if rules.images else None
        return cls(Tokenizer.from_file(str(folder / TOKENIZER_FILE)), rules, cache_entries, images)

    @property
    def longest_rows(self) -> dict[str, int]:
        """Tokens of the longest row that there can be of each of the engine's inputs."""
        return self.architecture.longest_rows(self.layout, self.rules)

    @property
    def known_ids(self) -> dict[str, int]:
        """How many different ids there are for each of the engine's inputs that holds ids, from 0 on."""
        counts = {VOCABULARY: self.vocabulary_size, SEGMENTS: self.layout.segments}
        if self.images:
            counts[VOCABULARY] = self.images.known_ids
        return {one.name: counts[one.ids] for one in self.architecture.inputs if one.ids}

    @property
    def vocabulary_size(self) -> int:
        """Token ids that the tokenizer has, from 0 on; there may be gaps."""
        return int(1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values()))

    def render(self, text: str, field: str = "item") -> str:
        """The text of an item, by the rules' template; see ``render_item``."""
        return render_item(self.rules.item_template, text, field)

    def with_images(self, texts: list[str], item_ids: Iterable[bytes] | None) -> list[str]:
        """Texts of a request's items, each with the image that its item has by its id, where it names none itself."""
        if self.images is None or item_ids is None:
            return texts
        known = self.images.items
        return [
            with_image(text, known.get(item_id.decode("utf-8", "replace")))
            for text, item_id in zip(texts, item_ids, strict=True)
        ]

    def context(self, query: str, history: Sequence[str]) -> list[int]:
        """Token ids of query and history, without the special tokens of the row's ends.

        History items that tokenize to nothing are left out: they say nothing about the user.
        """
        newest = history[-self.rules.history_items :] if self.rules.history_items else []
        said = [ids for ids in self._known(newest, self._frame.history if self._frame else PLAIN) if ids]
        kept: list[tuple[int, ...]] = []
        whole = 0
        budget = self.rules.history_tokens
        for ids in reversed(said):
            cost = len(ids) + (1 if kept else 0)
            if kept and cost > budget:
                break
            kept.append(ids[:budget])
            whole += not ids.is_cut and len(ids) <= budget
            budget -= cost
        self._count("history", len(history), len(history) - len(newest) + len(said) - whole)
        return self._written(query, kept[::-1])

    def _written(self, query: str, history: Sequence[Sequence[int]]) -> list[int]:
        """Query and history as they stand in a row."""
        frame = self._frame
        slot = PLAIN if frame is None else frame.query_before_history if history else frame.query
        query_ids = self._encode([query], self.rules.query_tokens, slot)[0] if query else _Tokens()
        self._count("query", 1 if query else 0, query_ids.is_cut)
        if frame is None:
            return joined_with(self.layout.separator, [part for part in (query_ids, *history) if part])
        asked = query_ids or (frame.empty_query_before_history if history else frame.empty_query)
        if not history:
            return [*asked]
        if not self.layout.heading:
            asked, history = (), [part for part in (asked, *history) if part]
        return [*asked, *self.layout.heading, *joined_with(self.layout.separator, history), *self.layout.closing]

    def items(self, texts: Sequence[str], most_tokens: int = 0, keep_end: bool = False) -> list["_Tokens"]:
        """Token ids of each item text, cut to the candidate budget; () for a text that tokenizes to nothing.

        Args:
            texts: as ``render`` gives them.
            most_tokens: a smaller budget for this request; 0 is the ranker's own.
            keep_end: a text that is too long keeps its end, and not its beginning.
        """
        slot = self._frame.document if self._frame else PLAIN
        found = self._known(texts, slot)
        budget = min(most_tokens or self.rules.candidate_tokens, self.rules.candidate_tokens)
        if budget < self.rules.candidate_tokens:
            found = [_cut(ids, budget, ids.is_cut, slot) for ids in found]
        if keep_end:
            found = [
                self._end(text, budget, slot) if ids.is_cut else ids for text, ids in zip(texts, found, strict=True)
            ]
        self._count("items", len(found), sum(ids.is_cut for ids in found))
        return found

    def unknown_tokens(self, context: Sequence[int], candidates: Iterable[Sequence[int]]) -> tuple[int, int]:
        """How many ids of the context, and of all candidates, stand for text that the vocabulary does not have."""
        unknown = self._unknown
        return (0, 0) if unknown is None else (context.count(unknown), sum(ids.count(unknown) for ids in candidates))

    def _end(self, text: str, tokens: int, slot: Slot) -> _Tokens:
        """The last token ids of a text that is too long; nothing is remembered of it."""
        image, text = self._image_in(text)
        most, room = tokens * CHARACTERS_PER_TOKEN, max(0, tokens - len(image))
        (ids,) = self._encode_whole([text if len(text) <= most else squeezed(text)[-most:]], slot, slot.tail)
        end = _Tokens((*image, *(ids[-room:] if room else ())))
        end.is_cut = True
        return end

    def _known(self, texts: Sequence[str], slot: Slot) -> list[_Tokens]:
        known: dict[str, _Tokens] = {}
        unknown: dict[str, None] = {}
        for text in texts:
            ids = self._recall((slot, text))
            if ids is None:
                unknown[text] = None
            else:
                known[text] = ids
        for text, ids in zip(unknown, self._encode(list(unknown), self.rules.candidate_tokens, slot), strict=True):
            known[text] = ids
            self._remember((slot, text), ids)
        return [known[text] for text in texts]

    def _count(self, field: Field, total: int, cut: int) -> None:
        counts = self.counts[field]
        counts.total += total
        counts.cut += cut

    def tensors(self, context: Sequence[int], candidates: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int32]]:
        """What the engine takes for one request, by input name."""
        return self.architecture.rows(self.layout, context, candidates)

    def padded(self, tensors: Mapping[str, NDArray[np.int32]], buckets: Buckets) -> dict[str, NDArray[np.int32]]:
        """A request's tensors, as ``tensors`` gave them, in the shape of a bucket.

        Raises:
            TextError: no bucket is large enough.
        """
        return self.architecture.padded(tensors, buckets, self.layout, self.rules)

    def _image_in(self, text: str) -> tuple[Sequence[int], str]:
        """The ids of the image that a text names, none where it names none that is known, and the text without it.

        Raises:
            ValueError: it names one, and this tokenizer was not given any.
        """
        if self.rules.images is None or (named := REFERENCE.search(text)) is None:
            return (), text
        if self.images is None:
            raise ValueError(f"{named[0]}: the ranker reads images, and its table of images is not here")
        return self.images.ids_of(named[0]), without_images(text)

    def _encode(self, texts: Sequence[str], tokens: int, slot: Slot) -> list[_Tokens]:
        """Ids of each text within the budget; those of its image come first, and are never cut."""
        if self.rules.images is None:
            return self._encode_texts(texts, tokens, slot)
        images, plain = zip(*map(self._image_in, texts), strict=True) if texts else ((), ())
        found = self._encode_texts(plain, tokens, slot)
        for place, image in enumerate(images):
            if image:
                kept = _Tokens((*image, *found[place])[:tokens])
                kept.is_cut = found[place].is_cut or len(kept) < len(image) + len(found[place])
                found[place] = kept
        return found

    def _encode_texts(self, texts: Sequence[str], tokens: int, slot: Slot) -> list[_Tokens]:
        most = tokens * CHARACTERS_PER_TOKEN
        found = self._encode_whole([text[:most] for text in texts], slot)
        rest = {place: text[most:] for place, text in enumerate(texts) if len(text) > most}
        # Thousands of blanks or accents are cut to too little: without their runs more of the text comes into sight.
        denser = {
            place: shorter
            for place in rest
            if len(found[place]) < tokens and (shorter := squeezed(texts[place])) != texts[place]
        }
        again = self._encode_whole([text[:most] for text in denser.values()], slot)
        whole = self._encode_whole([whole_words(texts[place][:most]) for place in denser], slot)
        for (place, text), ids, known in zip(denser.items(), again, whole, strict=True):
            if ids[: len(known)] == known:
                found[place], rest[place] = ids, text[most:]
        goes_on = [bool(rest.get(place, "").strip()) for place in range(len(texts))]
        if slot.tail:
            short = [place for place, ids in enumerate(found) if ids and len(ids) <= tokens and not goes_on[place]]
            closed = self._encode_whole([texts[place] for place in short], slot, slot.tail)
            found = [[*ids, *slot.tail_ids] if ids else ids for ids in found]
            for place, ids in zip(short, closed, strict=True):
                found[place] = ids
        return [_cut(ids, tokens, more, slot) for ids, more in zip(found, goes_on, strict=True)]

    def _encode_whole(self, texts: Sequence[str], slot: Slot, tail: str = "") -> list[list[int]]:
        """The ids of each text with what its slot puts before it; none of a text that has none of its own."""
        if not texts:
            return []
        lead = slot.anchor + slot.lead
        whole = [f"{lead}{text}{tail}" for text in texts] if lead or tail else [*texts]
        encodings = self._tokenizer.encode_batch_fast(whole, add_special_tokens=False)
        found = [[token for token in encoding.ids if token not in self._reserved] for encoding in encodings]
        return [ids[slot.anchor_tokens :] if text else [] for text, ids in zip(texts, found, strict=True)]

    def _recall(self, key: tuple[Slot, str]) -> _Tokens | None:
        ids = self._cache.get(key)
        if ids is not None:
            self._cache.move_to_end(key)
        return ids

    def _remember(self, key: tuple[Slot, str], ids: _Tokens) -> None:
        if not self._cache_entries or len(key[1]) > self._cacheable_characters:
            return
        self._cache[key] = ids
        if len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)


def copy_text_files(source: Path, target: Path) -> None:
    """What travels with every model file: tokenizer.json, text.json and the images that texts may name define what its
    inputs mean, and scores.json, where there is one, its output."""
    for name in (TOKENIZER_FILE, RULES_FILE):
        shutil.copyfile(source / name, target / name)
    for name in (SCORES_FILE, GOLDEN_TOKENS_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    copy_images(source, target)


def _cut(ids: Sequence[int], tokens: int, is_cut: bool, slot: Slot) -> _Tokens:
    """Ids within a budget; what a slot puts behind a text stays there."""
    is_too_long = len(ids) > tokens
    if is_too_long and slot.tail_ids:
        kept = _Tokens((*ids[: max(0, tokens - len(slot.tail_ids))], *slot.tail_ids))
    else:
        kept = _Tokens(ids[:tokens])
    kept.is_cut = is_cut or is_too_long
    return kept
