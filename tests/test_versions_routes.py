"""/versions through the whole application: its key, its errors, and what goes with a version: blend, pages, clicks."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from recommend_stand_ins import StandInCatalogue, recommender_of
from tiny_blend import tiny_blend
from tritonrank_client import Unavailable
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.stores import open_store
from version_stand_ins import ADMIN, Standing, Turned, served, standing

OTHER: dict[str, Any] = {"name": "next", "triton": ["127.0.0.1:1"], "model": "other", "share": 1.0}
BODY = {"query": "desk", "items": ["oak", "oak desk", "lamp for a desk"], "user": "u1"}


@pytest.fixture(autouse=True)
def admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONRANK_ADMIN_KEY", ADMIN["Authorization"].removeprefix("Bearer "))


@asynccontextmanager
async def shop(stand: Standing, folder: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, ...]]:
    """A gateway with a catalogue and a store, whose own blend is the ranker's order."""
    store = open_store(f"sqlite:{folder / 'store.db'}")
    recommender = recommender_of(StandInCatalogue(30), None, store=store)
    async with served(stand, recommender, blend=tiny_blend(folder / "blend"), **settings) as clients:
        yield clients


async def test_a_version_comes_answers_and_goes() -> None:
    stand = standing()
    async with served(stand) as (http, own):
        told = (await own.get("/versions")).json()
        assert (told["generation"], told["live"]["name"], told["shadow"], told["canary"]) == (1, "first", None, None)
        answer = await own.put("/versions/canary", json=OTHER)
        assert (answer.status_code, answer.json()["canary"]["share"], answer.json()["generation"]) == (200, 1.0, 2)
        for _ in range(3):
            ranked = await http.post("/v1/rank", json=BODY)
            assert (ranked.status_code, ranked.headers["x-artifact"]) == (200, "b" * 16)
        compared = (await own.get("/versions/comparison")).json()
        canary = compared["canary"]
        assert (canary["version"]["rankings"], canary["version"]["calls"], canary["live"]["rankings"]) == (3, 3, 0)
        assert canary["artifact"] == "b" * 16
        assert len(canary["version"]["seconds"]) == len(compared["seconds"]) + 1
        stand.other.failure = lambda: Unavailable("gone")
        assert (await http.post("/v1/rank", json=BODY)).headers["x-artifact"] == "a" * 16
        answer = await own.delete("/versions/canary")
        assert (answer.status_code, answer.json()["canary"]) == (200, None)
        assert stand.other.is_closed
        assert (await http.post("/v1/rank", json=BODY)).headers["x-artifact"] == "a" * 16


async def test_callers_can_use_neither_the_routes_nor_another_key() -> None:
    async with served(standing()) as (http, own):
        assert (await http.get("/versions")).status_code == 404
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer not-this-one-but-as-long"}):
            for method, path in (
                ("GET", "/versions"), ("GET", "/versions/comparison"), ("PUT", "/versions/live"),
                ("DELETE", "/versions/canary"),
            ):  # fmt: skip
                answer = await own.request(method, path, headers=headers)
                assert answer.status_code in (401, 403), (method, path)
                assert "127.0.0.1" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("PUT", "/versions/canary", OTHER | {"share": 1.5}, 422, "share"),
        ("PUT", "/versions/canary", OTHER | {"name": "Two Words"}, 422, "name"),
        ("PUT", "/versions/canary", OTHER | {"triton": []}, 422, "triton"),
        ("PUT", "/versions/canary", OTHER | {"shares": 1}, 422, "shares"),
        ("PUT", "/versions/canary", OTHER | {"model": "../x"}, 422, "model"),
        ("PUT", "/versions/canary", OTHER | {"model": "nowhere"}, 409, "not there"),
        ("PUT", "/versions/canary", OTHER | {"golden": "/no/such/golden.json"}, 409, "golden.json"),
        ("PUT", "/versions/green", OTHER, 404, "canary"),
        ("DELETE", "/versions/live", None, 404, "put another version live"),
        ("PUT", "/versions/live", None, 422, "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_what_is_wrong_is_named_and_changes_nothing(
    method: str, path: str, body: Any, status: int, said: str
) -> None:
    async with served(standing()) as (_, own):
        answer = await own.request(method, path, content=json.dumps(body) if body is not None else b"{")
        assert answer.status_code == status, answer.text
        assert said in answer.json()["error"]
        assert (await own.get("/versions")).json()["generation"] == 1


