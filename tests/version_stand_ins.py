"""Versions over stand-ins, for tests: a version's model is the name of the stand-in that ranks for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from gateway_stand_ins import StandIn
from tritonrank_gateway.app import create_app, create_metrics_app
from tritonrank_gateway.golden import GoldenRequest
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.result_cache import CachedBackend
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.versions.arm import Arm
from tritonrank_gateway.versions.backend_metrics import BackendMetrics, Opened
from tritonrank_gateway.versions.changing import Changing
from tritonrank_gateway.versions.versions import Versions
from tritonrank_gateway.versions.wire import Role, Version
from tritonrank_recommend.engine import Recommender

ADMIN = {"Authorization": "Bearer an-admin-key-for-tests"}


class Turned(StandIn):
    """Ranks shorter texts higher: the other way round."""

    async def rank(self, request: RankRequest) -> Ranking:
        ranking = await super().rank(request)
        return replace(ranking, indices=ranking.indices[::-1], logits=[-logit for logit in ranking.logits[::-1]])


class StandInOpener:
    """Opens stand-ins by name, and remembers what it opened."""

    def __init__(self, *backends: StandIn, has_cache: bool = False) -> None:
        self.metrics = BackendMetrics()
        self.backends = {backend.name: backend for backend in backends}
        self._has_cache = has_cache

    def open(self, version: Version, role: Role) -> Opened:
        if version.model not in self.backends:
            raise ValueError(f"model: {version.model} is not there")
        golden = GoldenRequest() if version.golden is None else GoldenRequest.read(Path(version.golden))
        backend = self.backends[version.model]
        if self._has_cache and role != "shadow":
            cache = CachedBackend(backend, 2**20)
            return Opened(cache, golden, cache=cache)
        return Opened(backend, golden)


@dataclass
class Standing:
    """Versions over stand-ins, of which ``live`` is live."""

    live: StandIn
    other: StandIn
    versions: Versions
    changing: Changing

    async def put(self, role: Role, share: float = 1.0, **said: Any) -> None:
        """The other one takes a role."""
        await self.changing.put(role, version(self.other.name, share=share, **said))


def version(model: str, **said: Any) -> Version:
    """A version that a stand-in ranks for."""
    return Version(**{"name": "next", "triton": ["127.0.0.1:1"], "model": model} | said)


def standing(other: StandIn | None = None, *, has_cache: bool = False) -> Standing:
    """Two stand-ins; the second has the artifact ``bbb...``."""
    live, other = StandIn("live"), other or StandIn("other")
    other.name, other.artifact = "other", "b" * 16
    opener = StandInOpener(live, other, has_cache=has_cache)
    first = version("live", name="first")
    versions = Versions(Arm(first, opener.open(first, "live")), opener)
    return Standing(live, other, versions, Changing(versions, opener, ready_seconds=0.3))


@asynccontextmanager
async def served(
    stand: Standing, recommender: Recommender | None = None, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """A client for callers and one for the private port, in the same event loop."""
    settings = {"recommend_deadline_s": 5.0, "access_log": False} | settings
    app = create_app(GatewaySettings(**settings), stand.versions, None, recommender)
    side = create_metrics_app(app.state.gateway)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http,
        httpx.AsyncClient(transport=httpx.ASGITransport(side), base_url="http://gateway", headers=ADMIN) as own,
    ):
        yield http, own
