"""The routes of recommending through the whole application: bodies, errors, keys, metrics."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_stand_ins import StandIn
from recommend_stand_ins import StandInCatalogue, recommender_of
from tritonrank_client import ModelInfo, Overloaded, Unavailable
from tritonrank_gateway.app import create_app
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.readiness import FIRST_RANKER_SECONDS, Readiness
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_recommend.engine import EngineSettings, Recommender
from tritonrank_recommend.stores import open_store


@asynccontextmanager
async def serving(
    recommender: Recommender | None, backend: StandIn | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    settings.setdefault("recommend_deadline_s", 5.0)  # the machine may be busy
    app = create_app(GatewaySettings(**settings), backend or StandIn(), None, recommender)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client,
    ):
        client.app = app  # type: ignore[attr-defined]
        yield client


def recommender(**parts: Any) -> Recommender:
    return recommender_of(StandInCatalogue(), None, **parts)


async def test_it_starts_with_its_ranker_and_stays_ready_without() -> None:
    """A balancer sends nothing before a ranker was there, so that nothing that is to be ranked comes too early."""
    backend, now = StandIn(), 0.0
    backend.failure = lambda: Unavailable("it loads", retryable=True)
    async with serving(recommender(), backend) as http:
        gateway = http.app.state.gateway  # type: ignore[attr-defined]
        readiness, late = (Readiness(gateway, lambda: now) for _ in range(2))
        assert await readiness.now() == (False, False)
        backend.failure = None
        assert await readiness.now() == (True, True)
        backend.failure = lambda: Unavailable("gone", retryable=True)
        assert await readiness.now() == (True, False)
        assert await late.now() == (False, False)
        now = FIRST_RANKER_SECONDS
        assert await late.now() == (True, False)
    async with serving(None, backend) as http:
        alone = Readiness(http.app.state.gateway, lambda: now)  # type: ignore[attr-defined]
        now += FIRST_RANKER_SECONDS
        assert await alone.now() == (False, False)


async def test_a_recommendation_is_ranked_by_the_gateways_own_backend() -> None:
    backend = StandIn()
    async with serving(recommender(), backend) as http:
        body = {"user_id": "u", "query": "desk", "recent": ["i1", {"item_id": "i2", "type": "cart"}], "size": 3}
        answer = await http.post("/v1/recommend", json=body)
        told = answer.json()
        assert answer.status_code == 200, told
        assert [item["item_id"] for item in told["items"]] == ["i10", "i11", "i12"]  # the longest texts first
        assert told["artifacts"] == {"catalogue": "catalogue-1", "ranker": "a" * 16}
        assert "degraded" not in told
        assert answer.headers["x-artifact"] == "a" * 16
        (asked,) = backend.asked
        assert (asked.query, list(asked.history), asked.user) == ("desk", ["item 1", "item 2"], "u")
        assert 0 < (asked.deadline_s or 0) < 5
        second = (await http.post("/v1/recommend", json={"user_id": "u", "cursor": told["cursor"], "size": 3})).json()
        assert [item["item_id"] for item in second["items"]] == ["i13", "i14", "i15"]
        page = http.app.state.gateway.metrics.page().decode()  # type: ignore[attr-defined]
        assert 'recommend_step_seconds_count{step="rank"} 1.0' in page
        assert 'recommendations_total{cold="no",degraded="no"} 2.0' in page


async def test_an_overloaded_ranker_is_no_error_and_is_counted() -> None:
    backend = StandIn()
    backend.failure = lambda: Overloaded("full")
    async with serving(recommender(), backend) as http:
        backend.failure = None
        await http.post("/v1/rank", json={"items": ["a"]})
        backend.failure = lambda: Overloaded("full")
        answer = await http.post("/v1/recommend", json={"size": 2})
        assert answer.status_code == 200
        assert (answer.json()["degraded"], answer.json()["degraded_reasons"]) == (True, ["ranker: overloaded"])
        page = http.app.state.gateway.metrics.page().decode()  # type: ignore[attr-defined]
        assert 'degraded_total{reason="ranker: overloaded",route="/v1/recommend"} 1.0' in page


async def test_a_key_whose_candidates_are_used_up_is_told_so(tmp_path: Path) -> None:
    key = "a-key-of-sixteen-characters"
    digest = hashlib.sha256(key.encode()).hexdigest()
    (tmp_path / "keys.toml").write_text(f'[keys.shop]\nsha256 = "{digest}"\ncandidates_per_day = 70\n')
    async with serving(recommender(), keys_file=tmp_path / "keys.toml") as http:
        assert (await http.post("/v1/recommend", json={})).status_code == 401
        headers = {"X-API-Key": key}
        assert (await http.post("/v1/recommend", json={}, headers=headers)).status_code == 200
        assert (await http.post("/v1/recommend", json={}, headers=headers)).status_code == 429


async def test_a_page_that_waits_for_room_counts_once(tmp_path: Path) -> None:
    """For the key's day, for the metrics, and for the limit of characters."""
    backend, key = StandIn(), "a-key-of-sixteen-characters"
    (tmp_path / "keys.toml").write_text(f'[keys.shop]\nkey = "{key}"\ncandidates_per_day = 90\n')
    async with serving(recommender(), backend, keys_file=tmp_path / "keys.toml", max_characters=2_000) as http:
        headers = {"X-API-Key": key}
        assert "degraded" not in (await http.post("/v1/recommend", json={"candidates": 10}, headers=headers)).json()
        backend.asked.clear()
        backend.failure = lambda: Overloaded("full")
        waiting = asyncio.create_task(http.post("/v1/recommend", json={"deadline_ms": 4_000}, headers=headers))
        while len(backend.asked) < 5:
            await asyncio.sleep(0.01)
        backend.failure = None
        told = (await waiting).json()
        assert "degraded" not in told, told
        page = http.app.state.gateway.metrics.page().decode()  # type: ignore[attr-defined]
        assert sum(float(line.split()[-1]) for line in page.splitlines() if "_documents_total{" in line) == 70


