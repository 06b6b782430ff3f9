"""Pseudonyms and private fields: what is kept of users, searched for in everything that a gateway writes."""

import asyncio
import gc
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from gateway_stand_ins import StandIn
from gateways import running_gateway
from misbehaving_server import MisbehavingServer
from recommend_stand_ins import StandInCatalogue, recommender_of
from tritonrank_gateway.app import create_app
from tritonrank_gateway.result_cache import CachedBackend
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_recommend.events import Event
from tritonrank_recommend.log.event_log import EventLog
from tritonrank_recommend.privacy import FIELDS_VARIABLE, KEY_VARIABLE, Privacy, read_privacy
from tritonrank_recommend.stores import open_store

USER, SECRET_QUERY, KEY = "ann.planted@shop.example", "planted-illness-words", "a-pseudonym-key-for-tests"
PRIVATE = {KEY_VARIABLE: KEY, FIELDS_VARIABLE: "query, supplier_phone"}
PHONE = "555-planted-number"


@asynccontextmanager
async def serving(folder: Path, environment: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    store = open_store(f"sqlite:{folder / 'store.db'}")
    made = recommender_of(StandInCatalogue(40), None, store=store)
    made.parts.privacy = read_privacy(environment)
    made.parts.log = EventLog(folder / "log", store, every_seconds=0.05)
    app = create_app(GatewaySettings(access_log=False), StandIn(), None, made)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http,
    ):
        yield http


async def visit(http: httpx.AsyncClient) -> dict[str, Any]:
    """A user looks for something, pages on, and buys; the answer to what is kept then."""
    first = (await http.post("/v1/recommend", json={"user_id": USER, "query": SECRET_QUERY, "size": 3})).json()
    more = {"user_id": USER, "cursor": first["cursor"], "size": 2}
    assert (await http.post("/v1/recommend", json=more)).status_code == 200
    bought = {"type": "purchase", "item_id": first["items"][0]["item_id"], "page": first["page"], "position": 0}
    searched = {"type": "search", "query": SECRET_QUERY, "event_id": f"{USER}-1"}
    events = [one | {"user_id": USER} for one in (bought, searched)]
    assert (await http.post("/v1/events", json={"events": events})).json()["accepted"] == 2
    assert (await http.post("/v1/events", json={"events": events[1:]})).json()["duplicates"] == 1
    item = {"item_id": "item-new", "fields": {"title": "a lamp", "supplier_phone": PHONE}}
    assert (await http.put("/v1/items", json={"items": [item]})).status_code == 200
    kept: dict[str, Any] = (await http.get(f"/v1/users/{USER}", params={"log": "true"})).json()
    return kept


def written(folder: Path) -> str:
    """Everything below a folder: the bytes of all files, and the rows of those that are compressed."""
    pieces = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            pieces.append(f"{path} {path.read_bytes().decode('latin-1')}")
            if path.suffix == ".parquet":
                pieces.append(str(pq.read_table(path).to_pylist()))
    return "\n".join(pieces)


async def test_what_is_kept_under_a_key_tells_nobody_who_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path, PRIVATE) as http:
        kept = await visit(http)
        assert len(kept["events"]) >= 1
        assert SECRET_QUERY not in json.dumps(kept)
    everything = written(tmp_path)
    assert Privacy(KEY.encode()).user(USER) in everything
    for planted in (USER, SECRET_QUERY, PHONE, KEY):
        assert planted not in everything, planted
    # The same without wishes: what was searched for would have been found.
    (tmp_path / "plain").mkdir()
    async with serving(tmp_path / "plain", {}) as http:
        await visit(http)
    everything = written(tmp_path / "plain")
    assert all(planted in everything for planted in (USER, SECRET_QUERY, PHONE))


