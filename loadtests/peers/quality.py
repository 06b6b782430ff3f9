"""How well a system's answers rank, so that a conversion that broke the model does not win by speed."""

from collections.abc import Sequence

import numpy as np

BOOTSTRAP_SAMPLES = 2_000


def ndcg(scores: Sequence[float], labels: Sequence[int], k: int = 10) -> float:
    """Normalized discounted cumulative gain of the first k with gain = label; ties in the order of the request."""
    gains = np.asarray(labels, dtype=np.float64)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    found = gains[np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")][:k]
    best = np.sort(gains)[::-1][:k]
    ideal = float(best @ discounts[: len(best)])
    return float(found @ discounts[: len(found)]) / ideal if ideal else 0.0


def paired_difference(values: Sequence[float], reference: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Mean difference of values of the same requests, with its 95% percentile-bootstrap interval (Efron 1979)."""
    differences = np.subtract(values, reference)
    picks = np.random.default_rng(seed).integers(0, len(differences), size=(BOOTSTRAP_SAMPLES, len(differences)))
    low, high = np.quantile(differences[picks].mean(axis=1), [0.025, 0.975])
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}


def largest_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """Between two systems' scores of the same requests."""
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(first, second, strict=True))
