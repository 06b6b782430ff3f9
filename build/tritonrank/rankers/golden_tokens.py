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
