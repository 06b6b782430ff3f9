"""Golden token ids: pairs of texts with the row that the checkpoint's own tokenizer makes of them.

The server reads tokenizer.json with the library ``tokenizers`` alone. Whether that gives the rows that the model was
trained with is proved when the artifact is made: against the tokenizer that transformers loads, or, where a checkpoint
has no tokenizer.json and one is converted, against the slow original. The ids travel with the artifact, so that a later
release of the library which reads the file otherwise is found before it ranks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from tritonrank_runtime.text import TOKENIZER_FILE, RequestTokenizer

from tritonrank.errors import ArtifactError
from tritonrank.rankers.golden_rows import Pair, rows_of
from tritonrank.rankers.pretrained import quietly

GLUED = 8
"""Tokens of a budget that may belong to what is tokenized with a text, at the most."""


def prove_exact(
    name: str, folder: Path, fast: PreTrainedTokenizerFast, tokenizer: RequestTokenizer, pairs: Sequence[Pair]
) -> list[list[int]]:
    """The golden rows, once they are those of the checkpoint's own tokenizer.

    Args:
        name: of the checkpoint; what errors call it.
        folder: its files.
        fast: its tokenizer as transformers loads it.
        tokenizer: what the server will have.
        pairs: short ones, which no budget cuts.

    Raises:
        ArtifactError: the rows differ: the tokenizer cannot be converted.
    """
    reference: Any = fast
    if not (folder / TOKENIZER_FILE).is_file():
        reference = quietly(
            name, "tokenizer", lambda: AutoTokenizer.from_pretrained(str(folder), use_fast=False, local_files_only=True)
        )
    rows = rows_of(tokenizer, pairs)
    for (query, document), row in zip(pairs, rows, strict=True):
        expected = reference(query, document)["input_ids"]
        if row != expected:
            raise ArtifactError(
                f"{name}: its tokenizer ({type(reference).__name__}) cannot be converted to {TOKENIZER_FILE}: "
                f"{query!r} with {document!r} becomes {row[:12]} instead of {expected[:12]}. A score would be another "
                f"model's; take a checkpoint that has a {TOKENIZER_FILE} of its own"
            )
    return rows


def prove_prompt(
    name: str, fast: PreTrainedTokenizerFast, tokenizer: RequestTokenizer, pairs: Sequence[Pair]
) -> tuple[list[Pair], list[list[int]]]:
    """The golden rows of a prompt, once they are those of transformers on the whole of it; and the pairs they are of.

    Args:
        name: of the checkpoint; what errors call it.
        fast: its tokenizer as transformers loads it.
        tokenizer: what the server will have, with a frame.
        pairs: of texts; those that a budget cuts are left out.

    Raises:
        ArtifactError: the rows differ.
    """
    frame, rules = tokenizer.rules.frame, tokenizer.rules
    assert frame is not None, "a prompt is a frame"
    budgets = rules.query_tokens - GLUED, rules.candidate_tokens - GLUED
    kept = [
        pair
        for pair in pairs
        if all(len(_whole(fast, text)) <= budget for text, budget in zip(pair, budgets, strict=True))
    ]
    rows = rows_of(tokenizer, kept)
    for (query, document), row in zip(kept, rows, strict=True):
        if frame.joined:
            expected = _whole(fast, f"{frame.before}{query}{frame.document_heading}{document}{frame.after}")
        else:  # the published code tokenizes each part by itself
            parts = (f"{frame.before}{query}", f"{frame.document_heading}{document}", frame.after)
            expected = [token for part in parts for token in _whole(fast, part)]
        if row != expected:
            place = next((n for n, (a, b) in enumerate(zip(row, expected, strict=False)) if a != b), len(row))
            raise ArtifactError(
                f"{name}: its prompt cannot be cut where texts go in: with {query!r} and {document!r} token {place} is "
                f"{row[place : place + 3]} instead of {expected[place : place + 3]}. Write model.template with a blank "
                "before each text, and with a special token or a newline behind it"
            )
    return kept, rows


def _whole(fast: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(fast(text, add_special_tokens=False)["input_ids"])