async def test_the_ranker_is_told_as_much_of_the_history_as_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async def info() -> ModelInfo:
        return ModelInfo("rank", ("1",), "ensemble", (), (), {}, {"history_items": "3"})

    backend = StandIn()
    monkeypatch.setattr(backend, "info", info)
    async with serving(recommender(), backend) as http:
        body = {"recent": [f"i{number}" for number in range(12)]}
        for told in (8, 3):  # the first request is what makes the model known
            backend.asked.clear()
            await http.post("/v1/recommend", json=body)
            assert len(backend.asked[0].history) == told


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"size": 0}, 422, "size"),
        ({"colour": 1}, 422, "colour"),
        ({"filters": {"price": {"near": 3}}}, 422, "filters.price"),
        ({"recent": [{"item_id": "i1", "type": "stare"}]}, 422, "recent[0].type"),
        ({"cursor": "x"}, 422, "cursor"),
        ({"cursor": "0" * 32 + ".3"}, 410, "first page"),
    ],
)
async def test_a_wrong_body_is_named(body: dict[str, Any], status: int, named: str) -> None:
    async with serving(recommender(store=open_store("sqlite::memory:"))) as http:
        answer = await http.post("/v1/recommend", json=body)
        assert (answer.status_code, named in answer.json()["error"]["message"]) == (status, True), answer.text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/recommend", {}),
        ("GET", "/v1/similar/i1", None),
        ("PUT", "/v1/items/i1", {"fields": {"title": "x"}}),
        ("POST", "/v1/items/bulk", None),
    ],
)
async def test_without_a_catalogue_the_routes_say_how_to_get_one(method: str, path: str, body: Any) -> None:
    async with serving(None) as http:
        answer = await http.request(method, path, json=body)
        assert answer.status_code == 404
        assert "--catalogue" in answer.json()["error"]["message"]


async def test_items_are_changed_one_by_one_in_lists_and_in_bulk() -> None:
    made = recommender(store=open_store("sqlite::memory:"))
    items: Any = made.parts.catalogue.opened
    async with serving(made) as http:
        fields = {"title": "item 7", "brand": "Fern", "tags": ["a", "b"], "price": 3}
        answer = await http.put("/v1/items/a/b", json={"fields": fields})
        assert answer.json() == {"changed": 1, "removed": 0, "kept": True}
        assert items.items["a/b"] == fields
        body = {"items": [{"item_id": "x", "fields": fields}, {"item_id": "y", "fields": fields}]}
        assert (await http.put("/v1/items", json=body)).json()["changed"] == 2
        assert (await http.request("DELETE", "/v1/items", json={"item_ids": ["x", "nothing"]})).json()["removed"] == 2
        assert (await http.delete("/v1/items/a/b")).json()["removed"] == 1
        assert "a/b" not in items.items
        assert "x" not in items.items
        assert "y" in items.items
        lines = '{"item_id": "z1", "fields": {"title": "item 1"}}\n\n{"item_id": "y", "fields": null}\n'
        assert (await http.post("/v1/items/bulk", content=lines)).json() == {"changed": 1, "removed": 1, "kept": True}
        assert "z1" in items.items
        wrong = lines + '{"item_id": "z2"}\nnothing\n{"item_id": "", "fields": {"a": 1}}\n'
        answer = await http.post("/v1/items/bulk", content=wrong.replace("z1", "z3"))
        told = answer.json()["error"]["message"]
        assert answer.status_code == 422
        assert all(f"line {number}:" in told for number in (4, 5, 6))
        assert "z3" not in items.items
        assert (await http.put("/v1/items", json={"items": []})).status_code == 422
        assert (await http.put("/v1/items/q", json={"fields": {}})).status_code == 422
        for number in (2**63, -(2**63) - 1):  # no table has a column for it
            answer = await http.put("/v1/items/q", json={"fields": {"price": number}})
            assert answer.status_code == 422
        assert "q" not in items.items