async def test_a_version_whose_golden_answers_are_others_does_not_go_live(tmp_path: Path) -> None:
    stand = standing(Turned())
    case = {"query": "desk", "history": [], "items": ["oak", "oak desk"], "scores": [0.03, 0.08]}
    golden = {"artifact": "b" * 16, "tolerance": 0.01, "cases": [case]}
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    async with served(stand) as (http, own):
        answer = await own.put("/versions/live", json=OTHER | {"golden": str(tmp_path / "golden.json")})
        assert (answer.status_code, "golden" in answer.json()["error"]) == (409, True)
        assert (await http.post("/v1/rank", json=BODY)).headers["x-artifact"] == "a" * 16
        stand.other.artifact = "c" * 16
        (tmp_path / "golden.json").write_text(json.dumps(golden | {"cases": [case | {"scores": [-0.03, -0.08]}]}))
        answer = await own.put("/versions/live", json=OTHER | {"golden": str(tmp_path / "golden.json")})
        assert "c" * 16 in answer.json()["error"], "right by chance, and of another artifact"
        stand.other.artifact = "b" * 16
        answer = await own.put("/versions/live", json=OTHER | {"golden": str(tmp_path / "golden.json")})
        assert answer.status_code == 200, answer.text
        assert (await http.post("/v1/rank", json=BODY)).headers["x-artifact"] == "b" * 16


async def test_a_canary_brings_its_blend_and_old_pages_stay_as_they_were(tmp_path: Path) -> None:
    stand = standing()
    turned = str(tiny_blend(tmp_path / "turned", weight=-1.0))
    async with shop(stand, tmp_path) as (http, own):
        asked = {"user_id": "u1", "query": "desk", "size": 5}
        first = (await http.post("/v1/recommend", json=asked)).json()
        whole = [
            one["item_id"] for one in (await http.post("/v1/recommend", json=asked | {"size": 30})).json()["items"]
        ]
        assert [one["item_id"] for one in first["items"]] == whole[:5]
        answer = await own.put("/versions/canary", json=OTHER | {"blend": turned})
        assert answer.status_code == 200, answer.text
        second = (await http.post("/v1/recommend", json=asked)).json()
        assert second["artifacts"]["ranker"] == "b" * 16
        assert second["artifacts"]["blend"] != first["artifacts"].get("blend")
        logits = [one["logit"] for one in second["items"]]
        assert logits == sorted(logits), "the turned blend shows the lowest first"
        stand.other.failure = lambda: Unavailable("gone")
        fallen = (await http.post("/v1/recommend", json=asked)).json()
        assert [one["item_id"] for one in fallen["items"]] == whole[:5], "live answers, with its blend"
        stand.other.failure = None
        for role in ("canary", "live"):
            if role == "live":
                assert (await own.put("/versions/live", json=OTHER | {"blend": turned})).status_code == 200
            more = (await http.post("/v1/recommend", json=asked | {"cursor": first["cursor"]})).json()
            assert [one["item_id"] for one in more["items"]] == whole[5:10]
            assert more["artifacts"]["ranker"] == "a" * 16
        last = (await http.post("/v1/recommend", json=asked | {"user_id": "u2"})).json()
        assert last["artifacts"] == second["artifacts"]
        answer = await own.put("/versions/shadow", json=OTHER | {"blend": str(tmp_path / "nowhere")})
        assert (answer.status_code, "nowhere" in answer.json()["error"]) == (409, True)


@pytest.mark.parametrize(("weight", "is_alike"), [(1.0, True), (-1.0, False)], ids=["same", "turned"])
async def test_a_blend_that_went_wrong_shows_in_the_shadow(tmp_path: Path, weight: float, is_alike: bool) -> None:
    stand = standing()
    async with shop(stand, tmp_path) as (http, own):
        blend = str(tiny_blend(tmp_path / "other", weight=weight))
        assert (await own.put("/versions/shadow", json=OTHER | {"blend": blend})).status_code == 200
        for number in range(3):
            answer = (await http.post("/v1/recommend", json={"user_id": f"u{number}", "query": "desk"})).json()
            assert answer["artifacts"]["ranker"] == "a" * 16
        async with asyncio.timeout(10):
            while (pairs := (await own.get("/versions/comparison")).json()["shadow"]["pairs"])["list_count"] < 3:
                await asyncio.sleep(0.01)
        assert pairs["rbo"] == pytest.approx(3), "the rankers agree"
        assert (pairs["list_rbo"] == pytest.approx(3)) == (pairs["list_top_ten"] == pytest.approx(3)) == is_alike
        assert pairs["list_top_ten_count"] == 3


