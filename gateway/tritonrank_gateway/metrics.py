"""The gateway's own Prometheus metrics: what came in and what became of it, by route, artifact and candidates.

Triton's summaries cost throughput and know no dialects. For autoscaling one gauge is enough:
`tritonrank_gateway_queued_seconds`, the estimated seconds of work that wait. Parts with metrics of their own register
them in `Metrics.registry`; docs/metrics.md lists them all.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

NAME = "tritonrank_gateway_"
CANDIDATE_BUCKETS = (1, 10, 30, 100, 300, 1_000)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the times' buckets. Those that ``loadtests/slo*.yaml`` name are among them: an alert on an objective
counts the requests beyond exactly its limit."""
TOKENS = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
LABELS = ("route", "artifact", "candidates")


Series = TypeVar("Series", Counter, Histogram)


def found(metric: Series) -> Callable[..., Series]:
    """Gives the series of a metric by the values of its labels, and remembers it: to find one takes longer than to
    count. None is ever removed, so nothing is remembered that would not be there."""
    return cache(metric.labels)


class Metrics:
    """One registry of one gateway. What has labels is called with their values: ``requests(route, outcome).inc()``."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each counter began: a third of the page, and nobody asks
        self._registry = CollectorRegistry()
        name, registry = NAME, self._registry
        self.requests = found(
            Counter(
                f"{name}requests",
                "Requests by what became of them: answered, degraded (answered without a part), invalid (the caller's "
                "fault), refused (no room), expired, failed, hung_up",
                ("route", "outcome"),
                registry=registry,
            )
        )
        self.seconds = found(Histogram(
            f"{name}request_seconds", "From the request's first byte to its answer", LABELS, buckets=SECONDS,
            registry=registry,
        ))  # fmt: skip
        self.queue_seconds = found(Histogram(
            f"{name}queue_seconds", "Estimated work that waited before an admitted request", LABELS, buckets=SECONDS,
            registry=registry,
        ))  # fmt: skip
        self.tokens = found(
            Histogram(
                f"{name}request_tokens", "Tokens of context and candidates", LABELS, buckets=TOKENS, registry=registry
            )
        )
        self.documents = found(Counter(f"{name}documents", "Candidates that were ranked", LABELS, registry=registry))
        self.truncated = found(
            Counter(f"{name}documents_truncated", "Candidates that lost text to a budget", LABELS, registry=registry)
        )
        self.unscored = found(Counter(
            f"{name}documents_unscored", "Candidates ranked last because nothing in them can be scored", LABELS,
            registry=registry,
        ))  # fmt: skip
        self.cached = found(Counter(f"{name}cache_hits", "Rankings given from the cache", LABELS, registry=registry))
        self.refused = found(
            Counter(f"{name}refused", "Requests that got no ranking", ("route", "reason"), registry=registry)
        )
        self.degraded = found(Counter(
            f"{name}degraded", "Answers made without a part, once for each thing that was missing", ("route", "reason"),
            registry=registry,
        ))  # fmt: skip
        self.step_seconds = found(Histogram(
            f"{name}recommend_step_seconds", "Of a recommendation: profile, retrieve, rank, blend, total", ("step",),
            buckets=SECONDS, registry=registry,
        ))  # fmt: skip
        self.recommended = found(Counter(
            f"{name}recommendations", "Answered, by whether the user was unknown, and whether a part was missing",
            ("cold", "degraded"), registry=registry,
        ))  # fmt: skip
        self.events = Counter(
            f"{name}events", "Events of users that were taken, by whether they were known already", ("known",),
            registry=registry,
        )  # fmt: skip
        self.replicas: Callable[[], int] = lambda: 1
        """Tritons behind this gateway now"""
        self.certificates = Counter(
            f"{name}certificate_loads", "Times that changed certificate files were read again, by how it went",
            ("result",), registry=registry,
        )  # fmt: skip
        self.last_event: Gauge | None = None
        """when the newest event was taken, unix seconds; None where there is no store"""
        self.in_flight = Gauge(f"{name}in_flight", "Requests that wait for an answer", registry=registry)
        self.queued_seconds = Gauge(f"{name}queued_seconds", "Estimated seconds of work that wait", registry=registry)

    @property
    def registry(self) -> CollectorRegistry:
        """For parts that have metrics of their own, such as a cache."""
        return self._registry

    def watch(self, in_flight: Callable[[], float], queued_seconds: Callable[[], float]) -> None:
        """Ask these two whenever the page is read."""
        self.in_flight.set_function(in_flight)
        self.queued_seconds.set_function(queued_seconds)

    def page(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return generate_latest(self._registry)


def candidate_bucket(candidates: int) -> str:
    """The label of so many candidates: the next larger of a few numbers."""
    return next((f"<={most}" for most in CANDIDATE_BUCKETS if candidates <= most), f">{CANDIDATE_BUCKETS[-1]}")
