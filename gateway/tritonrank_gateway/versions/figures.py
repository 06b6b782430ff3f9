"""How far two rankings of one request agree, in a few numbers: a handful of NumPy calls over all candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonrank_client import NO_TEXT_SCORE

from tritonrank_gateway.quality.counted import binned
from tritonrank_gateway.quality.figures import DEPTH, overlap
from tritonrank_gateway.ranking import Ranking

BEST = 10
SCORE_EDGES = (-3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""In standard deviations of the live scores, from their mean."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two rankings.

    Attributes:
        rbo: rank-biased overlap: 1 for the same order.
        top_ten: share of the live ten best that are among the other's ten best; None where there are no more than ten.
        drift: mean absolute difference of scores, in standard deviations of the live ones; None where these are 0.
        live_bins, version_bins: shares of the scores over the bins of SCORE_EDGES; empty where ``drift`` is None.
    """

    rbo: float
    top_ten: float | None
    drift: float | None
    live_bins: list[float]
    version_bins: list[float]


def agreement(live: Ranking, version: Ranking, items: int) -> Agreement:
    """Compare the rankings that two versions gave to one request.

    Args:
        live, version: one item at least in each.
        items: of the request.
    """
    place = np.full(items, items + DEPTH, dtype=np.int64)  # an item that live did not give back is in none of its first
    place[live.indices] = np.arange(len(live.indices))
    places = place[version.indices]
    top_ten = _top_ten(places, len(live.indices))
    before, now = _scores(live, items), _scores(version, items)
    both = ~(np.isnan(before) | np.isnan(now))
    before, now = before[both], now[both]
    spread = float(before.std()) if len(before) > 1 else 0.0
    if not spread:
        return Agreement(overlap(places), top_ten, None, [], [])
    mean = float(before.mean())
    return Agreement(
        overlap(places),
        top_ten,
        float(np.abs(now - before).mean()) / spread,
        _shares((before - mean) / spread),
        _shares((now - mean) / spread),
    )


def alike(shown: Sequence[str], other: Sequence[str]) -> tuple[float, float | None]:
    """Rank-biased overlap of two lists of items, and the share of the ten best that are in both ten best, as above.

    Args:
        shown, other: ids, best first, one at least in each.
    """
    place = {item_id: number for number, item_id in enumerate(shown)}
    places = np.array([place.get(item_id, len(shown) + DEPTH) for item_id in other], dtype=np.int64)
    return overlap(places), _top_ten(places, len(shown))


def _top_ten(places: NDArray[np.int64], shown: int) -> float | None:
    return float((places[:BEST] < BEST).sum()) / BEST if min(len(places), shown) > BEST else None


def _scores(ranking: Ranking, items: int) -> NDArray[np.float64]:
    """[items] scores in the order of the request; NaN for those without one."""
    scores = np.full(items, np.nan)
    scores[ranking.indices] = ranking.logits
    scores[scores == NO_TEXT_SCORE] = np.nan
    return scores


def _shares(scores: NDArray[np.float64]) -> list[float]:
    shares: list[float] = (binned(scores, np.asarray(SCORE_EDGES)) / len(scores)).tolist()
    return shares
