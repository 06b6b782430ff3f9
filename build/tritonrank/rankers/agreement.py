"""Whether two executors rank alike: by how much their scores differ, and how many of the ten best they share."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float32]
TOP = 10


def largest_difference(found: Sequence[Scores], expected: Sequence[Scores]) -> float:
    """Of any score of any request; not a number where one is none, which Python's ``max`` would pass over."""
    return float(np.max([np.abs(a - b).max(initial=0.0) for a, b in zip(found, expected, strict=True)], initial=0.0))


def relative_difference(found: Scores, expected: Scores) -> float:
    """Largest difference of a request's scores, in units of the largest score where that is above 1.

    FP16 has a precision relative to the number; scores of a fine-tuned ranker lie between -10 and 10. Infinite when a
    score is missing or not a number.
    """
    scored = expected > np.finfo(np.float32).min  # text.NO_TEXT_SCORE says nothing of how large scores are
    difference = float(np.abs(found - expected).max(initial=0.0))
    difference /= max(1.0, float(np.abs(expected[scored]).max(initial=0.0)))
    return difference if np.isfinite(difference) else float("inf")


def top_overlap(found: ArrayLike, expected: ArrayLike, k: int = TOP) -> float:
    """Share of the k best (all, of fewer) that both have; ties in order of appearance."""
    both = (np.asarray(scores, dtype=np.float64) for scores in (found, expected))
    best = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in both]
    return len(best[0] & best[1]) / max(1, len(best[1]))


def mean_overlap(found: Sequence[Scores], expected: Sequence[Scores]) -> float | None:
    """Mean of ``top_overlap`` over requests of more than ten candidates; None without any."""
    overlaps = [top_overlap(a, b) for a, b in zip(found, expected, strict=True) if len(b) > TOP]
    return float(np.mean(overlaps)) if overlaps else None
