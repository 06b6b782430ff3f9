"""Neighbour lists: of each item those that go with it, and how well. Item kNN, EASE and
what comes next differ only in the values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.catalogue.layout import Files

SPARSE = 64
"""Items per entry of the lists at hand, beyond which sorting the entries is less work than a sum for every item."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Scores of the items that are on any list, places ascending."""

    places: NDArray[np.int64]
    scores: NDArray[np.float32]

    def at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """[places] scores; 0 for what is on no list."""
        if not len(self.places):
            return np.zeros(len(places), dtype=np.float32)
        where = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        return np.where(self.places[where] == places, self.scores[where], np.float32(0))


class NeighbourLists:
    """``NAME.starts.npy`` [items + 1] int64, and behind one another the lists: ``NAME.places.npy`` int32 and
    ``NAME.weights.npy`` float32; the list of item ``i`` is ``starts[i]:starts[i + 1]`` of both."""

    def __init__(self, files: Files, name: str) -> None:
        self._starts = files.array(f"{name}.starts.npy")
        self._places = files.array(f"{name}.places.npy")
        self._weights = files.array(f"{name}.weights.npy")

    def sums(self, places: NDArray[np.int64], factors: NDArray[np.float32]) -> Sums:
        """Of each item the sum of its weights over the lists of these items.

        Args:
            places: whose lists; items that came later have none.
            factors: [places] by which a list's weights are multiplied.
        """
        held = places < len(self._starts) - 1
        places, factors = places[held], factors[held]
        begins, ends = self._starts[places], self._starts[places + 1]
        lists = [self._places[begin:end] for begin, end in zip(begins, ends, strict=True)]
        if not sum(map(len, lists)):
            return Sums(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
        weights = [self._weights[begin:end] * factor for begin, end, factor in zip(begins, ends, factors, strict=True)]
        entries, added = np.concatenate(lists), np.concatenate(weights)
        if (items := len(self._starts) - 1) <= SPARSE * len(entries):
            is_found = np.zeros(items, dtype=bool)
            is_found[entries] = True
            found = np.flatnonzero(is_found)
            scores = np.bincount(entries, weights=added, minlength=items)[found]
        else:
            found, inverse = np.unique(entries, return_inverse=True)
            scores = np.bincount(inverse, weights=added, minlength=len(found))
        return Sums(found.astype(np.int64), scores.astype(np.float32))
