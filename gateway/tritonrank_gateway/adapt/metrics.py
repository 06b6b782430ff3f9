"""What the controller tells in /metrics."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

from tritonrank_gateway.metrics import found

if TYPE_CHECKING:
    from tritonrank_gateway.adapt.pace import Pace

AHEAD_SECONDS = (60, 300)
REASONS = ("load", "queue", "refused", "room")


class AdaptMetrics:
    """The families ``tritonrank_adapt_*``; gauges ask the controller when the page is read.

    Args:
        registry: of the gateway.
        pace: that is told of.
    """

    def __init__(self, registry: CollectorRegistry, pace: "Pace") -> None:
        name = "tritonrank_adapt_"
        controller = pace.controller
        self.changes = Counter(
            f"{name}changes", "Changes of the level: for load, queue or refused down, for room up", ("reason",),
            registry=registry,
        )  # fmt: skip
        for reason in REASONS:
            self.changes.labels(reason)
        served = Counter(f"{name}served", "Rankings and lists by the level at which they were made", ("level",),
                         registry=registry)  # fmt: skip
        self.served = found(served)
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("level", "Level that the controller wants: 0 is full, the last one retrieval's order",
             lambda: controller.level.number),
            ("acting", "Whether the level holds (act), or is only told (0)", lambda: pace.settings.mode == "act"),
            ("arrivals", "Requests per second that come now", lambda: controller.arrivals_per_second),
            ("candidates", "Candidates of a list that are ranked at the wanted level",
             lambda: controller.level.ranked(pace.in_full)),
            ("quality", "NDCG@10 at the wanted level in that of a full list, as the build measured it, or NaN",
             lambda: controller.level.quality),
            ("queue_seconds", "Seconds of work that wait, by the speed measured at this level",
             lambda: controller.queue_seconds),
            ("utilisation", "What now comes, in what can be done in full", lambda: controller.utilisation(0)),
            ("wished_replicas", "Replicas that do in full what will come in the next five minutes",
             lambda: controller.wished_replicas),
        )  # fmt: skip
        for own, said, value in gauges:
            Gauge(name + own, said, registry=registry).set_function(value)
        forecast = Gauge(
            f"{name}forecast_arrivals", "Requests per second that are forecast, so many seconds ahead", ("ahead",),
            registry=registry,
        )  # fmt: skip
        for seconds in AHEAD_SECONDS:
            forecast.labels(str(seconds)).set_function(_forecast(pace, seconds))


def _forecast(pace: "Pace", seconds: int) -> Callable[[], float]:
    return lambda: pace.controller.forecaster.forecast(seconds)
