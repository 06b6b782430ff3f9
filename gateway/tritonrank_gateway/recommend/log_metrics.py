"""How the training log does, on the gateway's page of metrics."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:  # it brings pyarrow
    from tritonrank_recommend.log.event_log import LogState

NAME = "tritonrank_gateway_events_log_"


class LogMetrics(Collector):
    """Asks the log whenever the page is read."""

    def __init__(self, state: "LogState") -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        waiting = time.time() - state.waiting_since if state.waiting_since else 0.0
        for name, said, count in (
            ("events", "Events that this gateway wrote into the training log", state.written_events),
            ("lists", "Shown lists that this gateway wrote into the training log", state.written_lists),
            ("lists_lost", "Shown lists that found no room in memory while the log could not be written",
             state.lost_lists),
            ("failures", "Attempts to write the training log that did not succeed; events wait in the store",
             state.failures),
        ):  # fmt: skip
            yield CounterMetricFamily(NAME + name, said, value=count)
        yield GaugeMetricFamily(NAME + "waiting_seconds", "Since the oldest event came that is not in the log", waiting)
        yield GaugeMetricFamily(NAME + "is_writer", "1 on the gateway that writes events", float(state.writes_events))
