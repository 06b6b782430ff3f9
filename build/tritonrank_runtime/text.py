"""Request -> token ids: the only definition, used by training, by the judge and by the server.

A request is a query (may be empty), a history of items (newest last) and the candidates. The context is
``query [SEP] oldest kept item [SEP] ... [SEP] newest item``; the history keeps its newest items within a token
budget of its own, so a long history never cuts a candidate.

What an engine takes depends on the architecture. A joint row is the pair (context, candidate) in the layout of the
checkpoint's own tokenizer, special tokens and segment ids included. For a shared-context ranker the context is one row,
``[CLS] context [SEP]``, and each candidate another, ``[CLS] candidate``: the [SEP] at its end would cost one token in
twelve and say nothing.
"""

import json
import math
import re
import shutil
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

RULES_FILE = "text.json"
TOKENIZER_FILE = "tokenizer.json"

# A text is cut to this many characters per budgeted token before it is tokenized, so that a 64 kB text costs no more
# than a short one. English word pieces have 4 to 5 characters; 32 leaves room for long words.
CHARACTERS_PER_TOKEN = 32
CACHED_TOKENS = 3_200_000
"""Of all remembered items together, were they as long as the budget allows: about 100 MB."""
FEWEST_DIGITS_AS_TEXT = 4_000
"""Python refuses to read an integer of more than 4,300 digits; one of so many stays the text that it is."""

JOINT = "joint"
SHARED_CONTEXT = "shared-context"
PADDING = -1
"""Ends a shorter row of ``candidate_ids``: no vocabulary has a negative id."""
NO_ROW = -1
"""The place of an item without text among the rows: it has none."""
NO_TEXT_SCORE = float(np.finfo(np.float32).min)
"""The score of an item without text, below that of any other: such items come last, in the order of the request."""

# What fills a long text without making a token, in nearly every tokenizer: blanks, controls, accents and marks that go
# on top of a letter, zero-width and direction marks. A few say as much as thousands.
_FILLING = "\\s\x00-\x1f\x7f-\x9f\xad\u0300-\u036f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufffd"
_FILLING_RUN = re.compile(f"([{_FILLING}]{{3}})[{_FILLING}]+")

Field = Literal["query", "history", "items"]
"""Of a request's texts."""


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
        self.counts: dict[Field, TextCounts] = {"query": TextCounts(), "history": TextCounts(), "items": TextCounts()}
        self._cache: OrderedDict[str, _Tokens] = OrderedDict()
        self._cache_entries = min(cache_entries, CACHED_TOKENS // rules.candidate_tokens)
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

    @property
    def vocabulary_size(self) -> int:
        """Token ids that the tokenizer has, from 0 on; there may be gaps."""
        return int(1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values()))

    @property
    def segments(self) -> int:
        """Different values of ``token_type_ids``."""
        layout = self._layout
        types = (*layout.prefix_types, *layout.middle_types, *layout.suffix_types)
        return 1 + max(*types, layout.context_type, layout.candidate_type)

    def render(self, text: str, field: str = "item") -> str:
        """The text of an item: a JSON object goes through the template, anything else is the text itself.

        ``{"": "text"}``, one field without a name, is that text as it is, whatever it looks like. An object without a
        value for any field of the template has no text: "", not the template's punctuation.

        Raises:
            TextError: a field that the template names holds something that is not text, number or list of these, or
                text that is not valid Unicode.
        """
        if not text.lstrip().startswith("{"):
            return text
        try:
            value = json.loads(text, parse_int=_json_integer, parse_float=_json_fraction, parse_constant=_no_value)
        except ValueError:
            return text
        except RecursionError:
            raise TextError(f"{field}: JSON nested too deeply; fields hold text, numbers or lists of these") from None
        if not isinstance(value, dict):
            return text
        if list(value) == [""] and isinstance(value[""], str):
            return _whole_characters(value[""], f"{field}: field ''")
        return render_fields(self.rules.item_template, value, field)

    def context(self, query: str, history: Sequence[str]) -> list[int]:
        """Token ids of query and history, without the special tokens of the row's ends.

        History items that tokenize to nothing are left out: they say nothing about the user.
        """
        query_ids = self._encode([query], self.rules.query_tokens)[0] if query else _Tokens()
        self._count("query", 1 if query else 0, query_ids.is_cut)
        newest = history[-self.rules.history_items :] if self.rules.history_items else []
        said = [ids for ids in self._known(newest) if ids]
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
        parts = [part for part in (query_ids, *reversed(kept)) if part]
        separated: list[int] = []
        for number, part in enumerate(parts):
            separated += ([self._layout.separator] if number else []) + [*part]
        return separated

    def items(self, texts: Sequence[str], most_tokens: int = 0, keep_end: bool = False) -> list["_Tokens"]:
        """Token ids of each item text, cut to the candidate budget; () for a text that tokenizes to nothing.

        Args:
            texts: as ``render`` gives them.
            most_tokens: a smaller budget for this request; 0 is the ranker's own.
            keep_end: a text that is too long keeps its end, and not its beginning.
        """
        found = self._known(texts)
        budget = min(most_tokens or self.rules.candidate_tokens, self.rules.candidate_tokens)
        if budget < self.rules.candidate_tokens:
            found = [_cut(ids, budget, ids.is_cut) for ids in found]
        if keep_end:
            found = [self._end(text, budget) if ids.is_cut else ids for text, ids in zip(texts, found, strict=True)]
        self._count("items", len(found), sum(ids.is_cut for ids in found))
        return found

    def _end(self, text: str, tokens: int) -> _Tokens:
        """The last token ids of a text that is too long; nothing is remembered of it."""
        most = tokens * CHARACTERS_PER_TOKEN
        (ids,) = self._encode_whole([text if len(text) <= most else _squeezed(text)[-most:]])
        end = _Tokens(ids[-tokens:])
        end.is_cut = True
        return end

    def _known(self, texts: Sequence[str]) -> list[_Tokens]:
        known: dict[str, _Tokens] = {}
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

    def _count(self, field: Field, total: int, cut: int) -> None:
        counts = self.counts[field]
        counts.total += total
        counts.cut += cut

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

    def _encode(self, texts: Sequence[str], tokens: int) -> list[_Tokens]:
        most = tokens * CHARACTERS_PER_TOKEN
        found = self._encode_whole([text[:most] for text in texts])
        rest = {place: text[most:] for place, text in enumerate(texts) if len(text) > most}
        # Thousands of blanks or accents are cut to too little: without their runs more of the text comes into sight.
        squeezed = {
            place: shorter
            for place in rest
            if len(found[place]) < tokens and (shorter := _squeezed(texts[place])) != texts[place]
        }
        again = self._encode_whole([text[:most] for text in squeezed.values()])
        whole_words = self._encode_whole([_whole_words(texts[place][:most]) for place in squeezed])
        for (place, text), ids, known in zip(squeezed.items(), again, whole_words, strict=True):
            if ids[: len(known)] == known:
                found[place], rest[place] = ids, text[most:]
        return [_cut(ids, tokens, bool(rest.get(place, "").strip())) for place, ids in enumerate(found)]

    def _encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encodings = self._tokenizer.encode_batch_fast([*texts], add_special_tokens=False)
        return [[token for token in encoding.ids if token not in self._reserved] for encoding in encodings]

    def _recall(self, text: str) -> _Tokens | None:
        ids = self._cache.get(text)
        if ids is not None:
            self._cache.move_to_end(text)
        return ids

    def _remember(self, text: str, ids: _Tokens) -> None:
        if not self._cache_entries or len(text) > self._cacheable_characters:
            return
        self._cache[text] = ids
        if len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)


