"""How far requests and scores are from those of the reference.

PSI (population stability index) is the sum over bins of (q - p) ln(q / p), with p of the reference and q of now. Two
samples of the same thing have a PSI above 0 by chance, on average (bins - 1)(1/n + 1/m) (twice the Kullback-Leibler
statistic, which is chi-squared); that is subtracted, so that few rankings claim nothing. KS (Kolmogorov-Smirnov) is the
largest difference of the two cumulated shares, looked at where bins end.

A ranking counts as one, however many candidates it has: candidates of one request are alike, and a thousand of them say
less than a thousand requests.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tritonrank_gateway.quality.counted import Rows, SlidingSum, binned_rows
from tritonrank_gateway.quality.reference import Feature, Spread

BLOCK, BLOCKS, SECONDS = 200, 10, 86_400.0
"""The newest 2,000 rankings, none of which is older than a day."""
LEAST_RANKINGS = 200
"""Below it nothing is claimed."""
SMOOTHING = 0.5
"""Rankings that every bin has beyond those seen (Krichevsky & Trofimov 1981): an empty one would make PSI infinite."""


class Drifted(NamedTuple):
    """How far one feature is from its reference."""

    feature: Feature
    psi: float
    ks: float
    rankings: int


class Drift:
    """Follows the features of one kind of requests.

    Args:
        spreads: of the reference, by feature.
    """

    def __init__(self, spreads: Mapping[Feature, Spread]) -> None:
        self._spreads = spreads
        self._edges = {feature: np.asarray(spread.edges) for feature, spread in spreads.items()}
        self._bins: dict[Feature, slice] = {}
        size = 0
        for feature, spread in spreads.items():
            self._bins[feature] = slice(size, size := size + len(spread.shares))
        self._sums = SlidingSum(size, block=BLOCK, blocks=BLOCKS, seconds=SECONDS)
        self._size = size

    def add(self, rankings: int, values: Mapping[Feature, Rows], now: float) -> None:
        """Take rankings.

        Args:
            rankings: so many.
            values: of each feature a row for each ranking, empty where nothing is known of it.
            now: of a clock that never goes back.
        """
        vectors = np.zeros((rankings, self._size))
        for feature, rows in values.items():
            if feature in self._bins:
                counts = binned_rows(rows, self._edges[feature])
                vectors[:, self._bins[feature]] = counts / np.maximum(rows.sizes, 1)[:, np.newaxis]
        self._sums.add_all(vectors, now)

    def spreads_now(self, now: float) -> dict[Feature, Spread]:
        """What a reference made now would say of the features of which enough is known."""
        total, found = self._sums.total(now), dict[Feature, Spread]()
        for feature, bins in self._bins.items():
            if (rankings := round(total[bins].sum())) >= LEAST_RANKINGS:
                shares = (total[bins] / rankings).tolist()
                found[feature] = Spread(self._spreads[feature].edges, shares, rankings)
        return found

    def seen(self, now: float) -> dict[Feature, int]:
        """The rankings behind each feature."""
        total = self._sums.total(now)
        return {feature: round(total[bins].sum()) for feature, bins in self._bins.items()}

    def measured(self, now: float) -> Iterator[Drifted]:
        """The features of which enough is known."""
        total = self._sums.total(now)
        for feature, bins in self._bins.items():
            rankings = round(total[bins].sum())
            if rankings >= LEAST_RANKINGS:
                spread = self._spreads[feature]
                psi = psi_above_chance(np.asarray(spread.shares), spread.rankings, total[bins] / rankings, rankings)
                ks = float(np.abs(np.cumsum(total[bins] / rankings - spread.shares)).max())
                yield Drifted(feature, psi, ks, rankings)


def psi_above_chance(
    before: NDArray[np.float64], rankings_before: float, now: NDArray[np.float64], rankings_now: float
) -> float:
    """The PSI of two spreads over the same bins, less what it is on average when both are samples of the same thing.

    Args:
        before, now: [bins] shares.
        rankings_before, rankings_now: behind each.
    """
    p, q = _smoothed(before, rankings_before), _smoothed(now, rankings_now)
    by_chance = (len(before) - 1) * (1 / rankings_before + 1 / rankings_now)
    return max(0.0, float(((q - p) * np.log(q / p)).sum()) - by_chance)


def _smoothed(shares: NDArray[np.float64], rankings: float) -> NDArray[np.float64]:
    return (shares * rankings + SMOOTHING) / (rankings + SMOOTHING * len(shares))