@pytest.mark.parametrize("environment", [{}, PRIVATE], ids=["by id", "by pseudonym"])
async def test_an_erased_user_is_in_no_file(tmp_path: Path, environment: dict[str, str]) -> None:
    async with serving(tmp_path, environment) as http:
        await visit(http)
        erased = (await http.delete(f"/v1/users/{USER}")).json()
        assert sum(erased["erased"].values()) >= 2
        after = (await http.get(f"/v1/users/{USER}", params={"log": "true"})).json()
        assert not after["events"]
        assert not after["log"]
    rows = [row for path in (tmp_path / "log").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    name = read_privacy(environment).user(USER)
    assert not [row for row in rows if name in str(row)]
    # SQLite forgets what it deleted only once pages are written anew: nothing may be left in the file either.
    assert name not in (tmp_path / "store.db").read_bytes().decode("latin-1")


async def test_erasing_reaches_what_was_kept_before_there_was_a_key(tmp_path: Path) -> None:
    async with serving(tmp_path, {}) as http:
        await visit(http)
    async with serving(tmp_path, PRIVATE) as http:
        assert sum((await http.delete(f"/v1/users/{USER}")).json()["erased"].values()) >= 2
    async with serving(tmp_path, {}) as http:
        assert not (await http.get(f"/v1/users/{USER}")).json()["events"]


def test_a_pseudonym_is_stable_keyed_and_of_its_kind() -> None:
    one, other = Privacy(b"k" * 16), Privacy(b"l" * 16)
    assert one.user("ann") == one.user("ann") != one.user("bob")
    assert one.user("ann") != other.user("ann")
    assert one.user("") == ""
    event = Event(event_id="ann", user_id="ann", type="click", timestamp=1.0, item_id="p1", query="lamp")
    kept = one.event(event)
    assert len({kept.user_id, kept.event_id, "ann"}) == 3
    assert (kept.item_id, kept.query) == ("p1", "lamp")
    assert Privacy().event(event) is event


@pytest.mark.parametrize(
    ("environment", "named"),
    [({KEY_VARIABLE: "short"}, KEY_VARIABLE), ({FIELDS_VARIABLE: "query,user_id"}, "user_id")],
    ids=["short key", "a field that is needed"],
)
def test_wishes_that_cannot_be_kept_are_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        read_privacy(environment)
    assert "short" not in str(error.value)


def test_the_environment_reaches_the_gateway(tmp_path: Path) -> None:
    triton = MisbehavingServer()
    try:
        flags = ("--store", f"sqlite:{tmp_path / 'store.db'}")
        with running_gateway(triton.urls["grpc"], tmp_path / "run", *flags, environment=PRIVATE) as gateway:
            event = {"type": "click", "user_id": USER, "item_id": "p1", "query": SECRET_QUERY}
            assert httpx.post(f"{gateway.url}/v1/events", json=event).status_code == 200
            assert httpx.get(f"{gateway.url}/v1/users/{USER}").json()["events"]
    finally:
        triton.close()
    everything = written(tmp_path)
    assert Privacy(KEY.encode()).user(USER) in everything
    assert USER not in everything
    assert SECRET_QUERY not in everything
    assert KEY_VARIABLE not in os.environ


def holds(root: object, text: str) -> list[str]:
    """How a text can be reached from an object of this process: the types on the way, one for each place."""
    # The loop leads to requests that have just ended, and to the test itself.
    skipped = (type, ModuleType, FunctionType, CodeType, FrameType, asyncio.AbstractEventLoop, asyncio.Future)
    seen, found, waiting = {id(root)}, [], [(root, type(root).__name__)]
    while waiting:
        one, way = waiting.pop()
        for inner in gc.get_referents(one):
            if isinstance(inner, str | bytes | bytearray):
                if text in (inner if isinstance(inner, str) else bytes(inner).decode("latin-1")):
                    found.append(way)
            elif id(inner) not in seen and not isinstance(inner, skipped):
                seen.add(id(inner))
                waiting.append((inner, f"{way} > {type(inner).__name__}"[-300:]))
    return found


@pytest.mark.parametrize("environment", [{}, PRIVATE], ids=["by id", "by pseudonym"])
async def test_an_erased_user_is_not_in_memory_either(tmp_path: Path, environment: dict[str, str]) -> None:
    """In pages of lists, the result cache, versions, figures of quality: whatever can be reached from the gateway."""
    store = open_store(f"sqlite:{tmp_path / 'store.db'}")
    made = recommender_of(StandInCatalogue(40), None, store=store)
    made.parts.privacy = read_privacy(environment)
    asked = StandIn()
    backend = CachedBackend(asked, 2**20)
    app = create_app(GatewaySettings(access_log=False), backend, None, made)
    user = read_privacy(environment).user(USER)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http,
    ):
        await visit(http)
        for _ in range(2):
            ranked = {"query": SECRET_QUERY, "items": ["a", "bb"], "user": USER}
            answer = await http.post("/v1/rank", json=ranked, headers={"X-User-Id": USER})
        assert answer.json()["cached"]
        await http.delete(f"/v1/users/{USER}")
        gc.collect()
        assert holds(app.state.gateway, USER)  # the stand-in has a record of its own: the search finds what is there
        asked.asked.clear()
        for name in {user, USER}:
            assert not holds(app.state.gateway, name)
