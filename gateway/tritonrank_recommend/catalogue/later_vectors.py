"""Vectors of items that came while serving: the newest are looked at one by one, older ones in graphs.

Rows are only ever added. A graph covers a range of rows and is never changed once readers can see it; the thread that
embeds builds the next one. What no longer counts (an item changed twice) stays until all is written anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime  # noqa: F401  # before usearch: the other way round ends in SIGSEGV (1.31.1, 2.26.6)
from numpy.typing import NDArray
from usearch.index import Index

from tritonrank_recommend.catalogue.growing import Growing
from tritonrank_recommend.catalogue.vectors import dots, exact, graph

TAIL = 10_000
"""Rows that are looked at one by one before they become a graph."""
MOST_GRAPHS = 6
"""Then all of them become one."""
EXPANSION = 256


@dataclass(frozen=True, slots=True)
class _Graph:
    index: Index
    begin: int
    end: int


class LaterVectors:
    """[rows] vectors and the slots that they belong to."""

    def __init__(self, dimensions: int) -> None:
        self._vectors: Growing[np.float16] = Growing(np.float16, (dimensions,))
        self._slots: Growing[np.int64] = Growing(np.int64)
        self._graphs: tuple[_Graph, ...] = ()

    def __len__(self) -> int:
        return len(self._vectors)

    def add(self, slots: Sequence[int], vectors: NDArray[np.float16]) -> int:
        """Take vectors; returns the row of the first."""
        first = len(self._vectors)
        self._slots.extend(np.asarray(slots, dtype=np.int64))
        self._vectors.extend(vectors)  # readers count vectors
        return first

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        found: NDArray[np.float16] = self._vectors.rows[rows]
        return found

    def nearest(self, wanted: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Slots and scores, in no order; at most ``count`` from each graph and from the tail."""
        graphs, vectors = self._graphs, self._vectors.rows
        tail = graphs[-1].end if graphs else 0
        rows, scores = exact(vectors[tail:], wanted, count)
        found = [rows + tail]
        values = [scores]
        for part in graphs:
            keys = part.index.search(wanted, min(count, part.end - part.begin), threads=1).keys.astype(np.int64)
            found.append(keys)
            values.append(dots(vectors[keys], wanted))
        return self._slots.rows[np.concatenate(found)], np.concatenate(values)

    @property
    def has_long_tail(self) -> bool:
        return len(self._vectors) - (self._graphs[-1].end if self._graphs else 0) >= TAIL

    def seal(self) -> None:
        """Make a graph of the tail where it is long; takes seconds, and readers do not wait."""
        if not self.has_long_tail:
            return
        graphs = self._graphs
        begin, end = (graphs[-1].end if graphs else 0), len(self._vectors)
        if len(graphs) >= MOST_GRAPHS:
            graphs, begin = (), 0
        vectors = self._vectors.rows[:end]
        index = graph(vectors, dtype="f16", expansion=EXPANSION)
        index.add(np.arange(begin, end), vectors[begin:end].astype(np.float32), threads=1)
        self._graphs = (*graphs, _Graph(index, begin, end))