async def test_similar_items_and_their_faults() -> None:
    async with serving(recommender()) as http:
        answer = await http.get("/v1/similar/i4", params={"size": 2, "filters": '{"price": {"gte": 8}}'})
        assert [item["item_id"] for item in answer.json()["items"]] == ["i8", "i12"]
        assert (await http.get("/v1/similar/nothing")).status_code == 404
        for wrong in ({"size": "0"}, {"size": "x"}, {"filters": "{"}, {"filters": '{"a": {}}'}, {"colour": "1"}):
            assert (await http.get("/v1/similar/i4", params=wrong)).status_code == 422, wrong


async def test_the_openapi_page_has_the_routes_with_examples_that_work() -> None:
    async with serving(recommender(store=open_store("sqlite::memory:"))) as http:
        page = (await http.get("/openapi.json")).json()
        for path, method in (("/v1/recommend", "post"), ("/v1/items", "put"), ("/v1/items", "delete")):
            content = page["paths"][path][method]["requestBody"]["content"]["application/json"]
            example = content["examples"]["recommend"]["value"]
            assert (await http.request(method, path, json=example)).status_code == 200
            assert content["schema"]["$ref"].rpartition("/")[2] in page["components"]["schemas"]
        assert "requestBody" not in page["paths"]["/v1/similar/{item_id}"]["get"]


async def test_an_item_is_explained_by_what_was_left_out() -> None:
    backend = StandIn()
    async with serving(recommender(), backend) as http:
        body = {"recent": ["i1"], "query": "desk", "item_ids": ["i12", "nothing"]}
        told = (await http.post("/v1/explain", json=body)).json()
        assert told["unknown"] == ["nothing"]
        (explained,) = told["items"]
        assert explained["item_id"] == "i12"
        assert explained["explanation"]["sentence"]
        assert backend.asked[0].history == ["item 1"]
        inside = (await http.post("/v1/recommend", json={"size": 2, "explain": True})).json()
        assert all(item["explanation"]["sentence"] for item in inside["items"])
        page = {"item_ids": ["i12"], "page": inside["page"]}
        assert (await http.post("/v1/explain", json=page)).status_code == 200
        assert (await http.post("/v1/explain", json=page | {"user_id": "stranger"})).status_code == 410
        assert (await http.post("/v1/explain", json={"item_ids": []})).status_code == 422


async def test_a_context_is_told_to_the_ranker_before_the_candidates_where_that_is_wanted() -> None:
    for is_wanted in (False, True):
        backend, catalogue = StandIn(), StandInCatalogue()
        catalogue.delay = 0.1
        made = recommender_of(catalogue, None, settings=EngineSettings(warm_context=is_wanted))
        async with serving(made, backend) as http:
            body = {"user_id": "u", "query": "desk", "recent": ["i1", "i2"], "size": 3}
            told = (await http.post("/v1/recommend", json=body)).json()
            assert "degraded" not in told
            *before, asked = backend.asked
            assert len(before) == is_wanted
            for request in before:
                context = request.query, request.history, request.user
                assert context == (asked.query, asked.history, asked.user)
                assert [item.strip() for item in request.items] == [""]
            # One that fails is no matter.
            rank = backend.rank

            async def fail(request: RankRequest, rank: Any = rank) -> Ranking:
                if len(request.items) == 1:
                    raise Overloaded("full")
                return await rank(request)

            backend.rank = fail  # type: ignore[method-assign]
            assert "degraded" not in (await http.post("/v1/recommend", json=body)).json()
