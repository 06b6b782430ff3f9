"""The backend of a gateway by its settings: one Triton or several, large requests in parts, a result cache before."""

from functools import partial

from prometheus_client import Counter, Gauge
from tritonrank_client import Retry
from tritonrank_recommend.engine import EngineSettings, Recommender
from tritonrank_recommend.stores.interface import StoreError

from tritonrank_gateway.backend import PASS_REFUSALS_ON, SpanOf, TritonBackend
from tritonrank_gateway.golden import GoldenRequest
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.ranking import Backend
from tritonrank_gateway.replicas import PoolSettings, Replica, ReplicaPool, names_of
from tritonrank_gateway.result_cache import CachedBackend
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.split import BY_REPLICAS, SplitBackend
from tritonrank_gateway.tracing import NO_TRACING, Tracing

NEVER_AGAIN = Retry(attempts=1)
"""Of a replica's client: another replica is asked instead."""


def compose(settings: GatewaySettings, metrics: Metrics, tracing: Tracing | None = None) -> Backend:
    """What ranks for a gateway with these settings; each call of a Triton is a span of ``tracing``.

    Raises:
        ValueError: a replica is named twice, or the golden file cannot be read.
    """
    urls = [f"grpc://{address}" for address in settings.triton]
    span = (tracing or NO_TRACING).step
    backend: Backend
    if len(urls) == 1:
        backend = _triton(urls[0], settings, PASS_REFUSALS_ON, span)
    else:
        backend = _pool(urls, settings, metrics, span)
    if settings.split_candidates > 0 or (settings.split_candidates == BY_REPLICAS and len(urls) > 1):
        backend = SplitBackend(backend, settings.split_candidates, len(urls))
    return _cached(backend, settings, metrics) if settings.cache_mb else backend


def compose_recommender(settings: GatewaySettings) -> Recommender | None:
    """What recommends for a gateway with these settings; None where it has neither a catalogue nor a store.

    Raises:
        ValueError: the store's URL or the rules file is wrong.
    """
    if settings.catalogue is None and not settings.store:
        return None
    try:
        return Recommender.open(
            catalogue=settings.catalogue,
            blend=settings.blend,
            store_url=settings.store,
            rules=settings.rules,
            events_log=settings.events_log,
            settings=EngineSettings(
                candidates=settings.candidates,
                page_minutes=settings.page_minutes,
                warm_context=settings.warm_context,
            ),
        )
    except StoreError as error:
        raise ValueError(str(error)) from error


def _triton(url: str, settings: GatewaySettings, retry: Retry, span: SpanOf) -> TritonBackend:
    return TritonBackend(
        url,
        model=settings.model,
        timeout=settings.deadline_s,
        retry=retry,
        cancel_abandoned=settings.cancel_on_hang_up,
        span=span,
    )


def _pool(urls: list[str], settings: GatewaySettings, metrics: Metrics, span: SpanOf) -> ReplicaPool:
    events = Counter(
        "tritonrank_gateway_replica_events",
        "Replicas put out of rotation (eject) and back (return), requests sent to another (retry) or to two (hedge)",
        ("replica", "event"),
        registry=metrics.registry,
    )
    is_up = Gauge(
        "tritonrank_gateway_replica_up", "Whether a replica is in rotation", ("replica",), registry=metrics.registry
    )
    load = Gauge(
        "tritonrank_gateway_replica_candidates",
        "Candidates that a replica is ranking",
        ("replica",),
        registry=metrics.registry,
    )

    def watch(event: str, replica: Replica) -> None:
        events.labels(replica.name, event).inc()

    golden = GoldenRequest.read(settings.golden) if settings.golden is not None else GoldenRequest()
    pool = ReplicaPool(
        {name: _triton(url, settings, NEVER_AGAIN, span) for name, url in zip(names_of(urls), urls, strict=True)},
        golden,
        PoolSettings(probe_seconds=settings.probe_s, hedge_after_seconds=settings.hedge_after_s),
        watch,
    )
    for replica in pool.replicas:
        is_up.labels(replica.name).set_function(partial(_is_up, replica))
        load.labels(replica.name).set_function(partial(_load, replica))
    return pool


def _cached(backend: Backend, settings: GatewaySettings, metrics: Metrics) -> CachedBackend:
    registry = metrics.registry
    events = Counter(
        "tritonrank_gateway_cache_requests",
        "Requests by what the result cache did: hit, miss, shared with an equal one, emptied by another artifact",
        ("result",),
        registry=registry,
    )
    cached = CachedBackend(backend, settings.cache_mb * 2**20, watch=lambda event: events.labels(event).inc())
    for name, said, value in (
        ("hit_rate", "Share of requests that Triton did not see, since the start", lambda: cached.counts.hit_rate),
        ("bytes", "Bytes of kept rankings", lambda: float(cached.bytes)),
        ("entries", "Kept rankings", lambda: float(len(cached))),
    ):
        Gauge(f"tritonrank_gateway_cache_{name}", said, registry=registry).set_function(value)
    return cached


def _is_up(replica: Replica) -> float:
    return float(replica.is_up)


def _load(replica: Replica) -> float:
    return float(replica.load)