@pytest.mark.parametrize("has_key", [False, True], ids=["ids", "pseudonyms"])
async def test_impressions_and_clicks_are_counted_by_the_users_side(tmp_path: Path, has_key: bool) -> None:
    stand = standing()
    async with shop(stand, tmp_path) as (http, own):
        privacy = Privacy(b"a-key-of-pseudonyms" if has_key else None)
        http._transport.app.state.gateway.recommender.parts.privacy = privacy  # type: ignore[attr-defined]
        await own.put("/versions/canary", json=OTHER | {"share": 0.5})
        users = [f"user-{number}" for number in range(20)]
        for user in users:
            page = (await http.post("/v1/recommend", json={"user_id": user, "query": "desk", "size": 3})).json()
            event = {"type": "click", "user_id": user, "item_id": page["items"][1]["item_id"], "position": 1}
            for _ in range(2):
                assert (await http.post("/v1/events", json=event | {"page": page["page"]})).status_code == 200
        canary = (await own.get("/versions/comparison")).json()["canary"]
        mine = sum(stand.versions.side_of(f"user:{privacy.user(user)}") == "canary" for user in users)
        assert 0 < mine < 20
        for side, count in (("version", mine), ("live", 20 - mine)):
            assert canary[side]["impressions"] == {"0": count, "1": count, "2": count}
            assert canary[side]["clicks"] == {"1": count}
            assert canary[side]["click_sums"][5] == count
            assert canary[side]["calls"] == canary[side]["rankings"] == count


async def test_a_shadow_is_dropped_while_lists_are_ranked_more_cheaply(tmp_path: Path) -> None:
    stand = standing()
    async with shop(stand, tmp_path, adapt="act") as (http, own):
        await own.put("/versions/shadow", json=OTHER)
        gateway = http._transport.app.state.gateway  # type: ignore[attr-defined]
        controller = gateway.pace.controller
        controller.level = controller.levels[2]
        assert (await http.post("/v1/rank", json=BODY)).status_code == 200
        shadow = (await own.get("/versions/comparison")).json()["shadow"]
        assert shadow["dropped"] == {"busy": 1}


async def test_what_was_measured_of_a_build_goes_with_it(tmp_path: Path) -> None:
    stand = standing()
    async with shop(stand, tmp_path) as (_, own):
        before = [level["quality"] for level in (await own.get("/adapt")).json()["levels"]]
        worse = str(tiny_blend(tmp_path / "worse", quality=0.5))
        assert (await own.put("/versions/live", json=OTHER | {"blend": worse})).status_code == 200
        after = [level["quality"] for level in (await own.get("/adapt")).json()["levels"]]
        assert after != before


async def test_metrics_tell_what_serves_and_how_it_compares() -> None:
    stand = standing()
    async with served(stand) as (http, own):
        await own.put("/versions/canary", json=OTHER | {"share": 0.5})
        await own.put("/versions/shadow", json=OTHER | {"share": 1.0, "name": "tried"})
        for number in range(12):
            await http.post("/v1/rank", json=BODY | {"user": f"user-{number}"})
            async with asyncio.timeout(10):
                while stand.versions._shadowing._running:
                    await asyncio.sleep(0.001)
        page = (await own.get("/metrics", headers={"accept": "application/openmetrics-text"})).text
        families = {family.name: family for family in text_string_to_metric_families(page)}
        info = {
            sample.labels["version"]: sample.labels["name"] for sample in families["tritonrank_version_info"].samples
        }
        assert info == {"live": "first", "canary": "next", "shadow": "tried"}
        given = {
            (sample.labels["beside"], sample.labels["version"]): sample.value
            for sample in families["tritonrank_version_rankings"].samples
        }
        assert given["canary", "canary"] + given["canary", "live"] == 12
        assert given["shadow", "shadow"] == given["canary", "live"]
        (overlap,) = families["tritonrank_version_overlap"].samples
        assert overlap.value == pytest.approx(1)


async def test_explanations_are_neither_counted_nor_repeated(tmp_path: Path) -> None:
    stand = standing()
    async with shop(stand, tmp_path) as (http, own):
        await own.put("/versions/shadow", json=OTHER)
        asked = len(stand.other.asked)
        await http.post("/v1/explain", json={"user_id": "u", "query": "oak desk", "item_ids": ["i1"]})
        await own.put("/versions/canary", json=OTHER | {"share": 1.0})
        await http.post("/v1/explain", json={"user_id": "u", "query": "oak desk", "item_ids": ["i1"]})
        compared = (await own.get("/versions/comparison")).json()
        assert compared["shadow"]["version"]["rankings"] == compared["canary"]["version"]["rankings"] == 0
        stand.other.failure = lambda: Unavailable("gone")
        await http.post("/v1/explain", json={"user_id": "u", "query": "oak desk", "item_ids": ["i1"]})
        assert (await own.get("/versions/comparison")).json()["canary"]["version"]["failed"] == 0
        assert len(stand.other.asked) > asked + 1, "who gets the canary's lists gets its reasons"
