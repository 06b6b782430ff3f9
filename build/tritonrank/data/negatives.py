"""Sampling what a user did not choose.

Negatives are drawn without replacement by popularity^exponent from the items the user never met. The chance of an
item counts one more than its positives, so that new items are drawn too. Every example has a random stream of its
own, made from the seed and the example's id: asking for more users or examples leaves the others as they were.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

QUICK_ROUNDS = 3
POPULARITY_EXPONENT = 0.75
"""As in word2vec (Mikolov et al. 2013): frequent items are drawn often, and the tail is not forgotten."""


def example_random(seed: int, example_id: str) -> np.random.Generator:
    """The random stream of one example; the same on every machine."""
    return np.random.default_rng(stable_hash(seed, example_id))


def stable_hash(seed: int, text: str) -> int:
    """64 bits that, unlike Python's ``hash``, do not change from one process to the next."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")


class NegativeSampler:
    """Draws items by popularity.

    Args:
        popularity: [items] positives per item, counted on training events only.
        exponent: 0 draws all items alike, 1 in proportion to (popularity + 1).
    """

    def __init__(self, popularity: NDArray[np.int64], exponent: float = POPULARITY_EXPONENT) -> None:
        self._weights = (popularity + 1.0) ** exponent
        self._cumulative = np.cumsum(self._weights)

    def draw(self, random: np.random.Generator, seen: NDArray[np.int64], count: int) -> list[int]:
        """``count`` different items that are not in ``seen``, in the order of drawing.

        The caller makes sure that so many exist.
        """
        taken = set(seen.tolist())
        drawn: list[int] = []
        # Drawing with replacement and skipping repeats is sampling without replacement; fast while repeats are rare.
        for _ in range(QUICK_ROUNDS):
            if len(drawn) == count:
                break
            ticks = random.random(2 * count) * self._cumulative[-1]
            for item in np.searchsorted(self._cumulative, ticks, side="right").tolist():
                if len(drawn) < count and item not in taken and item < len(self._weights):
                    taken.add(item)
                    drawn.append(item)
        return drawn + self._race(random, taken, count - len(drawn))

    def _race(self, random: np.random.Generator, taken: set[int], count: int) -> list[int]:
        """The same distribution in one go over all items: the first arrivals of exponential clocks."""
        if count == 0:
            return []
        arrivals = random.exponential(size=len(self._weights)) / self._weights
        arrivals[list(taken)] = np.inf
        first: list[int] = np.argsort(arrivals, kind="stable")[:count].tolist()
        return first
