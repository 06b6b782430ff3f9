"""Which range of an activation its 256 steps should cover: four answers from the same histogram.

``minmax`` covers everything that was seen, and one outlier can waste most of the steps. The others clip: ``percentile``
leaves out the largest 0.01% of the magnitudes, ``entropy`` takes the range whose quantized distribution tells least of
the original one apart (Kullback-Leibler divergence, as TensorRT's own calibrator did: Migacz 2017), ``mse`` the one
with the least squared error. Which of them is best depends on the model, so whoever quantizes tries them.

ONNX Runtime's calibrators are not used: they stack the values of all requests, which have different shapes here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.engine import Feed

from tritonrank.graphs.watch import watched_values

BINS = 2_048
LEVELS = 127
"""Steps of symmetric INT8 on either side of 0; -128 is left out, so that both sides are alike."""
PERCENTILE = 0.9999
TRIED_RANGES = 64
"""Ranges between a sixteenth of the largest magnitude and all of it that ``entropy`` and ``mse`` choose from."""


@dataclass(frozen=True)
class Magnitudes:
    """How often which magnitude of an activation was seen."""

    counts: NDArray[np.int64]
    """BINS bins of equal width from 0 to ``largest``"""
    largest: float

    @property
    def edges(self) -> NDArray[np.float64]:
        return np.linspace(0, self.largest, len(self.counts) + 1)

    @property
    def centers(self) -> NDArray[np.float64]:
        return (self.edges[1:] + self.edges[:-1]) / 2


def activation_magnitudes(source: Path, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, Magnitudes]:
    """Histograms of activations of an FP32 graph over calibration feeds: one pass for the ranges, one to count."""
    largest = dict.fromkeys(names, 0.0)
    for values in watched_values(source, names, feeds):
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max(initial=0)))
    counts = {name: np.zeros(BINS, dtype=np.int64) for name in names}
    for values in watched_values(source, names, feeds):
        for name, value in values.items():
            counts[name] += np.histogram(np.abs(value), bins=BINS, range=(0, largest[name] or 1.0))[0]
    return {name: Magnitudes(counts[name], largest[name]) for name in names}


def minmax(seen: Magnitudes) -> float:
    """The largest magnitude."""
    return seen.largest


def percentile(seen: Magnitudes) -> float:
    """The magnitude that PERCENTILE of the values stay within."""
    cumulated = np.cumsum(seen.counts) / max(int(seen.counts.sum()), 1)
    return float(seen.edges[1 + np.searchsorted(cumulated, PERCENTILE)]) if seen.counts.any() else 0.0


def mse(seen: Magnitudes) -> float:
    """The range with the least squared error of rounding and clipping."""

    def error(limit: float) -> float:
        step = limit / LEVELS
        rounded = np.minimum(np.round(seen.centers / step), LEVELS) * step
        return float((seen.counts * (rounded - seen.centers) ** 2).sum())

    return _best_range(seen, error)


def entropy(seen: Magnitudes) -> float:
    """The range with the least Kullback-Leibler divergence of the quantized from the original distribution."""

    def divergence(limit: float) -> float:
        kept = max(LEVELS + 1, round(limit / seen.largest * BINS))
        original = seen.counts[:kept].astype(np.float64)
        level = np.arange(kept) * (LEVELS + 1) // kept
        is_used = original > 0
        sums = np.bincount(level, weights=original, minlength=LEVELS + 1)
        used = np.bincount(level, weights=is_used, minlength=LEVELS + 1)
        quantized = np.where(is_used, (sums / np.maximum(used, 1))[level], 0.0)
        original[-1] += seen.counts[kept:].sum()  # what is clipped lands in the last bin of the original alone
        p, q = original / original.sum(), np.maximum(quantized, 1e-9) / max(quantized.sum(), 1e-9)
        return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())

    return _best_range(seen, divergence)


METHODS: dict[str, Callable[[Magnitudes], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _best_range(seen: Magnitudes, loss: Callable[[float], float]) -> float:
    if not seen.counts.any() or seen.largest == 0:
        return seen.largest
    ranges = np.geomspace(seen.largest / 16, seen.largest, TRIED_RANGES)
    return float(ranges[int(np.argmin([loss(float(limit)) for limit in ranges]))])
