"""How the store does: seconds and failures by operation, whether it answers, and how old the newest event is."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from tritonrank_recommend.stores import GuardedStore
from tritonrank_recommend.stores.guard import Outcome

from tritonrank_gateway.metrics import NAME, found

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class StoreMetrics:
    """Counts the calls of a store from here on.

    Args:
        store: whose calls are counted.
        registry: the gateway's.
    """

    def __init__(self, store: GuardedStore, registry: CollectorRegistry) -> None:
        seconds = Histogram(
            f"{NAME}store_seconds", "Calls of the store, answered or not", ("operation",), buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        errors = Counter(
            f"{NAME}store_errors",
            "Calls without an answer: late, failed, refused (no store that can be used), given_up by who asked, "
            "not_asked because the last ones failed",
            ("operation", "kind"),
            registry=registry,
        )
        self._seconds, self._errors = found(seconds), found(errors)
        is_up = Gauge(f"{NAME}store_up", "Whether the store answers; 0 while it is only tried", registry=registry)
        is_up.set_function(lambda: float(store.answers))
        self.last_event = Gauge(
            f"{NAME}last_event_seconds",
            "When the newest event was taken here, unix seconds; before the first one, when this gateway began",
            registry=registry,
        )
        self.last_event.set(time.time())
        store.watch = self._called

    def _called(self, operation: str, seconds: float, outcome: Outcome) -> None:
        if outcome != "not_asked":
            self._seconds(operation).observe(seconds)
        if outcome != "done":
            self._errors(operation, outcome).inc()
