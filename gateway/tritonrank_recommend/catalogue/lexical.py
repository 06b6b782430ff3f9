"""Items by the words of a query: BM25 over what bm25s wrote, and over items that came later.

bm25s itself adds up an array over all items for each query, which takes long with a million of them; here the same
scores are added over the postings of the query's words alone. A word that very many items have brings no items where
rarer words brought some already: it only adds to their scores.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.catalogue.growing import Growing
from tritonrank_recommend.catalogue.layout import LEXICAL, REBUILD, CatalogueError, Files, LexicalFacts
from tritonrank_recommend.catalogue.words import Words

MOST_POSTINGS = 30_000
"""Items that the words of one query may bring together, from the rarest word on."""
MOST_WORDS = 64
"""Different words of one query that count."""

Postings = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Items that have a word, ascending, and their scores for it."""


class Lexical:
    """The index of the artifact, and on top of it the slots of items that came while serving.

    Scores of slots use the index's own frequencies and average length, so that both kinds compare.
    """

    def __init__(self, files: Files, facts: LexicalFacts, items: int) -> None:
        self._scores = files.array(f"{LEXICAL}/data.csc.index.npy")
        self._items = files.array(f"{LEXICAL}/indices.csc.index.npy")
        self._starts = files.array(f"{LEXICAL}/indptr.csc.index.npy")
        path = files.path(f"{LEXICAL}/vocab.index.json")
        try:
            self._vocabulary: dict[str, int] = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        except msgspec.DecodeError as error:
            raise CatalogueError(f"{path}: cannot be read ({error}); {REBUILD}") from None
        self._facts, self._count = facts, items
        self._words = Words(facts.stemmer)

    def words(self, query: str) -> list[str]:
        """The different words of a query."""
        return list(dict.fromkeys(self._words(query)))[:MOST_WORDS]

    def postings(self, words: Sequence[str]) -> list[Postings]:
        """Of each word that items of the artifact have, the rarest first; items are places."""
        ranges = [(int(self._starts[row]), int(self._starts[row + 1])) for row in map(self._row, words) if row >= 0]
        ranges.sort(key=lambda ends: ends[1] - ends[0])
        return [(self._items[start:end], self._scores[start:end]) for start, end in ranges]

    def weighed(self, text: str) -> dict[str, float]:
        """Of a new text the score that each of its words gives it, by Lucene's BM25 as in the index."""
        tokens = self._words(text)
        facts = self._facts
        norm = facts.k1 * (1 - facts.b + facts.b * len(tokens) / max(facts.average_tokens, 1e-9))
        counts: dict[str, int] = {}
        for token in tokens:
            counts[token] = counts.get(token, 0) + 1
        return {token: self._rarity(token) * count / (norm + count) for token, count in counts.items()}

    def _row(self, word: str) -> int:
        row = self._vocabulary.get(word, -1)
        return row if row < len(self._starts) - 1 else -1  # bm25s gives the empty word a number without a column

    def _rarity(self, word: str) -> float:
        row = self._row(word)
        having = int(self._starts[row + 1] - self._starts[row]) if row >= 0 else 0
        return float(np.log(1 + (self._count - having + 0.5) / (having + 0.5)))


class LaterWords:
    """Postings of slots; appended to by one thread."""

    def __init__(self) -> None:
        self._postings: dict[str, tuple[Growing[np.int32], Growing[np.float32]]] = {}

    def add(self, slot: int, weighed: dict[str, float]) -> None:
        for word, score in weighed.items():
            held = self._postings.get(word)
            if held is None:
                held = self._postings[word] = (Growing(np.int32), Growing(np.float32))
            held[1].append(score)  # first: readers take as many scores as there are slots
            held[0].append(slot)

    def postings(self, words: Sequence[str]) -> list[Postings]:
        found = []
        for word in words:
            if (held := self._postings.get(word)) is not None:
                slots = held[0].rows
                found.append((slots, held[1].rows[: len(slots)]))
        return sorted(found, key=lambda posting: len(posting[0]))


def best(postings: Sequence[Postings]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Items that the words bring, ascending, and their scores for all words.

    Args:
        postings: by word, the rarest first.
    """
    bringing: list[NDArray[np.int32]] = []
    total = 0
    for items, _ in postings:
        if bringing and total + len(items) > MOST_POSTINGS:
            break
        bringing.append(items)
        total += len(items)
    if not bringing:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    if len(bringing) == 1 and len(postings) == 1:
        return np.asarray(bringing[0], dtype=np.int64), np.asarray(postings[0][1])
    places = np.unique(np.concatenate(bringing)).astype(np.int64)
    return places, scores_at(postings, places)


def scores_at(postings: Sequence[Postings], places: NDArray[np.int64]) -> NDArray[np.float32]:
    """[places] scores for all words; ``places`` ascending or not."""
    scores = np.zeros(len(places), dtype=np.float32)
    for items, values in postings:
        if not len(items):
            continue
        where = np.minimum(np.searchsorted(items, places.astype(np.int32)), len(items) - 1)
        scores += np.where(items[where] == places, values[where], np.float32(0))
    return scores
