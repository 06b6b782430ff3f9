"""Counts of many values at once: a histogram of Prometheus that takes an array."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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

    def add_one(self, value: float) -> None:
        """Take one value."""
        self._counts[np.searchsorted(self._edges, value)] += 1
        self._sum += value

    def exposed(self) -> tuple[list[tuple[str, float]], float]:
        """Buckets as Prometheus has them, by upper end and each with all below it, and the sum of all values."""
        ends = [*map(repr, self._edges.tolist()), "+Inf"]
        return list(zip(ends, map(float, self._counts.cumsum()), strict=True)), self._sum


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
        self._forget(now)
        if not self._blocks or self._blocks[-1].count >= self._block:
            self._blocks.append(_Block(now, self._size))
            del self._blocks[: -self._most]
        self._blocks[-1].add(vector)

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

    def add(self, vector: NDArray[np.float64]) -> None:
        self.count += 1
        self.sum += vector