def copy_text_files(source: Path, target: Path) -> None:
    """tokenizer.json and text.json travel with every model file: they define what its inputs mean."""
    for name in (TOKENIZER_FILE, RULES_FILE):
        shutil.copyfile(source / name, target / name)


def render_fields(template: str, fields: Mapping[str, Any], field: str = "item") -> str:
    """Fill ``{name}`` from the fields; absent and null ones become nothing, lists are joined with commas.

    Where no field that the template names says anything, the item has no text: "", not the template's punctuation.

    Raises:
        TextError: a value is an object, or a list that holds something else than text and numbers.
    """
    is_empty = True

    def fill(match: re.Match[str]) -> str:
        nonlocal is_empty
        value = fields.get(match[1])
        values = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, str | int | float) for part in values):
            raise TextError(f"{field}: field {match[1]!r} must be text, a number or a list of these")
        parts = [str(part) for part in values if part is not None]
        is_empty = is_empty and not any(part.strip() for part in parts)
        return _whole_characters(", ".join(parts), f"{field}: field {match[1]!r}")

    filled, places = re.subn(r"\{(\w+)\}", fill, template)
    return "" if places and is_empty else " ".join(filled.split())


def _whole_characters(text: str, what: str) -> str:
    if half := re.search("[\ud800-\udfff]", text):  # JSON can escape one half of a surrogate pair
        raise TextError(f"{what} holds \\u{ord(half[0]):04x}, half a character")
    return text


def _json_integer(digits: str) -> int | str:
    return int(digits) if len(digits) < FEWEST_DIGITS_AS_TEXT else digits


def _json_fraction(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits  # 1e999 is a number of JSON, and infinity is none


def _no_value(_: str) -> None:
    """NaN and Infinity are no JSON, but data frames write a price that is not known as NaN: like null."""


def _squeezed(text: str) -> str:
    """A text whose runs of filling are short; one that holds a blank still parts two words."""
    return _FILLING_RUN.sub(lambda run: run[1] + (" " if re.search(r"\s", run[0]) else ""), text)


def _whole_words(cut_text: str) -> str:
    """A text without the word at its end, which a cut may have left in part."""
    if not cut_text or cut_text[-1].isspace():
        return cut_text
    return cut_text[: len(cut_text) - len(cut_text.split()[-1])]


def _cut(ids: Sequence[int], tokens: int, is_cut: bool) -> _Tokens:
    kept = _Tokens(ids[:tokens])
    kept.is_cut = is_cut or len(ids) > tokens
    return kept


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
    """Equal rows once, in order of first appearance, and for each given row its place among them.

    A row without tokens has no place but NO_ROW. Where no row has any, one of them stays, so that there is something to
    score; nothing refers to it.
    """
    places: dict[tuple[int, ...], int] = {}
    place_of_row = [places.setdefault(row, len(places)) if row else NO_ROW for row in rows]
    nothing: tuple[int, ...] = ()
    return list(places) or [nothing][: len(rows)], np.array(place_of_row, dtype=np.int32)


def candidate_scores(logits: NDArray[np.float32], row_of_candidate: NDArray[np.int32]) -> NDArray[np.float32]:
    """The score of each candidate: the logit of its row, or NO_TEXT_SCORE for one that has none.

    Args:
        logits: (rows,); those that no candidate refers to do not matter.
        row_of_candidate: (candidates,), as ``unique_rows`` gives it.
    """
    scores = np.full(len(row_of_candidate), NO_TEXT_SCORE, dtype=np.float32)
    has_row = row_of_candidate != NO_ROW
    scores[has_row] = logits[row_of_candidate[has_row]]
    return scores


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
