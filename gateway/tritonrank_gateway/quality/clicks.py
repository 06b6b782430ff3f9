"""What users click, by position, and what it says about the order: an estimate of NDCG that allows for where they look.

Clicks are rarer further down because fewer people look there. A click at a place that one user in five looks at stands
for five users who would have liked the item, so it weighs 1/0.2 (inverse propensity; Joachims, Swaminathan & Schnabel
2017), at most LARGEST_WEIGHT: beyond it one click from the last page would outweigh all others. The estimate is
self-normalised (Swaminathan & Joachims 2015): the weighted mean, over clicks, of the NDCG@10 that a list has whose only
good item stands where the clicked one stood. For lists with several good items NDCG itself is higher.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from tritonrank_recommend.events import Event

from tritonrank_gateway.quality.counted import SlidingSum

CUTOFF = 10
LARGEST_WEIGHT = 10.0
LEAST_CLICKS = 100
"""Below it no NDCG is claimed."""
BLOCK, BLOCKS, SECONDS = 1_000, 10, 86_400.0
"""The newest 10,000 clicks, none of which is older than a day."""
MOST_REMEMBERED = 20_000
"""Clicks, by page and position: a second one on the same item says nothing new."""
DEEP = ((10, "10-19"), (20, "20-49"), (50, "50+"))


class Clicks:
    """Counts impressions and clicks by position, and estimates NDCG. Used from one event loop."""

    def __init__(self) -> None:
        self.propensities: Sequence[float] | None = None
        """of each position, from 0, where the training data tell it; else 1, 1/2, 1/3, ..."""
        self._shown: dict[str, int] = {}
        self._clicked: dict[str, int] = {}
        # Of each click w, wd, w2, w2d, w2d2, with its weight w and discount d; and 1.
        self._sums = SlidingSum(6, block=BLOCK, blocks=BLOCKS, seconds=SECONDS)
        self._remembered: OrderedDict[tuple[int, int], None] = OrderedDict()

    def shown(self, positions: Iterable[int]) -> None:
        """A page was shown with items at these positions of the whole list, from 0."""
        for position in positions:
            label = position_label(position)
            self._shown[label] = self._shown.get(label, 0) + 1

    def took(self, events: Iterable[Event], now: float) -> list[tuple[Event, NDArray[np.float64]]]:
        """Events were accepted; those of type click that say where count, and are given with their six sums."""
        counted = []
        for event in events:
            if event.type == "click" and event.position is not None and self._is_new(event):
                label = position_label(event.position)
                self._clicked[label] = self._clicked.get(label, 0) + 1
                weight = 1 / max(self._looked(event.position), 1 / LARGEST_WEIGHT)
                gain = discount(event.position)
                square = weight * weight
                sums = np.array([weight, weight * gain, square, square * gain, square * gain * gain, 1.0])
                self._sums.add(sums, now)
                counted.append((event, sums))
        return counted

    def estimate(self, now: float) -> tuple[float, float, int]:
        """NDCG@10, its standard error (delta method), and the clicks behind them; both are NaN without a click."""
        weights, weighted, squares, square_gains, square_gains2, clicks = self._sums.total(now).tolist()
        if not clicks:
            return float("nan"), float("nan"), 0
        mean = weighted / weights
        variance = square_gains2 - 2 * mean * square_gains + mean * mean * squares
        return mean, max(0.0, variance) ** 0.5 / weights, round(clicks)

    def collect(self, now: float) -> Iterable[Metric]:
        """For Prometheus' page."""
        for name, said, counts in (
            ("impressions", "Items shown by /v1/recommend, by their position in the list", self._shown),
            ("clicks", "Clicks that were told with a position, by that position", self._clicked),
        ):
            family = CounterMetricFamily(f"tritonrank_quality_{name}", said, labels=["position"])
            for label, count in counts.items():
                family.add_metric([label], count)
            yield family
        mean, error, clicks = self.estimate(now)
        yield GaugeMetricFamily("tritonrank_quality_ips_clicks", "Clicks behind the estimate of NDCG", clicks)
        ndcg = GaugeMetricFamily(
            "tritonrank_quality_ips_ndcg", "NDCG@10 by clicks, weighted by how likely a position is looked at"
        )
        its_error = GaugeMetricFamily("tritonrank_quality_ips_ndcg_error", "Standard error of that estimate")
        if clicks >= LEAST_CLICKS:
            ndcg.add_metric([], mean)
            its_error.add_metric([], error)
        yield ndcg
        yield its_error

    def _looked(self, position: int) -> float:
        """How likely a user looks at a position."""
        if self.propensities is None:
            return 1 / (1 + position)
        return self.propensities[position] if position < len(self.propensities) else 0.0

    def _is_new(self, event: Event) -> bool:
        if not event.page:
            return True
        key = (hash(event.page), event.position or 0)
        if key in self._remembered:
            return False
        self._remembered[key] = None
        if len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return True


def discount(position: int) -> float:
    """NDCG@10 of a list whose only good item stands at a position, from 0."""
    return float(1 / np.log2(position + 2)) if position < CUTOFF else 0.0


def position_label(position: int) -> str:
    """0 to 9 by themselves, deeper ones together."""
    if position < DEEP[0][0]:
        return str(position)
    return next(label for first, label in reversed(DEEP) if position >= first)
