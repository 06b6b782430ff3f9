"""How the stream of events does, on the gateway's page of metrics."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from tritonrank_recommend.streams.consumer import StreamState

NAME = "tritonrank_gateway_events_stream_"


class StreamMetrics(Collector):
    """Asks the consumer whenever the page is read; it looks at the stream once a second."""

    def __init__(self, state: StreamState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        for name, said, count in (
            ("messages", "Messages that this gateway brought into the store, or to the dead letters", state.messages),
            ("events", "Events of other systems and of gateways that ended, new to the store", state.events),
            ("duplicates", "Alike, known to the store already", state.duplicates),
            ("dead_letters", "Messages that nobody can take", state.dead_letters),
            ("claimed", "Messages that another consumer was given and did not acknowledge", state.claimed),
            ("failures", "Calls of stream or store by the consumer without success; they are made again",
             state.failures),
        ):  # fmt: skip
            yield CounterMetricFamily(NAME + name, said, value=count)
        for name, said, value in (
            ("lag_messages", "Messages that no gateway has brought into the store", state.lag.messages),
            ("lag_seconds", "Since the oldest of these was put into the stream", state.lag.seconds),
            ("length", "Messages that the stream holds, to be read again", state.lag.length),
        ):
            yield GaugeMetricFamily(NAME + name, said, float(value))
