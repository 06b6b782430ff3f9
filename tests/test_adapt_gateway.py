"""A whole gateway under more work than its ranker can do: what each level serves, and that nothing is refused first."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from gateway_stand_ins import StandIn
from recommend_stand_ins import StandInCatalogue, recommender_of
from tritonrank_client import NO_TEXT_SCORE, Overloaded
from tritonrank_gateway.adapt.pace import SmallerRanker
from tritonrank_gateway.app import create_app
from tritonrank_gateway.call import Gateway
from tritonrank_gateway.model import KnownModel
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_recommend.engine import EngineSettings

ITEMS = 60
IN_ORDER = {"X-Documents-In-Order": "true"}
DOCUMENTS = [f"{number} {'x' * (number % 7)}" for number in range(ITEMS)]


class Queue(StandIn):
    """A ranker of one worker, that refuses what would wait too long, as Triton does.

    Attributes:
        seconds_per_item: of its work.
        longest_wait: seconds.
    """

    def __init__(self, seconds_per_item: float = 0.0, longest_wait: float = 0.3) -> None:
        super().__init__()
        self.seconds_per_item, self.longest_wait = seconds_per_item, longest_wait
        self._worker, self._queued = asyncio.Lock(), 0.0

    async def rank(self, request: RankRequest) -> Ranking:
        seconds = self.seconds_per_item * len(request.items)
        if self._queued > self.longest_wait:
            raise Overloaded("Exceeds maximum queue size", retryable=True)
        self._queued += seconds
        try:
            async with self._worker:
                await asyncio.sleep(seconds)
                return await super().rank(request)
        finally:
            self._queued -= seconds


class Served:
    """A gateway in this process."""

    def __init__(self, http: httpx.AsyncClient, gateway: Gateway) -> None:
        self.http, self.gateway = http, gateway

    def force(self, number: int) -> None:
        controller = self.gateway.pace.controller
        controller.level = controller.levels[number]

    async def recommend(self, **changes: Any) -> tuple[dict[str, Any], int]:
        answer = await self.http.post("/v1/recommend", json={"query": "desk", "size": 60} | changes)
        assert answer.status_code == 200, answer.text
        return answer.json(), int(answer.headers.get("x-adapt-level", 0))


@asynccontextmanager
async def serving(backend: StandIn, smaller: StandIn | None = None, **settings: Any) -> AsyncIterator[Served]:
    own = {"adapt": "act", "candidates": ITEMS, "adapt_floor": 8, "recommend_deadline_s": 5.0, "access_log": False}
    own |= {"smaller_model": "small"} if smaller is not None else {}
    asked = GatewaySettings(**(own | settings))
    recommender = recommender_of(StandInCatalogue(ITEMS), None, settings=EngineSettings(candidates=asked.candidates))
    app = create_app(asked, backend, None, recommender)
    gateway: Gateway = app.state.gateway
    if smaller is not None:
        gateway.pace.smaller = SmallerRanker(smaller, KnownModel(smaller))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as http,
    ):
        yield Served(http, gateway)


async def test_each_level_ranks_the_first_of_retrieval_and_the_last_one_says_that_it_is_degraded() -> None:
    backend, smaller = StandIn(), StandIn("small")
    smaller.artifact = "b" * 16
    async with serving(backend, smaller) as served:
        ranked = []
        for level in served.gateway.pace.controller.levels:
            served.force(level.number)
            backend.asked.clear()
            smaller.asked.clear()
            told, number = await served.recommend()
            asked = [*backend.asked, *smaller.asked]
            ids = [item["item_id"] for item in told["items"]]
            assert number == level.number
            assert sorted(ids) == sorted(f"i{place}" for place in range(ITEMS))
            ranked.append((level.name, [len(one.items) for one in asked], told["artifacts"].get("ranker", "")))
            depth = level.ranked(ITEMS)
            assert ids[depth:] == [f"i{place}" for place in range(depth, ITEMS)]  # behind: as retrieval has them
            assert ("logit" in told["items"][-1]) == (depth == ITEMS)
            assert told.get("degraded_reasons", []) == (["ranker: spared"] if level.model == "none" else [])
        large, small = "a" * 16, "b" * 16
        assert ranked == [
            ("full", [60], large), ("candidates-45", [45], large), ("candidates-30", [30], large),
            ("candidates-15", [15], large), ("candidates-8", [8], large), ("smaller", [8], small),
            ("retrieval", [], ""),
        ]  # fmt: skip


async def test_documents_of_callers_are_all_ranked_unless_the_caller_says_that_they_come_in_order() -> None:
    backend = StandIn()
    body = {"query": "q", "documents": DOCUMENTS}
    async with serving(backend) as served:
        served.force(4)
        answer = await served.http.post("/v1/rerank", json=body)
        assert [len(one.items) for one in backend.asked] == [ITEMS]
        assert "x-unranked-documents" not in answer.headers
        answer = await served.http.post("/v1/rerank", json=body, headers=IN_ORDER)
        assert len(backend.asked[-1].items) == 8
        places = [one["index"] for one in answer.json()["results"]]
        assert sorted(places[:8]) == list(range(8))
        assert places[8:] == list(range(8, ITEMS))
        assert answer.headers["x-adapt-level"] == "4"
        assert answer.headers["x-unranked-documents"] == str(ITEMS - 8)
        served.force(5)
        told = (await served.http.post("/v1/rank", json={"query": "q", "items": DOCUMENTS}, headers=IN_ORDER)).json()
        assert len(backend.asked) == 2
        assert [place["logit"] for place in told["ranking"]] == [NO_TEXT_SCORE] * ITEMS
        assert {one["reason"] for one in told["unscored"]} == {"spared"}


async def test_of_equal_ids_and_of_the_best_k_as_many_are_told_as_always() -> None:
    async with serving(StandIn()) as served:
        served.force(4)
        ids = [f"p{place // 2}" for place in range(ITEMS)]
        body: dict[str, Any] = {"query": "q", "items": DOCUMENTS, "item_ids": ids}
        told = (await served.http.post("/v1/rank", json=body, headers=IN_ORDER)).json()["ranking"]
        # The stand-in leaves equal ids among those that it ranks; behind them each comes once.
        assert [place["item_id"] for place in told[8:]] == [f"p{number}" for number in range(4, 30)]
        told = (await served.http.post("/v1/rank", json=body | {"top_k": 9}, headers=IN_ORDER)).json()["ranking"]
        assert len(told) == 9


async def test_what_has_no_room_is_ranked_more_cheaply_before_it_is_refused() -> None:
    backend, smaller = StandIn(), StandIn("small")
    backend.failure = lambda: Overloaded("Exceeds maximum queue size", retryable=True)
    await backend_info(backend)
    body = {"query": "q", "documents": DOCUMENTS}
    async with serving(backend, smaller) as served:
        told, number = await served.recommend()
        assert [len(one.items) for one in backend.asked] == [60, 8]
        assert len(smaller.asked[0].items) == 8
        assert number == 5
        assert "degraded" not in told
        answer = await served.http.post("/v1/rerank", json=body)
        assert answer.status_code == 200
        assert len(smaller.asked[-1].items) == ITEMS
        smaller.failure = backend.failure
        assert (await served.http.post("/v1/rerank", json=body)).status_code == 429
        answer = await served.http.post("/v1/rerank", json=body, headers=IN_ORDER)
        assert answer.status_code == 200
        assert [one["index"] for one in answer.json()["results"]] == list(range(ITEMS))
        served.gateway.pace.look()
        assert served.gateway.pace.controller.level.number == 1
        assert served.gateway.pace.controller.reason == "refused"


@pytest.mark.parametrize("mode", ["off", "advise"])
async def test_unless_it_acts_all_is_ranked_in_full_or_refused(mode: str) -> None:
    backend = StandIn()
    async with serving(backend, adapt=mode) as served:
        served.force(5)
        _, number = await served.recommend()
        assert number == 0
        assert len(backend.asked[-1].items) == ITEMS
        backend.failure = lambda: Overloaded("Exceeds maximum queue size", retryable=True)
        answer = await served.http.post("/v1/rerank", json={"query": "q", "documents": DOCUMENTS}, headers=IN_ORDER)
        assert answer.status_code == 429
        assert len(backend.asked) == 2


@pytest.mark.slow
@pytest.mark.alone
async def test_a_spike_is_served_at_cheaper_levels_and_full_quality_is_back_after_it() -> None:
    """Ten full lists are done in a second; five come steadily, and 25 in the spike."""

    async def spike(mode: str) -> tuple[Counter[int], int, float, list[float]]:
        backend = Queue(seconds_per_item=0.1 / ITEMS)
        levels: Counter[int] = Counter()
        degraded, seconds = 0, []

        async def ask(served: Served) -> None:
            nonlocal degraded
            began = time.monotonic()
            told, number = await served.recommend(size=5, deadline_ms=1_000)
            levels[number] += 1
            degraded += "degraded" in told
            seconds.append(time.monotonic() - began)

        async with serving(backend, adapt=mode, adapt_queue_s=0.1) as served:
            tasks = []
            for gap, count in ((0.2, 10), (0.04, 125), (0.2, 1)):
                for _ in range(count):
                    tasks.append(asyncio.create_task(ask(served)))
                    await asyncio.sleep(gap)
            await asyncio.gather(*tasks)
            over = time.monotonic()
            while served.gateway.pace.controller.level.number and time.monotonic() - over < 15:
                await ask(served)
                await asyncio.sleep(0.15)
            return levels, degraded, time.monotonic() - over, seconds

    (levels, degraded, recovered, seconds), (_, without, _, _) = await asyncio.gather(spike("act"), spike("advise"))
    assert levels[0]
    assert sum(levels[number] for number in (2, 3, 4)) > 50, levels
    assert degraded <= 2, (degraded, levels)
    assert without > 20, without
    assert recovered < 10
    assert sorted(seconds)[len(seconds) // 2] < 0.5


async def backend_info(backend: StandIn) -> None:
    """The stand-in fails to say what it is, too, while it fails; what is asked here is ranking."""
    known = await StandIn.info(StandIn(backend.name))

    async def info() -> Any:
        return known

    backend.info = info
