"""GET and PUT /adapt: what holds, what may be changed, and what is refused."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from gateway_stand_ins import StandIn
from recommend_stand_ins import StandInCatalogue, recommender_of
from tritonrank_gateway.app import create_app, create_metrics_app
from tritonrank_gateway.settings import GatewaySettings, read_settings
from tritonrank_recommend.engine import EngineSettings

ADMIN = {"Authorization": "Bearer an-admin-key-for-tests"}


@pytest.fixture(autouse=True)
def admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONRANK_ADMIN_KEY", ADMIN["Authorization"].removeprefix("Bearer "))


@asynccontextmanager
async def serving(backend: StandIn, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    recommender = recommender_of(StandInCatalogue(60), None, settings=EngineSettings(candidates=40))
    asked = GatewaySettings(candidates=40, adapt_floor=10, recommend_deadline_s=5.0, access_log=False, **settings)
    app = create_app(asked, backend, None, recommender)
    side = create_metrics_app(app.state.gateway)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http,
        httpx.AsyncClient(transport=httpx.ASGITransport(side), base_url="http://gateway", headers=ADMIN) as own,
    ):
        yield http, own


async def test_what_may_be_changed_holds_at_once_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    backend = StandIn()
    async with serving(backend) as (http, own):
        before = (await own.get("/adapt")).json()
        assert before["settings"] == {
            "mode": "off", "candidates": 40, "floor": 10, "queue_s": 0.25, "max_queued_s": 10.0, "max_in_flight": 256,
        }  # fmt: skip
        assert [level["candidates"] for level in before["levels"]] == [40, 30, 20, 10, 0]
        with caplog.at_level(logging.WARNING, "tritonrank_gateway.adapt"):
            answer = await own.put("/adapt", json={"mode": "act", "candidates": 16, "floor": 8, "max_in_flight": 3})
        after = answer.json()
        assert answer.status_code == 200
        assert after["settings"] == before["settings"] | {
            "mode": "act", "candidates": 16, "floor": 8, "max_in_flight": 3,
        }  # fmt: skip
        assert [level["candidates"] for level in after["levels"]] == [16, 12, 8, 0]
        assert sum("after" in line for line in caplog.messages) == 4
        await http.post("/v1/recommend", json={"query": "desk"})
        assert len(backend.asked[-1].items) == 16
        await asyncio.sleep(0.6)  # it looks from here on
        assert (await own.get("/adapt")).json()["arrivals_per_second"] > 0


async def test_more_levels_or_fewer_while_requests_come() -> None:
    async with serving(StandIn(), adapt="act") as (http, own):
        for candidates, floor, levels in ((8, 8, 2), (60, 2, 6), (40, 10, 5)):
            asked = [asyncio.create_task(http.post("/v1/recommend", json={"query": "desk"})) for _ in range(4)]
            told = (await own.put("/adapt", json={"candidates": candidates, "floor": floor})).json()
            assert len(told["levels"]) == levels
            assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
            await asyncio.sleep(0.3)  # it has looked once
            assert (await http.post("/v1/recommend", json={"query": "desk"})).status_code == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"mode": "on"}, "mode"),
        ({"candidates": 0}, "candidates"),
        ({"candidates": 5}, "floor"),
        ({"floor": 1_001}, "floor"),
        ({"queue_s": 0}, "queue_s"),
        ({"max_in_flight": "many"}, "max_in_flight"),
        ({"colour": "red"}, "colour"),
        ({"text": "x" * 5_000}, "4096"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
async def test_what_is_out_of_bounds_is_named_and_nothing_is_changed(body: dict[str, Any], named: str) -> None:
    async with serving(StandIn()) as (_, own):
        before = (await own.get("/adapt")).json()["settings"]
        answer = await own.put("/adapt", json={"max_queued_s": 3.0} | body)
        assert answer.status_code in (413, 422)
        assert named in answer.json()["error"]
        assert (await own.get("/adapt")).json()["settings"] == before


async def test_callers_cannot_reach_it() -> None:
    async with serving(StandIn()) as (http, _):
        assert (await http.get("/adapt")).status_code == 404


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--adapt", "on"], "--adapt"),
        (["--adapt-floor", "0"], "--adapt-floor"),
        (["--adapt-queue-s", "0"], "--adapt-queue-s"),
        (["--smaller-model", "small@nowhere"], "--smaller-model"),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(arguments, {})
    assert named in capsys.readouterr().err


async def test_the_smaller_ranker_is_one_of_its_own_with_or_without_an_address() -> None:
    from tritonrank_gateway.adapt.compose import smaller_of

    assert smaller_of(GatewaySettings()) is None
    for name in ("small", "small@127.0.0.1:9001"):
        found = smaller_of(GatewaySettings(triton=("127.0.0.1:8001", "127.0.0.2:8001"), smaller_model=name))
        assert found is not None
        await found.backend.close()
