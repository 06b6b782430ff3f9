"""Requests to compare models on where nobody brought data: the caller's own texts, or those of the package.

The package's are hand-written sentences in nine languages and several scripts; documents of 5 to some 500 tokens are
put together from them, always the same ones. They say nothing about how good a ranker is, only whether two forms of one
ranker agree.

The caller's file has one request a line as JSON (``{"query": ..., "documents": [...]}``, or ``document`` for one), or
tab-separated lines of a query and a document; lines without a tab are documents, which are ranked for the first words
of others.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tritonrank.errors import DataError
from tritonrank.rankers.server_scorer import Request

SENTENCES = Path(__file__).with_name("sentences.json")
DOCUMENTS = 20
"""Of one packaged query."""
LONGEST_SENTENCES = 32
"""Of one packaged document: 300 to 500 tokens, by language and tokenizer."""
MOST_REQUESTS, MOST_DOCUMENTS = 64, 40
"""Read of a caller's file; more would only take longer."""
QUERY_WORDS = 6
LONGEST_LINE = 1_000_000


@lru_cache(maxsize=1)
def _sentences() -> dict[str, dict[str, list[str]]]:
    loaded: dict[str, dict[str, list[str]]] = json.loads(SENTENCES.read_text(encoding="utf-8"))
    return loaded


def packaged_requests() -> list[Request]:
    """Two queries per language with ``DOCUMENTS`` documents each, short ones more often than long ones."""
    return [
        Request(query, [], list(_documents(texts["sentences"], seed=97 * place + number)))
        for place, texts in enumerate(_sentences().values())
        for number, query in enumerate(texts["queries"])
    ]


def golden_pairs() -> list[tuple[str, str]]:
    """Short pairs of every language, to compare tokenizers on."""
    return [
        (query, sentence)
        for texts in _sentences().values()
        for query, sentence in zip(texts["queries"], texts["sentences"][::5], strict=True)
    ]


def _documents(sentences: list[str], seed: int) -> Iterator[str]:
    generator = np.random.default_rng(seed)
    lengths = np.geomspace(1, LONGEST_SENTENCES, DOCUMENTS).round().astype(int)
    for number, length in enumerate(generator.permutation(lengths)):
        picks = generator.integers(len(sentences), size=length)
        text = " ".join(sentences[pick] for pick in picks)
        yield text if length > 1 or number % 2 else text[: len(text) // 2]


def requests_of_file(path: Path) -> list[Request]:
    """The requests of a caller's file.

    Raises:
        DataError: it cannot be read, a line is neither of the forms, or there is nothing to rank; names file and line.
    """
    by_query: dict[str, list[str]] = {}
    plain: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if len(line) > LONGEST_LINE:
                    raise DataError(f"{path}:{number}: longer than {LONGEST_LINE:,} characters; expected one request")
                if line.strip():
                    _read_line(line.strip("\r\n"), f"{path}:{number}", by_query, plain)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    requests = [Request(query, [], documents[:MOST_DOCUMENTS]) for query, documents in by_query.items()]
    found = list(islice((request for request in [*requests, *_made_of(plain)] if request.items), MOST_REQUESTS))
    if not any(len(request.items) > 1 for request in found):
        raise DataError(
            f'{path}: no query with two documents, and no two documents; expected lines such as {{"query": "...", '
            '"documents": ["...", "..."]}, or query, tab, document'
        )
    return found


def _read_line(line: str, place: str, by_query: dict[str, list[str]], plain: list[str]) -> None:
    if line.lstrip().startswith("{"):
        try:
            value: Any = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON: {error}") from None
        documents = value.get("documents", value.get("document"))
        documents = [documents] if isinstance(documents, str) else documents
        if not isinstance(documents, list) or not all(isinstance(one, str) for one in documents):
            raise DataError(f"{place}: documents: expected a list of texts (or document: one text)")
        if not isinstance(query := value.get("query", ""), str):
            raise DataError(f"{place}: query: expected a text")
        by_query.setdefault(query, []).extend(documents) if query else plain.extend(documents)
    elif "\t" in line:
        query, document, *_ = line.split("\t")
        by_query.setdefault(query, []).append(document)
    else:
        plain.append(line)


def _made_of(documents: list[str]) -> Iterator[Request]:
    """Documents without a query: the first words of one in so many are the query for those around it."""
    for start in range(0, len(documents), DOCUMENTS):
        some = documents[start : start + DOCUMENTS]
        yield Request(" ".join(some[0].split()[:QUERY_WORDS])[:200], [], some)
