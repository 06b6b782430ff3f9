"""What rankings look like, in a few numbers from 0 to 1. Each is a handful of NumPy calls over all of many rankings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_gateway.quality.counted import Rows

PERSISTENCE = 0.9
"""Of a reader who goes on to the next place with this probability: 86% of the weight lies on the first ten."""
DEPTH = 50
"""Places that are compared; what lies deeper weighs less than 0.6% altogether."""
_WEIGHTS = PERSISTENCE ** np.arange(DEPTH)


def entropy(logits: NDArray[np.float64]) -> float:
    """As of ``entropies``, of one ranking: [candidates], at least 2."""
    return float(entropies(_one(logits))[0])


def entropies(logits: Rows) -> NDArray[np.float64]:
    """[rankings] how undecided the ranker is: the entropy of the softmax of its scores, as a share of the most there
    can be.

    0: one candidate has all; 1: all are alike.

    Args:
        logits: of each ranking at least 2.
    """
    starts = logits.starts
    above = logits.values - np.repeat(np.maximum.reduceat(logits.values, starts), logits.sizes)
    weights = np.exp(above)
    total = np.add.reduceat(weights, starts)
    shares: NDArray[np.float64] = (np.log(total) - np.add.reduceat(weights * above, starts) / total) / np.log(
        logits.sizes
    )
    return shares


def overlap(places: NDArray[np.int64]) -> float:
    """As of ``overlaps``, of one ranking: [shown], at least 1."""
    return float(overlaps(_one(places))[0])


def overlaps(places: Rows) -> NDArray[np.float64]:
    """[rankings] how much of the order that came in is still there: rank-biased overlap, cut at DEPTH and divided by
    its largest value (Webber, Moffat & Zobel 2010, with p = PERSISTENCE).

    1: the same order; 0: no item among the first DEPTH was there before.

    Args:
        places: the place of each shown item, best first, in the order that came in; of each ranking at least 1.
    """
    depths, at = np.minimum(places.sizes, DEPTH), np.arange(DEPTH)
    is_in = at < depths[:, np.newaxis]
    shown = np.full(is_in.shape, DEPTH)
    shown[is_in] = places.values[(places.starts[:, np.newaxis] + at)[is_in]]
    # An item is in both lists' first d places from the later of its two places on.
    later = np.maximum(shown, at)
    is_in_both = is_in & (later < depths[:, np.newaxis])
    flat = (later + DEPTH * np.arange(len(depths))[:, np.newaxis])[is_in_both]
    both = np.bincount(flat, minlength=is_in.size).reshape(is_in.shape).cumsum(axis=1)
    weights = np.where(is_in, _WEIGHTS, 0.0)
    shares: NDArray[np.float64] = (weights * both / (at + 1)).sum(axis=1) / weights.sum(axis=1)
    return shares


def _one(values: NDArray[Any]) -> Rows:
    return Rows(values.astype(np.float64), np.array([len(values)]))
