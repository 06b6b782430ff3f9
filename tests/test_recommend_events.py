"""Events and users over HTTP: what is taken, what is refused and where, and what is left of a user who was erased."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from gateway_stand_ins import StandIn
from recommend_stand_ins import StandInCatalogue, recommender_of
from test_events_log import logged, traces
from tritonrank_gateway.app import create_app
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_recommend.engine import Recommender
from tritonrank_recommend.log import layout
from tritonrank_recommend.log.event_log import EventLog
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import StoreError

SECRET = "user-4711-whom-nobody-may-find"
CLICK = {"event_id": "e1", "type": "click", "user_id": "ann", "item_id": "i1"}


@asynccontextmanager
async def serving(recommender: Recommender | None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(GatewaySettings(**settings), StandIn(), None, recommender)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client,
    ):
        client.app = app  # type: ignore[attr-defined]
        yield client


def keeping(folder: Path, *, log: bool = True) -> Recommender:
    store = open_store(f"sqlite:{folder / 'store.db'}")
    made = recommender_of(StandInCatalogue(), None, store=store)
    if log:
        made.parts.log = EventLog(folder / "log", store, every_seconds=0.05)
    return made


def said(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


async def test_a_batch_counts_once_however_often_it_is_sent(tmp_path: Path) -> None:
    batch = {"events": [CLICK | {"event_id": f"e{number}"} for number in range(3)]}
    async with serving(keeping(tmp_path)) as http:
        answers = [(await http.post("/v1/events", json=batch)).json() for _ in range(3)]
        assert answers == [{"accepted": 3, "duplicates": 0}] + [{"accepted": 0, "duplicates": 3}] * 2
        assert (await http.post("/v1/events", json=CLICK)).json() == {"accepted": 0, "duplicates": 1}
        user = (await http.get("/v1/users/ann")).json()
        assert [seen["item_id"] for seen in user["events"]] == ["i1"] * 3
        page = http.app.state.gateway.metrics.page().decode()  # type: ignore[attr-defined]
        assert 'tritonrank_gateway_events_total{known="no"} 3.0' in page
        assert "tritonrank_gateway_events_log_waiting_seconds" in page
    assert sorted(logged(tmp_path / "log")) == ["e0", "e1", "e2"]


async def test_what_is_absent_is_filled_in_and_the_future_is_now(tmp_path: Path) -> None:
    now = time.time()
    events = [
        {"type": "search", "user_id": "ann", "query": " lamp "},
        CLICK | {"timestamp": now + 86_400},
        CLICK | {"event_id": "e2", "timestamp": now + 60},
        CLICK | {"event_id": "e3", "timestamp": now - 86_400},
    ]
    async with serving(keeping(tmp_path)) as http:
        answer = (await http.post("/v1/events", json={"events": events})).json()
        assert answer == {"accepted": 4, "duplicates": 0, "taken_for_now": [1]}
    times = dict(zip(logged(tmp_path / "log"), logged(tmp_path / "log", "timestamp"), strict=True))
    assert now - 5 < float(times["e1"]) < now + 60
    assert (times["e2"], times["e3"]) == (now + 60, now - 86_400)
    assert "lamp" in logged(tmp_path / "log", "query")
    assert len(times) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"type": "stare"}, "events[37].type"),
        ({"user_id": ""}, "events[37].user_id"),
        ({"user_id": "x" * 257}, "events[37].user_id"),
        ({"item_id": "a\nb"}, "events[37].item_id"),
        ({"item_id": "ab\n"}, "events[37].item_id"),
        ({"item_id": None}, "events[37].item_id"),
        ({"colour": 1}, "events[37]: Object contains unknown field `colour`"),
        ({"type": "search", "item_id": None}, "events[37].query"),
        ({"type": "search", "query": "x"}, "events[37].item_id"),
        ({"type": "rating"}, "events[37].value"),
        ({"type": "rating", "value": 7}, "events[37].value"),
        ({"timestamp": 1_700_000_000_000}, "events[37].timestamp: expected unix seconds"),
        ({"timestamp": -1}, "events[37].timestamp"),
        ({"position": -1}, "events[37].position"),
        ({"received_at": 1.0}, "received_at"),
    ],
)
async def test_a_wrong_event_is_named_and_nothing_is_taken(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    events: list[dict[str, Any]] = [CLICK | {"event_id": f"e{number}"} for number in range(40)]
    events[37] |= change
    async with serving(keeping(tmp_path)) as http:
        answer = await http.post("/v1/events", json={"events": events})
        assert (answer.status_code, named in said(answer)) == (422, True), answer.text
        alone = await http.post("/v1/events", json=events[37])
        assert alone.status_code == 422
        assert "events[" not in said(alone)
        assert (await http.post("/v1/events", json={"events": [CLICK]})).json()["accepted"] == 1
    assert logged(tmp_path / "log") == ["e1"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 422), (b"{}", 422), (b'{"events": []}', 422), (b'{"events": {}}', 422),
        (json.dumps({"events": [CLICK] * 1_001}).encode(), 422), (b'{"events": [' + b"[" * 3_000, 400),
    ],
    ids=["empty", "torn", "list", "nothing", "no events", "object", "too many", "deep"],
)  # fmt: skip
async def test_what_is_no_batch_is_refused(tmp_path: Path, body: bytes, status: int) -> None:
    async with serving(keeping(tmp_path)) as http:
        answer = await http.post("/v1/events", content=body)
        assert answer.status_code == status, answer.text
        assert "error" in answer.json()


async def test_a_store_that_is_away_takes_nothing_and_says_when_to_come_back(tmp_path: Path) -> None:
    made = keeping(tmp_path)
    store: Any = made.parts.store
    async with serving(made) as http:

        async def fails(*_: Any, **__: Any) -> None:
            raise StoreError("away")

        adds, store.add_events = store.add_events, fails
        answer = await http.post("/v1/events", json=CLICK)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1

        async def hangs(*_: Any, **__: Any) -> None:
            await asyncio.sleep(60)

        store.add_events = hangs
        answer = await http.post("/v1/events", json=CLICK, headers={"X-Deadline-Ms": "100"})
        assert (answer.status_code, "same ids" in said(answer)) == (503, True)
        store.add_events = adds
        assert (await http.post("/v1/events", json=CLICK)).json() == {"accepted": 1, "duplicates": 0}


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/events"), ("GET", "/v1/users/ann"), ("DELETE", "/v1/users/ann")]
)
async def test_without_a_store_the_routes_say_how_to_get_one(method: str, path: str) -> None:
    for made in (None, recommender_of(StandInCatalogue(), None)):
        async with serving(made) as http:
            answer = await http.request(method, path, json=CLICK if method == "POST" else None)
            assert (answer.status_code, "--store sqlite:" in said(answer)) == (404, True)


async def test_keys_and_pages_of_other_origins_count_for_events_as_well(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('[keys.shop]\nkey = "a-key-of-sixteen-characters"\n')
    origin = {"Origin": "https://shop.example"}
    asked = origin | {"Access-Control-Request-Method": "DELETE"}
    async with serving(keeping(tmp_path), keys_file=tmp_path / "keys.toml", cors=("https://shop.example",)) as http:
        assert (await http.post("/v1/events", json=CLICK)).status_code == 401
        assert (await http.delete("/v1/users/ann")).status_code == 401
        headers = origin | {"X-API-Key": "a-key-of-sixteen-characters"}
        answer = await http.post("/v1/events", json=CLICK, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert (await http.options("/v1/users/ann", headers=asked)).status_code == 200


async def test_an_event_is_in_the_next_list_and_what_was_shown_in_the_log(tmp_path: Path) -> None:
    async with serving(keeping(tmp_path)) as http:
        asked = {"user_id": "ann", "query": "item", "size": 3}
        first = (await http.post("/v1/recommend", json=asked)).json()
        shown = [item["item_id"] for item in first["items"]]
        bought = CLICK | {"type": "purchase", "item_id": shown[0], "page": first["page"], "position": 0}
        await http.post("/v1/events", json=bought)
        second = (await http.post("/v1/recommend", json=asked)).json()
        assert shown[0] not in [item["item_id"] for item in second["items"]]
        more = {"user_id": "ann", "cursor": first["cursor"], "size": 2}
        further = [item["item_id"] for item in (await http.post("/v1/recommend", json=more)).json()["items"]]
    log = tmp_path / "log"
    items, positions = (logged(log, column, layout.IMPRESSIONS) for column in ("item_ids", "positions"))
    lists = dict(zip(map(str, items), positions, strict=True))
    assert len(lists) == 3
    assert list(lists[str(shown)]) == [0, 1, 2]
    assert list(lists[str(further)]) == [3, 4]
    assert set(logged(log, "query", layout.IMPRESSIONS)) == {"item"}
    assert logged(log, "page") == [first["page"]]


async def test_an_erased_user_is_nowhere(tmp_path: Path) -> None:
    made = keeping(tmp_path)
    async with serving(made) as http:
        asked = {"user_id": SECRET, "query": f"of {SECRET}", "size": 3}
        first = (await http.post("/v1/recommend", json=asked)).json()
        events = [
            CLICK | {"user_id": SECRET, "page": first["page"]},
            {"event_id": "e2", "type": "search", "user_id": SECRET, "query": f"of {SECRET}", "page": first["page"]},
            CLICK,
        ]
        await http.post("/v1/events", json={"events": events})
        assert made.parts.log is not None
        await made.parts.log.step()
        assert {file.parent.parts[-3] for file in traces(tmp_path / "log", SECRET)} == {"events", "impressions"}
        exported = (await http.get(f"/v1/users/{SECRET}", params={"log": "true"})).json()
        assert [row["kind"] for row in exported["log"]] == ["events", "events", "impressions"]
        assert json.dumps(exported).count(SECRET) >= 3
        await http.post("/v1/events", json=CLICK | {"event_id": "e3", "user_id": SECRET})  # waits for the log
        answer = (await http.delete(f"/v1/users/{SECRET}")).json()
        assert answer["log"] == "done"
        assert sum(answer["erased"].values()) > 0
        assert traces(tmp_path, SECRET) == []
        left = (await http.get(f"/v1/users/{SECRET}", params={"log": "true"})).json()
        assert not any(value for name, value in left.items() if name != "user_id"), left
        page = {"user_id": SECRET, "cursor": first["cursor"]}
        assert (await http.post("/v1/recommend", json=page)).status_code == 410
    assert traces(tmp_path, SECRET) == []
    assert logged(tmp_path / "log", "user_id") == ["ann"]


async def test_an_event_that_came_into_the_log_meanwhile_is_exported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is there before the store is told."""
    made = keeping(tmp_path)
    store, log = made.parts.store, made.parts.log
    assert store is not None
    assert log is not None
    log._every_seconds = 3_600.0
    async with serving(made) as http:
        await http.post("/v1/events", json=CLICK)
        with monkeypatch.context() as away:
            away.setattr(store, "outbox_done", Mock(side_effect=StoreError("killed")))
            with pytest.raises(StoreError):
                await log.step()
        await http.post("/v1/events", json=CLICK | {"event_id": "e2"})
        exported = (await http.get("/v1/users/ann", params={"log": "true"})).json()
        assert [event["event_id"] for event in exported["waiting"]] == ["e2"]
        assert [row["event_id"] for row in exported["log"]] == ["e1"]


async def test_ids_with_slashes_are_ids(tmp_path: Path) -> None:
    async with serving(keeping(tmp_path, log=False)) as http:
        await http.post("/v1/events", json=CLICK | {"user_id": "shop/ann b"})
        assert "i1" in json.dumps((await http.get("/v1/users/shop%2Fann%20b")).json())
        assert (await http.delete("/v1/users/shop%2Fann%20b")).json()["log"] == "none"
        assert "i1" not in json.dumps((await http.get("/v1/users/shop%2Fann%20b")).json())
        assert (await http.get("/v1/users/ann", params={"logs": "true"})).status_code == 422


def test_a_log_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--events-log.*--store"):
        GatewaySettings(events_log=tmp_path)
