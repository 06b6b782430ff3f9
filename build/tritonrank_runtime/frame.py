"""The frame that a language model's ranker reads its texts in: a published prompt, cut where texts go in.

A prompt such as ``<|im_start|>user\\n<Query>: {query}\\n<Document>: {document}<|im_end|>`` was tokenized as one string
when the model was trained. Here the parts are tokenized once, each text by itself, and the ids are put together. That
gives the same ids only where the cuts are places that no token spans: the blank before a text's first word belongs to
that word, and a newline behind a query may become one token with its question mark. So each cut is moved, away from
the text, to the nearest border of pre-tokens (``_lead`` and ``_tail``); what lies between is tokenized with the text.
Tokenizers without pre-tokens, such as Gemma's, are cut where no token of the vocabulary holds both sides: then no merge
can reach over the cut.

The tokens of a frame are tokens; the same strings in somebody's text are letters. Otherwise a seller's title could end
the document and answer the question.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from tritonrank_runtime.item_text import TextError
from tritonrank_runtime.pair_layout import PairLayout

_BEGINNINGS = (
    "a", "Word", "7", "2001", " a", "  a", "\n", "\na", "\n\n a", "\ta", ".", "?!", '"a"', "'s", "(a)", "-1", "_a",
    "<a>", "é", "\u0301a", "ß", "漢字", "ع", "🙂",
)  # fmt: skip
"""How texts begin; a cut before a text must be right for all of them."""
_ENDINGS = (
    "", "a", "Word", "7", "2001", "a ", "a  ", "a\n", "a\n\n", "a\t", "a.", "a?!", "a:", '"a"', "it's", "(a)", "a<",
    "é", "漢字", "ع", "🙂",
)  # fmt: skip
"""How texts end, likewise; a query may be empty."""
_ANCHOR = ":"
_WORD = "▁"
"""A blank in vocabularies of the SentencePiece kind."""
_BLANKS = f" \t\r\n{_WORD}"


@dataclass(frozen=True)
class Frame:
    """The prompt of a ranker, as text.json keeps it: what stands before, between and behind the texts.

    Args:
        before: up to the query; the system's turn and the instruction are part of it.
        document_heading: between query, or history, and document.
        after: behind the document: the template's tail, which nothing ever shortens.
        history_heading: between the query and the first item of the history, if there is a history; "" = the query is
            written as if it were the first item.
        separator: between two items of the history.
        joined: whether the published model reads the prompt as one string; False: its own code tokenizes each part by
            itself, so that no token may hold the end of one and the beginning of the next.
        name: what the template is called.
        yes: the token whose logit is the score; None of a scalar head.
        no: the token whose logit is subtracted; None: none is.
    """

    before: str
    document_heading: str
    after: str
    history_heading: str = ""
    separator: str = "; "
    joined: bool = True
    name: str = ""
    yes: int | None = None
    no: int | None = None

    @property
    def strings(self) -> tuple[str, ...]:
        """All that is written around texts."""
        return self.before, self.history_heading, self.separator, self.document_heading, self.after


@dataclass(frozen=True)
class Slot:
    """Where a text goes: what is tokenized together with it, and so belongs to its budget."""

    lead: str = ""
    tail: str = ""
    tail_ids: tuple[int, ...] = ()
    """of a tail by itself, where a text is cut before it"""
    anchor: str = ""
    """tokenized before lead and text, and taken away again: some tokenizers put a blank before all that comes first"""
    anchor_tokens: int = 0


PLAIN = Slot()
"""A text by itself."""


@dataclass(frozen=True)
class FrameIds:
    """A frame in tokens: the fixed parts, and what goes with each kind of text."""

    layout: PairLayout
    query: Slot
    query_before_history: Slot
    history: Slot
    document: Slot
    empty_query: tuple[int, ...]
    """what stands in place of a query that is empty"""
    empty_query_before_history: tuple[int, ...]


def guarded(tokenizer: Tokenizer, frame: Frame) -> Tokenizer:
    """The tokenizer with every added token of the frame marked as special, so that no text can write one.

    Qwen's ``</think>`` is an added token that is not special: in a document it would be read as the frame's own. Those
    of blanks alone, as Gemma has them, are text wherever they stand.
    """
    written = "".join(frame.strings)
    added = tokenizer.get_added_tokens_decoder().values()
    ordinary = {
        token.content
        for token in added
        if not token.special and token.content.strip(_BLANKS) and token.content in written
    }
    if not ordinary:
        return tokenizer
    rust = json.loads(tokenizer.to_str())
    for token in rust["added_tokens"]:
        token["special"] = token["special"] or token["content"] in ordinary
    return Tokenizer.from_str(json.dumps(rust))


def frame_ids(tokenizer: Tokenizer, frame: Frame, padding: int = 0) -> FrameIds:
    """Cut a frame where its texts go in.

    Args:
        tokenizer: as ``guarded`` gives it; whether it reads special tokens is left as it was found.
        frame: the prompt.
        padding: an id for padding.

    Raises:
        TextError: the frame has no place for what it must hold, or its separator does not fit its headings.
    """
    found = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = False
    try:
        return _Cutter(tokenizer, frame).ids(padding)
    finally:
        tokenizer.encode_special_tokens = found


class _Cutter:
    """Finds the cuts of one frame with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, frame: Frame) -> None:
        self._tokenizer = tokenizer
        self._frame = frame
        self.anchor = self._needed_anchor()
        self._anchor_tokens = len(self.encode(self.anchor))
        added = sorted((token.content for token in tokenizer.get_added_tokens_decoder().values()), key=len)
        self._added = re.compile("|".join(map(re.escape, reversed([token for token in added if token]))) or r"(?!)")
        self._has_pieces = len(self._pieces("a b, c")) > 1
        self._words = [] if self._has_pieces else list(tokenizer.get_vocab(with_added_tokens=False))

    def ids(self, padding: int) -> FrameIds:
        frame = self._frame
        query_lead = self._lead(frame.before)
        # No published model reads a history, so its parts are ours to cut: a blank goes with the item behind it.
        history_lead = _blanks(frame.history_heading or frame.separator)
        document_lead = self._lead(frame.document_heading)
        if _blanks(frame.separator) != history_lead:
            raise TextError(
                f"frame: the separator {frame.separator!r} must end with the same blanks as the history's heading, "
                f"{frame.history_heading!r}: an item has the same tokens wherever it stands"
            )
        tail = self._tail(frame.document_heading) if frame.joined else ""
        history_tail = self._tail(frame.history_heading) if frame.joined and frame.history_heading else ""
        document_tail = self._tail(frame.after) if frame.joined else ""
        document = self._slot(document_lead, document_tail)
        if not (suffix := self._rest(frame.after[len(document_tail) :])) and not document_lead + document_tail:
            raise TextError("frame: nothing stands before or behind the document; write a blank before {document}")
        is_first = query_lead == frame.before
        query, before_history = (self._slot(query_lead, one, is_first) for one in (tail, history_tail))
        empty, empty_before_history = self._empty(query), self._empty(before_history) if frame.history_heading else ()
        layout = PairLayout(
            prefix=self.encode(_less(frame.before, query_lead)),
            middle=self._rest(_less(frame.document_heading[len(tail) :], document_lead)),
            suffix=suffix,
            prefix_types=[],
            middle_types=[],
            suffix_types=[],
            context_type=0,
            candidate_type=0,
            separator=self._rest(_less(frame.separator, history_lead)),
            padding=padding,
            heading=self._rest(_less(frame.history_heading[len(history_tail) :], history_lead)),
            closing=self._rest(tail),
            least_query=max(len(empty), len(empty_before_history)),
        )
        return FrameIds(
            layout, query, before_history, self._slot(history_lead, ""), document, empty, empty_before_history
        )

    def encode(self, text: str) -> list[int]:
        """What stands at the beginning of a row."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _rest(self, text: str) -> list[int]:
        """What stands behind something else, or, where each part is read by itself, at its own beginning."""
        return self._behind(text) if self._frame.joined else self.encode(text)

    def _behind(self, text: str) -> list[int]:
        return self.encode(self.anchor + text)[self._anchor_tokens :] if text else []

    def _slot(self, lead: str, tail: str, is_first: bool = False) -> Slot:
        if is_first:  # its text begins the row
            return Slot(lead, tail, tuple(self._rest(tail)))
        return Slot(lead, tail, tuple(self._rest(tail)), self.anchor, self._anchor_tokens)

    def _empty(self, slot: Slot) -> tuple[int, ...]:
        return tuple(self.encode(slot.anchor + slot.lead + slot.tail)[slot.anchor_tokens :])

    def _lead(self, heading: str) -> str:
        """The shortest end of a heading that has to be tokenized with the text behind it."""
        for place in range(len(heading), 0, -1):
            kept, lead = heading[:place], heading[place:]
            if not self._is_spanned(kept, lead) and all(self._is_cut(kept, lead + text) for text in _BEGINNINGS):
                return lead
        return heading

    def _tail(self, heading: str) -> str:
        """The shortest beginning of what follows a text that has to be tokenized with it."""
        for place in range(len(heading)):
            tail, kept = heading[:place], heading[place:]
            if not self._is_spanned(tail, kept) and all(
                self._is_cut(text + tail, kept, self.anchor) for text in _ENDINGS
            ):
                return tail
        return heading

    def _is_cut(self, left: str, right: str, anchor: str = "") -> bool:
        """Whether the whole has the tokens of its parts, and the pre-tokens, where there are any."""
        whole = self.encode(anchor + left + right)
        if whole != self.encode(anchor + left) + self._behind(right):
            return False
        if not self._has_pieces:
            return True
        behind = self._pieces(self.anchor + right)[len(self._pieces(self.anchor)) :]
        return self._pieces(anchor + left + right) == self._pieces(anchor + left) + behind

    def _pieces(self, text: str) -> list[str]:
        """The pre-tokens of a text, and its added tokens between them."""
        found: list[str] = []
        for part in re.split(f"({self._added.pattern})", text):
            if not part or self._added.fullmatch(part):
                found += [part] if part else []
                continue
            normal = self._tokenizer.normalizer.normalize_str(part) if self._tokenizer.normalizer else part
            pre_tokenizer = self._tokenizer.pre_tokenizer
            found += [piece for piece, _ in pre_tokenizer.pre_tokenize_str(normal)] if pre_tokenizer else [normal]
        return found

    def _is_spanned(self, left: str, right: str) -> bool:
        """Whether the vocabulary has a token that holds what is on both sides of a cut, by the characters beside it.

        Args:
            left: what stands before the cut; "" = a text, of which nothing is known.
            right: what stands behind it, likewise.
        """
        if self._has_pieces:
            return False
        left, right = left[-1:].replace(" ", _WORD), right[:1].replace(" ", _WORD)
        if left and right:
            return any(left + right in token for token in self._words)
        return any(left in token[:-1] if left else right in token[1:] for token in self._words)

    def _needed_anchor(self) -> str:
        """A colon where the tokenizer puts a blank of its own before all that comes first."""
        before = self.encode(_ANCHOR)
        texts = [text for text in _BEGINNINGS if text[0].isspace()]
        if all(self.encode(_ANCHOR + text) == before + self.encode(text) for text in texts):
            return ""
        return _ANCHOR


def _blanks(text: str) -> str:
    """At the end of a text."""
    return text[len(text.rstrip(" ")) :]


def _less(text: str, end: str) -> str:
    return text.removesuffix(end) if end else text


def joined_with(separator: Sequence[int], parts: Sequence[Sequence[int]]) -> list[int]:
    """Parts with the separator's ids between them."""
    found: list[int] = []
    for number, part in enumerate(parts):
        found += [*(separator if number else ()), *part]
    return found
