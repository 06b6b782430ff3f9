"""Counts of many values at once: a histogram of Prometheus that takes an array."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """Rows of different lengths.

    Attributes:
        values: of all of them, one row after the other.
        sizes: [rows] values of each row.
    """

    values: NDArray[np.float64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> "Rows":
        """Rows that are lists."""
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(np.fromiter(chain.from_iterable(rows), np.float64, int(sizes.sum())), sizes)

    @property
    def starts(self) -> NDArray[np.int64]:
        """[rows] where each row begins."""
        return self.sizes.cumsum() - self.sizes

    @property
    def numbers(self) -> NDArray[np.int64]:
        """[values] the row that each value is in."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def kept(self, keeps: NDArray[np.bool_]) -> "Rows":
        """The same rows with some of their values.

        Args:
            keeps: [values] which.
        """
        sizes = np.bincount(self.numbers[keeps], minlength=len(self.sizes))
        return Rows(self.values[keeps], sizes.astype(np.int64))

    def chosen(self, rows: NDArray[np.bool_]) -> "Rows":
        """Some of the rows.

        Args:
            rows: [rows] which.
        """
        return Rows(self.values[np.repeat(rows, self.sizes)], self.sizes[rows])


class Distribution:
    """How values are spread over fixed buckets.

    Args:
        edges: upper ends of the buckets, rising; a value on an edge is in the bucket that ends there. There is one more
            bucket above the last.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = np.asarray(edges, dtype=np.float64)
        self._counts = np.zeros(len(edges) + 1, dtype=np.int64)
        self._sum = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Take all of an array."""
        self._counts += binned(values, self._edges)
        self._sum += float(values.sum())

    def exposed(self) -> tuple[list[tuple[str, float]], float]:
        """Buckets as Prometheus has them, by upper end and each with all below it, and the sum of all values."""
        ends = [*map(repr, self._edges.tolist()), "+Inf"]
        return list(zip(ends, map(float, self._counts.cumsum()), strict=True)), self._sum


def binned_rows(rows: Rows, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """[rows, len(edges) + 1] how many values of each row are in each bucket."""
    bins = len(edges) + 1
    places = rows.numbers * bins + np.searchsorted(edges, rows.values)
    return np.bincount(places, minlength=bins * len(rows.sizes)).reshape(len(rows.sizes), bins)


def binned(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """[len(edges) + 1] how many values are in each bucket."""
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)


class SlidingSum:
    """The sum of the newest vectors: in blocks, of which the oldest goes when there are enough newer ones or when it is
    old.

    Args:
        size: of a vector.
        block: vectors of one block.
        blocks: kept at most.
        seconds: a block that was begun earlier goes, too.
    """

    def __init__(self, size: int, *, block: int, blocks: int, seconds: float) -> None:
        self._size, self._block, self._most, self._seconds = size, block, blocks, seconds
        self._blocks: list[_Block] = []

    def add(self, vector: NDArray[np.float64], now: float) -> None:
        """Take a vector of ``size`` numbers; ``now`` is of a clock that never goes back."""
        self.add_all(vector[np.newaxis], now)

    def add_all(self, vectors: NDArray[np.float64], now: float) -> None:
        """Take several, [vectors, size]."""
        self._forget(now)
        while len(vectors):
            if not self._blocks or self._blocks[-1].count >= self._block:
                self._blocks.append(_Block(now, self._size))
                del self._blocks[: -self._most]
            room = self._block - self._blocks[-1].count
            self._blocks[-1].add(vectors[:room])
            vectors = vectors[room:]

    def total(self, now: float) -> NDArray[np.float64]:
        """[size] the sum of what is kept."""
        self._forget(now)
        return np.sum([one.sum for one in self._blocks], axis=0) if self._blocks else np.zeros(self._size)

    def _forget(self, now: float) -> None:
        while self._blocks and self._blocks[0].began < now - self._seconds:
            del self._blocks[0]


class _Block:
    def __init__(self, began: float, size: int) -> None:
        self.began, self.count, self.sum = began, 0, np.zeros(size)

    def add(self, vectors: NDArray[np.float64]) -> None:
        self.count += len(vectors)
        self.sum += vectors.sum(axis=0)
