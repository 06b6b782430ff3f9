"""How true probabilities are: what was said of candidates beside the share of them that was right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RELIABILITY_FILE = "reliability.json"
"""Of the artifact that ``calibrate`` writes: by method, what ``reliability`` found on test examples."""
BINS = 10


def reliability(said: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """How often candidates were right that were given about the same probability, in equally filled bins.

    Returns:
        bins of mean probability, rate and count; the mean difference of the two weighted by count (expected calibration
        error, Naeini et al. 2015); and the mean squared error (Brier 1950).
    """
    probability, truth = np.asarray(said, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    bins = [
        {"said": float(probability[part].mean()), "rate": float(truth[part].mean()), "count": len(part)}
        for part in parts
    ]
    error = sum(abs(one["said"] - one["rate"]) * one["count"] for one in bins) / len(truth)
    return {"bins": bins, "calibration error": error, "brier": float(((probability - truth) ** 2).mean())}


def read_reliability(folder: Path) -> dict[str, Any]:
    """What ``calibrate`` recorded; empty where there is none."""
    path = folder / RELIABILITY_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def wilson_interval(rate: float, count: int) -> tuple[float, float]:
    """95% interval of a share of ``count`` (Wilson 1927)."""
    z = 1.96
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)))
    return max(0.0, min(rate, center - half)), min(1.0, max(rate, center + half))
