"""Rankings that only count who liked what: popularity and item kNN.

They cost nothing, need no model, and say of a data set what a ranker has to beat before one is trained. Counts come
from training events only.
"""

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tritonrank.data.dataset import Example

CountedScorer = Callable[[Example], NDArray[np.float32]]
"""Scores of an example's candidates."""
NEIGHBOUR_HISTORY = 8
"""History items that kNN looks at: the newest 8 did better than all of them on MovieLens."""


def popularity_baseline(training_events: pl.DataFrame) -> CountedScorer:
    """Score = number of positives of the item among the training events."""
    positives = training_events.filter(pl.col("label") > 0)
    counts = Counter(positives["item_id"].to_list())
    return lambda example: np.array([counts[item] for item in example.candidates], dtype=np.float32)


def neighbour_baseline(training_events: pl.DataFrame) -> CountedScorer:
    """Item kNN (Sarwar et al. 2001): sum over the newest history items of the cosine of their users' sets."""
    users_of: defaultdict[str, set[str]] = defaultdict(set)
    positives = training_events.filter(pl.col("label") > 0)
    for user, item in zip(positives["user_id"], positives["item_id"], strict=True):
        users_of[item].add(user)

    def similarity(first: str, second: str) -> float:
        one, other = users_of.get(first), users_of.get(second)
        return len(one & other) / float(np.sqrt(len(one) * len(other))) if one and other else 0.0

    def score(example: Example) -> NDArray[np.float32]:
        recent = example.history[-NEIGHBOUR_HISTORY:]
        return np.array([sum(similarity(h, item) for h in recent) for item in example.candidates], dtype=np.float32)

    return score
