"""Where special tokens stand around two texts: as a checkpoint's own tokenizer puts them there, read from its
post-processor; or as its frame does (``frame.py``)."""

from dataclasses import dataclass, field

from tokenizers import Tokenizer

from tritonrank_runtime.item_text import TextError


@dataclass(frozen=True)
class PairLayout:
    """``[prefix] first [middle] second [suffix]``, by token ids and segment ids."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    prefix_types: list[int]
    middle_types: list[int]
    suffix_types: list[int]
    context_type: int
    candidate_type: int
    separator: list[int]
    """between two parts of a context"""
    padding: int
    heading: list[int] = field(default_factory=list)
    """between query and history, where that is not the separator"""
    closing: list[int] = field(default_factory=list)
    """behind a history"""
    least_query: int = 0
    """tokens that stand in place of a query which is empty"""

    def longest_context(self, query_tokens: int, history_tokens: int) -> int:
        """Tokens of query and history at the most, by their budgets."""
        return (
            max(query_tokens, self.least_query)
            + len(self.heading or self.separator)
            + history_tokens
            + len(self.closing)
        )

    @property
    def special_tokens(self) -> int:
        """That a pair has beside its two texts."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @property
    def segments(self) -> int:
        """Different segment ids."""
        types = (*self.prefix_types, *self.middle_types, *self.suffix_types)
        return 1 + max((*types, self.context_type, self.candidate_type))


def pair_layout(tokenizer: Tokenizer) -> PairLayout:
    """The layout of a tokenizer's pairs.

    Raises:
        TextError: the tokenizer makes pairs in another order, or no tokens of letters.
    """
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in ("a", "b"))
    if not first.ids or not second.ids:
        raise TextError("tokenizer.json: the tokenizer makes no token of plain letters")
    pair = tokenizer.encode("a", "b")
    sequence = pair.sequence_ids
    first_start, second_start = sequence.index(0), sequence.index(1)
    first_end, second_end = first_start + len(first.ids), second_start + len(second.ids)
    if first_start > second_start or not pair.ids[second_end:]:
        raise TextError("tokenizer.json: pairs must read [prefix] first [middle] second [suffix]")
    return PairLayout(
        prefix=pair.ids[:first_start],
        middle=pair.ids[first_end:second_start],
        suffix=pair.ids[second_end:],
        prefix_types=pair.type_ids[:first_start],
        middle_types=pair.type_ids[first_end:second_start],
        suffix_types=pair.type_ids[second_end:],
        context_type=pair.type_ids[first_start],
        candidate_type=pair.type_ids[second_start],
        separator=[pair.ids[second_end]],
        padding=padding_id(tokenizer),
    )


def reserved_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Special tokens that no text may contain; the unknown token stands for text and is none of them."""
    added = tokenizer.get_added_tokens_decoder().items()
    return frozenset({token_id for token_id, token in added if token.special} - {unknown_id(tokenizer)})


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token that stands for text which the vocabulary does not have; None where it has all, byte by byte."""
    ids = (tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>"))
    return next((int(found) for found in ids if found is not None), None)


def padding_id(tokenizer: Tokenizer) -> int:
    """An id that stands for no token."""
    for name in ("[PAD]", "<pad>"):
        if (token := tokenizer.token_to_id(name)) is not None:
            return int(token)
    return 0  # masked out everywhere; any valid id does
