"""Ranking metrics of one list, and what can be said about their mean over many lists.

A list is given by scores and labels in the order of its candidates. A label is a gain: 0 for a negative, 1 for a
positive, or its weight where events have types. Equal scores keep that order (stable, as the server ranks). Examples
shuffle their candidates, so ties are broken at random but reproducibly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

METRICS = ("ndcg@10", "mrr@10", "recall@10", "auc")
BOOTSTRAP_SAMPLES = 2_000
"""Resamples behind every interval: from one seed to another its ends move by about 1.5% of its width."""


def ranking(scores: ArrayLike) -> NDArray[np.int64]:
    """Candidate indices, best first; ties in order of appearance."""
    return np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")


def ndcg(scores: ArrayLike, labels: ArrayLike, k: int = 10) -> float:
    """Normalized discounted cumulative gain of the first k with gain = label (Järvelin & Kekäläinen 2002).

    Weights are gains already: a purchase of weight 3 is worth three of weight 1. 2^label - 1 (Burges et al. 2005) is
    for the grades of annotators, which only say an order; of binary labels both are the same.
    """
    gains = np.asarray(labels, dtype=np.float64)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.sort(gains)[::-1][:k]
    ideal = float(best @ discounts[: len(best)])
    found = gains[ranking(scores)][:k]
    return float(found @ discounts[: len(found)]) / ideal if ideal else 0.0


def mrr(scores: ArrayLike, labels: ArrayLike, k: int = 10) -> float:
    """Reciprocal rank of the first positive (any gain above 0), 0 if it is not among the first k."""
    hits = np.flatnonzero(np.asarray(labels)[ranking(scores)][:k])
    return 1.0 / (int(hits[0]) + 1) if len(hits) else 0.0


def recall(scores: ArrayLike, labels: ArrayLike, k: int = 10) -> float:
    """Share of the positives that are among the first k."""
    relevant = np.asarray(labels) > 0
    return float(relevant[ranking(scores)][:k].sum() / relevant.sum()) if relevant.any() else 0.0


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting one half; 0.5 without both kinds."""
    values, relevant = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    positives, negatives = values[relevant], values[~relevant]
    if not len(positives) or not len(negatives):
        return 0.5
    differences = positives[:, None] - negatives[None, :]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())


def all_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    return {
        "ndcg@10": ndcg(scores, labels),
        "mrr@10": mrr(scores, labels),
        "recall@10": recall(scores, labels),
        "auc": auc(scores, labels),
    }


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_means(values: ArrayLike, samples: int, seed: int) -> NDArray[np.float64]:
    """Means of ``samples`` resamples, with replacement, of the values (Efron 1979)."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(array), size=(samples, len(array)))
    return np.asarray(array[picks].mean(axis=1))


def interval(values: ArrayLike, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0) -> Interval:
    """Mean of the values and its 95% percentile-bootstrap interval; of paired differences, the paired one."""
    low, high = np.quantile(bootstrap_means(values, samples, seed), [0.025, 0.975])
    return Interval(float(np.mean(np.asarray(values, dtype=np.float64))), float(low), float(high))


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Rank correlation of two rankings of the same candidates, Kendall's tau-b: 1 = same order, -1 = reversed.

    A list of equal scores has no order: 1 when both are such lists, 0 when one is.
    """
    is_above = [np.sign(np.subtract.outer(values, values)) for values in (np.asarray(first), np.asarray(second))]
    # Twice the pairs that are in an order: Kendall (1945), with corrections for ties in both rankings.
    pairs = [float((one**2).sum()) for one in is_above]
    if 0 in pairs:
        return float(pairs[0] == pairs[1])
    return float((is_above[0] * is_above[1]).sum() / np.sqrt(pairs[0] * pairs[1]))
