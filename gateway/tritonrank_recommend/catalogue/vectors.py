"""Nearest items by vector: every one is looked at where they are few, a graph (HNSW, usearch) where they are many.

Vectors have unit length, so the dot product is the cosine. What the graph finds is scored again by the float16 vectors.
"""

import numpy as np
import onnxruntime  # noqa: F401  # before usearch: the other way round ends in SIGSEGV (1.31.1, 2.26.6)
from numpy.typing import NDArray
from usearch.index import Index, MetricKind, search

from tritonrank_recommend.catalogue.layout import INDEX, VECTORS, Facts, Files

EXACT_ITEMS = 20_000
"""Up to so many vectors are looked at one by one: 1.2 ms of one core with 384 dimensions."""
MOST_FOUND = 4_000
"""That a search of the graph is asked for when filters will drop most of what it finds."""
SURPLUS = 1.5

Nearest = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows best first, and their scores."""
NOTHING: Nearest = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


def exact(vectors: NDArray[np.float16], wanted: NDArray[np.float32], count: int) -> Nearest:
    """The best rows of [rows, dimensions] float16; raises nothing where there are fewer."""
    count = min(count, len(vectors))
    if count == 0:
        return NOTHING
    found = search(vectors, wanted.astype(np.float16), count, MetricKind.IP, exact=True, threads=1)
    return found.keys.astype(np.int64), (1 - found.distances).astype(np.float32)


def graph(vectors: NDArray[np.float16], *, dtype: str, expansion: int) -> Index:
    """An empty graph; keys are rows."""
    return Index(
        ndim=vectors.shape[1],
        metric=MetricKind.Cos,  # of int8 the length is not 1 exactly
        dtype=dtype,
        connectivity=16,
        expansion_add=128,
        expansion_search=expansion,
        enable_key_lookups=False,
    )


class Vectors:
    """Those of the artifact."""

    def __init__(self, files: Files, facts: Facts) -> None:
        rows: NDArray[np.float16] = files.array(VECTORS)
        self._graph: Index | None = None
        # Of few items widened once, 30 MB at the most: a scan of float16 takes twice the time, and a look at 200 rows
        # twenty times. Of many they stay in the file.
        self._rows: NDArray[np.float16 | np.float32] = rows
        if facts.index is None:
            self._rows = rows.astype(np.float32)
        else:
            self._graph = graph(rows, dtype=facts.index.dtype, expansion=facts.index.expansion)
            self._graph.view(files.path(INDEX))

    def at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """[places, dimensions] their vectors."""
        return self._rows[places].astype(np.float32, copy=False)

    def nearest(self, wanted: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None) -> Nearest:
        """The best places.

        Args:
            wanted: [dimensions] of unit length.
            count: of places; fewer come back where fewer are allowed, or where the graph does not find them.
            allowed: [items]; None: all are.
        """
        if allowed is None:
            return _best(dots(self._rows, wanted), count) if self._graph is None else self._by_graph(wanted, count)
        matching = int(np.count_nonzero(allowed))
        if self._graph is None or matching <= EXACT_ITEMS:
            if matching == 0:
                return NOTHING
            places = np.flatnonzero(allowed)
            found, scores = _best(dots(self._rows if matching == len(self._rows) else self.at(places), wanted), count)
            return places[found], scores
        asked = min(MOST_FOUND, int(SURPLUS * count * len(self._rows) / matching) + 1)
        places, scores = self._by_graph(wanted, asked)
        kept = allowed[places]
        return places[kept][:count], scores[kept][:count]

    def _by_graph(self, wanted: NDArray[np.float32], count: int) -> Nearest:
        assert self._graph is not None
        found = self._graph.search(wanted, min(count, len(self._rows)), threads=1)
        places = found.keys.astype(np.int64)
        scores = dots(self.at(places), wanted)
        best = np.argsort(-scores, kind="stable")
        return places[best], scores[best]


def _best(scores: NDArray[np.float32], count: int) -> Nearest:
    """The places of the highest scores, best first."""
    places = np.argpartition(-scores, count - 1)[:count] if 0 < count < len(scores) else np.arange(len(scores))
    places = places[np.argsort(-scores[places], kind="stable")][:count]
    return places, scores[places]


def dots(vectors: NDArray[np.float16 | np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """[rows] cosines; each has the same bits whatever the other rows are.

    Not by ``@``, whose sums depend on the other rows, and for which BLAS wakes a thread per core: those wait for the
    next product in a busy loop, 30 ms of processor time after a tenth of a millisecond's work.
    """
    scores: NDArray[np.float32] = np.einsum("ij,j->i", vectors.astype(np.float32, copy=False), wanted)
    return scores
