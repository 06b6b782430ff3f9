"""What one ranking looks like, in a few numbers from 0 to 1. Each is a handful of NumPy calls over all candidates."""

import math

import numpy as np
from numpy.typing import NDArray

PERSISTENCE = 0.9
"""Of a reader who goes on to the next place with this probability: 86% of the weight lies on the first ten."""
DEPTH = 50
"""Places that are compared; what lies deeper weighs less than 0.6% altogether."""
_WEIGHTS = PERSISTENCE ** np.arange(DEPTH)


def entropy(logits: NDArray[np.float64]) -> float:
    """How undecided the ranker is: the entropy of the softmax of its scores, as a share of the most there can be.

    0: one candidate has all; 1: all are alike.

    Args:
        logits: [candidates], at least 2.
    """
    above = logits - logits.max()
    weights = np.exp(above)
    total = weights.sum()
    return float((math.log(total) - (weights @ above) / total) / math.log(len(logits)))


def overlap(places: NDArray[np.int64]) -> float:
    """How much of the order that came in is still there: rank-biased overlap, cut at DEPTH and divided by its largest
    value (Webber, Moffat & Zobel 2010, with p = PERSISTENCE).

    1: the same order; 0: no item among the first DEPTH was there before.

    Args:
        places: [shown] the place of each shown item, best first, in the order that came in.
    """
    depth = min(len(places), DEPTH)
    # An item is in both lists' first d places from the later of its two places on.
    later = np.maximum(places[:depth], np.arange(depth))
    both = np.bincount(later[later < depth], minlength=depth).cumsum()
    weights = _WEIGHTS[:depth]
    return float((weights @ (both / np.arange(1, depth + 1))) / weights.sum())
