"""The metrics of what stands behind a gateway, by version: replicas and result caches.

Versions come and go while the gateway runs, so their parts are looked at when the page is read. What was counted goes
on over a change.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tritonrank_gateway.golden import GoldenRequest
from tritonrank_gateway.metrics import NAME
from tritonrank_gateway.ranking import Backend
from tritonrank_gateway.replicas import Replica, ReplicaPool
from tritonrank_gateway.result_cache import CachedBackend
from tritonrank_gateway.versions.wire import Role, Version


@dataclass(frozen=True, slots=True)
class Opened:
    """What ranks for one version.

    Attributes:
        backend: the whole of it: closing it closes the rest.
        golden: what each of its Tritons is asked to show that it is well.
        pool: of its replicas; None where it is one Triton.
        cache: None where nothing is kept.
    """

    backend: Backend
    golden: GoldenRequest
    pool: ReplicaPool | None = None
    cache: CachedBackend | None = None


def size_of(pool: ReplicaPool | None) -> int:
    """Tritons that rank together; one where there is no pool, or where none is known yet."""
    return 1 if pool is None else max(1, len(pool.replicas))


class BackendMetrics(Collector):
    """Tells of the parts in ``now``, each by the role of its version. Used from one event loop."""

    def __init__(self) -> None:
        self.now: dict[Role, Opened] = {}
        self._replica_events: Counter[tuple[Role, str, str]] = Counter()
        self._cache_events: Counter[tuple[Role, str]] = Counter()

    def replica_event(self, role: Role, event: str, replica: Replica) -> None:
        """Something happened to a replica: join, leave, eject, return, retry, hedge."""
        if replica.has_left:  # addresses come and go for ever, and what is told of them with them
            for one in [one for one in self._replica_events if one[:2] == (role, replica.name)]:
                del self._replica_events[one]
        else:
            self._replica_events[role, replica.name, event] += 1

    def live_replicas(self) -> int:
        """Tritons behind what is live."""
        return size_of(self.now["live"].pool) if "live" in self.now else 1

    def cache_event(self, role: Role, event: str) -> None:
        """A cache did something: hit, miss, shared, emptied."""
        self._cache_events[role, event] += 1

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' page."""
        events = CounterMetricFamily(
            f"{NAME}replica_events",
            "Replicas that joined (join), were put out of rotation (eject) and back (return), requests sent to another "
            "(retry), to two (hedge)",
            labels=("version", "replica", "event"),
        )
        for labels, count in self._replica_events.items():
            events.add_metric(labels, count)
        is_up = GaugeMetricFamily(
            f"{NAME}replica_up", "Whether a replica is in rotation", labels=("version", "replica")
        )
        load = GaugeMetricFamily(
            f"{NAME}replica_candidates", "Candidates that a replica is ranking", labels=("version", "replica")
        )
        for role, opened in self.now.items():
            for replica in opened.pool.replicas if opened.pool is not None else ():
                is_up.add_metric((role, replica.name), float(replica.is_up))
                load.add_metric((role, replica.name), float(replica.load))
        yield from (events, is_up, load)
        yield from self._of_caches()

    def _of_caches(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            f"{NAME}cache_requests",
            "Requests by what the result cache did: hit, miss, shared with an equal one, emptied by another artifact",
            labels=("version", "result"),
        )
        for labels, count in self._cache_events.items():
            events.add_metric(labels, count)
        yield events
        caches = [(role, opened.cache) for role, opened in self.now.items() if opened.cache is not None]
        for name, said, values in (
            (
                "hit_rate",
                "Share of requests that Triton did not see, since the version came",
                [(role, cache.counts.hit_rate) for role, cache in caches],
            ),
            ("bytes", "Bytes of kept rankings", [(role, float(cache.bytes)) for role, cache in caches]),
            ("entries", "Kept rankings", [(role, float(len(cache))) for role, cache in caches]),
        ):
            gauge = GaugeMetricFamily(f"{NAME}cache_{name}", said, labels=("version",))
            for role, value in values:
                gauge.add_metric((role,), value)
            yield gauge


class Opens(Protocol):
    """Makes what ranks for a version."""

    metrics: BackendMetrics

    def open(self, version: Version, role: Role) -> Opened:
        """What ranks for a version; nothing is asked of its Tritons yet.

        Raises:
            ValueError: it cannot be as it is said.
        """
