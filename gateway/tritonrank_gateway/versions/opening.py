"""Opens what ranks for one version: one Triton or several, large requests in parts, a result cache before.

Each version has its own: replicas of its own because the same Triton may rank with two versions, and a cache of its own
because a cache forgets all it has when another artifact answers.
"""

from functools import partial
from pathlib import Path

from tritonrank_client import Retry

from tritonrank_gateway.backend import PASS_REFUSALS_ON, TritonBackend
from tritonrank_gateway.discovery import Addresses, is_followed, names_of
from tritonrank_gateway.golden import GoldenRequest
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.ranking import Backend
from tritonrank_gateway.replicas import PoolSettings, ReplicaPool
from tritonrank_gateway.result_cache import CachedBackend
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.split import BY_REPLICAS, SplitBackend
from tritonrank_gateway.tracing import NO_TRACING, Tracing
from tritonrank_gateway.versions.backend_metrics import BackendMetrics, Opened, size_of
from tritonrank_gateway.versions.wire import FIRST, Role, Version

NEVER_AGAIN = Retry(attempts=1)
"""Of a replica's client: another replica is asked instead."""
CACHED: dict[Role, float] = {"live": 1.0, "canary": 0.25, "shadow": 0.0}
"""Of ``cache_mb``. What the shadow ranks is always ranked: it is there to be measured."""


def first_version(settings: GatewaySettings) -> Version:
    """The version that the flags name."""
    return Version(
        name=FIRST,
        triton=list(settings.triton),
        model=settings.model,
        golden=None if settings.golden is None else str(settings.golden),
    )


class Opener:
    """Opens versions by a gateway's settings.

    Args:
        settings: all but what a version says itself.
        metrics: where replicas and caches are told of.
        tracing: each call of a Triton is a span of it.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._settings, self._span = settings, (tracing or NO_TRACING).step
        self.metrics = BackendMetrics()
        metrics.registry.register(self.metrics)
        metrics.replicas = self.metrics.live_replicas

    def open(self, version: Version, role: Role) -> Opened:
        """What ranks for a version; nothing is asked of its Tritons yet.

        Raises:
            ValueError: a replica is named twice, or the golden file cannot be read.
        """
        settings = self._settings
        golden = GoldenRequest() if version.golden is None else GoldenRequest.read(Path(version.golden))
        pool: ReplicaPool | None = None
        backend: Backend
        if len(version.triton) > 1 or is_followed(version.triton):
            backend = pool = self._pool(version, golden, role)
        else:
            backend = self._triton(version.model, PASS_REFUSALS_ON, version.triton[0])
        if settings.split_candidates > 0 or (settings.split_candidates == BY_REPLICAS and pool is not None):
            backend = SplitBackend(backend, settings.split_candidates, partial(size_of, pool))
        cache: CachedBackend | None = None
        if most_bytes := round(CACHED[role] * settings.cache_mb * 2**20):
            backend = cache = CachedBackend(backend, most_bytes, watch=partial(self.metrics.cache_event, role))
        return Opened(backend, golden, pool, cache)

    def _pool(self, version: Version, golden: GoldenRequest, role: Role) -> ReplicaPool:
        settings, reach = self._settings, partial(self._triton, version.model, NEVER_AGAIN)
        follows = is_followed(version.triton)
        return ReplicaPool(
            {} if follows else {name: reach(name) for name in names_of(version.triton)},
            golden,
            PoolSettings(probe_seconds=settings.probe_s, hedge_after_seconds=settings.hedge_after_s),
            partial(self.metrics.replica_event, role),
            (Addresses(version.triton), reach) if follows else None,
        )

    def _triton(self, model: str, retry: Retry, address: str) -> TritonBackend:
        settings = self._settings
        tls = settings.triton_credentials
        return TritonBackend(
            f"{'grpc' if tls is None else 'grpcs'}://{address}",
            model=model,
            timeout=settings.deadline_s,
            retry=retry,
            cancel_abandoned=settings.cancel_on_hang_up,
            span=self._span,
            tls=tls,
        )
