"""The rows of ids that an artifact's tokenizer makes of golden pairs, with the library ``tokenizers`` alone."""

import json
from collections.abc import Sequence
from pathlib import Path

from tritonrank_runtime.text import GOLDEN_TOKENS_FILE, TOKENIZER_FILE, RequestTokenizer

from tritonrank.errors import ArtifactError

Pair = tuple[str, str]


def rows_of(tokenizer: RequestTokenizer, pairs: Sequence[Pair]) -> list[list[int]]:
    """The row of ids that the server makes of each query and document."""
    found = []
    for query, document in pairs:
        rows = tokenizer.tensors(tokenizer.context(query, []), tokenizer.items([document]))
        found.append([int(token) for name in tokenizer.architecture.text_inputs for token in rows[name].reshape(-1)])
    return found


def save_golden_tokens(folder: Path, pairs: Sequence[Pair], rows: Sequence[Sequence[int]]) -> None:
    """Write golden_tokens.json."""
    cases = [
        {"query": query, "document": document, "ids": row} for (query, document), row in zip(pairs, rows, strict=True)
    ]
    (folder / GOLDEN_TOKENS_FILE).write_text(json.dumps(cases, ensure_ascii=False) + "\n", encoding="utf-8")


def check_golden_tokens(folder: Path) -> None:
    """Tokenize the golden pairs of an artifact again.

    Raises:
        ArtifactError: the installed ``tokenizers`` makes other ids of them.
    """
    cases = json.loads((folder / GOLDEN_TOKENS_FILE).read_text(encoding="utf-8"))
    pairs = [(case["query"], case["document"]) for case in cases]
    for case, row in zip(cases, rows_of(RequestTokenizer.from_folder(folder), pairs), strict=True):
        if row != case["ids"]:
            raise ArtifactError(
                f"{folder / TOKENIZER_FILE}: the installed tokenizers makes {row[:12]} of {case['query']!r} with "
                f"{case['document']!r}; the artifact was made with {case['ids'][:12]}. Make it anew, or install the "
                "version that its manifest.json names under tools"
            )
