"""recommend and what belongs to it through the clients: a real gateway without a Triton, and servers that misbehave."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Served
from gateways import RunningGateway, running_gateway
from tiny_catalogue import tiny_catalogue
from tritonrank_client import (
    AsyncRankClient,
    Event,
    InvalidRequest,
    Overloaded,
    RankClient,
    RankError,
    Retry,
    ServerFault,
    Unavailable,
)
from tritonrank_client.cli import app
from typer.testing import CliRunner

QUICK = Retry(attempts=3, initial_seconds=0.01, max_seconds=0.02)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("gateway")
    catalogue = tiny_catalogue(folder / "catalogue")
    store = f"sqlite:{folder / 'store.db'}"
    flags = (
        "--catalogue",
        str(catalogue),
        "--store",
        store,
        "--deadline-s",
        "3",
    )  # which explaining takes without a ranker
    with running_gateway("127.0.0.1:1", folder, *flags) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[RankClient]:
    with RankClient("gateway+" + gateway.url) as made:
        yield made


def test_a_page_and_the_next_one(client: RankClient) -> None:
    page = client.recommend(
        "u-pages", recent=["item-04", {"item_id": "item-08", "type": "cart"}], query="red lamp", size=5,
        filters={"price": {"lte": 60}}, context={"page": "home"}, exclude=["item-00", 7],
    )  # fmt: skip
    assert len(page.items) == len(set(page.item_ids)) == 5
    assert not {"item-00", "7"} & set(page.item_ids)
    assert all(item.fields["price"] <= 60 for item in page.items)
    assert [item.position for item in page.items] == [0, 1, 2, 3, 4]
    assert page.items[0].sources
    assert page.degraded  # nobody is at that port
    assert page.degraded_reasons[0].startswith("ranker: ")
    assert page.artifacts["catalogue"]
    assert page.milliseconds["total"] > 0
    assert page.seconds > 0
    assert page.attempts == 1
    assert page.seconds < 5  # the gateway gives up on the ranker by its own time, not by the client's ten seconds
    following = client.recommend("u-pages", cursor=page.cursor, size=5)
    assert following.page == page.page
    assert not set(following.item_ids) & set(page.item_ids)


def test_similar_items_and_one_that_is_not_there(client: RankClient) -> None:
    found = client.similar("item-04", size=3, filters={"category": "lamp"})
    assert len(found.item_ids) == 3
    assert all(item.fields["category"] == "lamp" for item in found.items)
    with pytest.raises(InvalidRequest, match="not in the catalogue"):
        client.similar("no/such item?")
    with pytest.raises(InvalidRequest, match="item_id"):
        client.similar("")


def test_items_that_change_while_serving(client: RankClient) -> None:
    changed = client.put_items({"new/1": {"title": "purple teapot", "price": 3}, 12: {"title": "purple cup"}})
    assert (changed.changed, changed.removed, changed.is_kept, changed.attempts) == (2, 0, True, 1)
    assert {"new/1", "12"} <= set(client.recommend(query="purple teapot cup", size=10).item_ids)
    assert client.delete_items(["new/1", 12, "nothing"]).removed == 3
    assert "new/1" not in client.recommend(query="purple teapot", size=10).item_ids
    assert client.put_items({}).attempts == 0


def test_why_an_item_stands_where_it_stands(client: RankClient) -> None:
    explained = client.explain(["item-04", "nothing"], recent=["item-08"], query="lamp")
    assert list(explained.items) == ["item-04"]
    assert explained.unknown == ("nothing",)
    assert explained.items["item-04"].sentence


def test_events_count_once_are_told_and_are_forgotten(gateway: RunningGateway, client: RankClient) -> None:
    events = [Event("u-events", "click", "item-04"), Event("u-events", "search", query="red lamp")]
    assert (client.send_events(events).accepted, client.send_events(events).duplicates) == (2, 2)
    kept = json.dumps(client.user("u-events"))
    assert "item-04" in kept
    assert "red lamp" in kept
    assert not client.recommend("u-events", size=3).cold
    with pytest.raises(InvalidRequest, match=r"events\[1\].value"):
        client.send_events([Event("u-events", "view", "item-05"), Event("u-events", "rating", "item-05", value=9)])

    async def forget() -> None:
        async with AsyncRankClient("gateway+" + gateway.url) as asking:
            assert (await asking.send_events([Event("u-events", "cart", "item-08")])).accepted == 1
            await asking.forget_user("u-events")
            assert "item-0" not in json.dumps(await asking.user("u-events"))

    asyncio.run(forget())
    assert client.recommend("u-events", size=3).cold


def test_asyncio_gives_the_same(gateway: RunningGateway, client: RankClient) -> None:
    async def ask() -> None:
        async with AsyncRankClient("gateway+" + gateway.url) as asking:
            asked: dict[str, Any] = {"recent": ["item-05"], "query": "chair", "size": 6}
            assert (await asking.recommend(**asked)).item_ids == client.recommend(**asked).item_ids
            assert (await asking.similar("item-04")).item_ids == client.similar("item-04").item_ids
            assert (await asking.put_items({"async": {"title": "yellow kite"}})).changed == 1
            assert (await asking.delete_items(["async"])).removed == 1
            assert (await asking.explain(["item-04"], query="lamp")).items["item-04"].sentence

    asyncio.run(ask())


def test_a_refusal_names_the_field(client: RankClient) -> None:
    with pytest.raises(InvalidRequest, match="size"):
        client.recommend(size=0)
    with pytest.raises(InvalidRequest, match="first page"):
        client.recommend(cursor="0" * 32 + ".3")
    with pytest.raises(InvalidRequest, match=r"recent\[1\]"):
        client.recommend(recent=["a", 1.5])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="filters"):
        client.recommend(filters={"price": {1, 2}})
    with pytest.raises(InvalidRequest, match=r"events\[0\]"):
        client.send_events([{"user": "u", "type": "click"}])
    with pytest.raises(InvalidRequest, match="request_id"):
        client.recommend(request_id="a\nb")


def test_a_gateway_without_a_catalogue_says_what_to_do(tmp_path: Path) -> None:
    with (
        running_gateway("127.0.0.1:1", tmp_path) as running,
        RankClient("gateway+" + running.url, retry=QUICK) as client,
        pytest.raises(Unavailable, match="--catalogue"),
    ):
        client.recommend("u")


def test_a_triton_that_does_not_recommend_and_what_only_gateways_do(served: Served) -> None:
    for url in served.urls.values():
        with RankClient(url, retry=QUICK) as client:
            with pytest.raises(Unavailable, match="'recommend'"):
                client.recommend("u")
            with pytest.raises(InvalidRequest, match="gateway"):
                client.send_events([Event("u", "click", "i")])
        with pytest.raises(InvalidRequest, match="gateway"):
            asyncio.run(_ask_user(url))
    with (
        RankClient(served.workspace.repository.as_uri()) as folder,
        pytest.raises(InvalidRequest, match="gateway"),
    ):
        folder.recommend("u")


async def _ask_user(url: str) -> None:
    async with AsyncRankClient(url) as client:
        await client.user("u")


# Servers that misbehave


@contextmanager
def answering(answers: list[tuple[int, Any]]) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """A server that gives these answers one after the other, the last for ever; and what it was asked."""
    asked: list[tuple[str, str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            asked.append((self.command, self.path, json.loads(body) if body else None))
            status, told = answers.pop(0) if len(answers) > 1 else answers[0]
            sent = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("X-Request-Id", self.headers["X-Request-Id"])
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - as the library calls them

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"gateway+http://127.0.0.1:{server.server_port}/base", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


REFUSED = {"error": {"kind": "unavailable", "message": "the store does not answer"}}
TAKEN = {"accepted": 3, "duplicates": 0}


def test_a_batch_is_sent_again_whole_and_with_the_same_ids() -> None:
    events = [Event("u", "click", "i1"), Event("u", "search", query="lamp"), Event("u", "rating", 7, value=4.5)]
    with answering([(503, REFUSED), (429, REFUSED), (200, TAKEN)]) as (url, asked):
        with RankClient(url, retry=QUICK) as client:
            taken = client.send_events(events)
        assert (taken.accepted, taken.attempts) == (3, 3)
        assert [one[:2] for one in asked] == [("POST", "/base/v1/events")] * 3
        assert asked[0][2] == asked[1][2] == asked[2][2]
        first, second, third = asked[0][2]["events"]
        assert len({one["event_id"] for one in (first, second, third)}) == 3
        assert first["event_id"] == events[0].event_id
        assert set(second) == {"event_id", "user_id", "type", "timestamp", "query"}
        assert (third["item_id"], third["value"]) == ("7", 4.5)


def test_more_events_than_a_request_may_hold_go_in_batches() -> None:
    with answering([(200, {"accepted": 900, "duplicates": 100})]) as (url, asked):
        with RankClient(url, retry=QUICK) as client:
            taken = client.send_events({"user_id": "u", "type": "view", "item_id": place} for place in range(2_500))
        assert [len(body["events"]) for *_, body in asked] == [1_000, 1_000, 500]
        assert len({one["event_id"] for *_, body in asked for one in body["events"]}) == 2_500
        assert (taken.accepted, taken.duplicates, taken.attempts) == (2_700, 300, 3)


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (200, b"{", ServerFault),
        (200, [], ServerFault),
        (200, {"items": {}, "page": ""}, ServerFault),
        (200, {"items": [{"item_id": 1}], "page": ""}, ServerFault),
        (200, {"items": [], "page": None}, ServerFault),
        (500, {"error": {"message": "x"}}, ServerFault),
        (503, REFUSED, Unavailable),
        (429, REFUSED, Overloaded),
        (422, {"error": {"message": "size: 0"}}, InvalidRequest),
        (302, b"", ServerFault),
    ],
)
def test_answers_that_are_none(status: int, answer: Any, error: type[RankError]) -> None:
    with (
        answering([(status, answer)]) as (url, _),
        RankClient(url, retry=QUICK) as client,
        pytest.raises(error) as caught,
    ):
        client.recommend("u")
    assert caught.value.attempts == (3 if error in (Unavailable, Overloaded) else 1)


def test_users_are_asked_for_and_forgotten_by_their_path() -> None:
    with answering([(200, {"events": []})]) as (url, asked):
        with RankClient(url) as client:
            assert client.user("a/b ü", log=True) == {"events": []}
            client.forget_user(7)
        assert [one[:2] for one in asked] == [
            ("GET", "/base/v1/users/a%2Fb%20%C3%BC?log=true"),
            ("DELETE", "/base/v1/users/7"),
        ]


# The command line


def test_the_command_line(gateway: RunningGateway, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--url", gateway.url])
        assert done.exit_code == 0, done.output
        return done.stdout

    page = json.loads(
        run("recommend", "--query", "red lamp", "--size", "3", "--filters", '{"brand": "Acme"}', "--json")
    )
    assert len(page["items"]) == 3
    assert page["items"][0]["item_id"] in run("recommend", "--query", "red lamp", "--filters", '{"brand": "Acme"}')
    assert len(json.loads(run("similar", "item-04", "--size", "2", "--json"))["items"]) == 2
    wrong = CliRunner().invoke(app, ["recommend", "--filters", "[]", "--url", gateway.url])
    assert (wrong.exit_code, "--filters" in wrong.stderr) == (2, True)
    lines = tmp_path / "events.jsonl"
    lines.write_text('{"user_id": "u", "type": "click", "item_id": "i", "event_id": "e1"}\n\n')
    with answering([(200, {"accepted": 1, "duplicates": 0})]) as (url, asked):
        done = CliRunner().invoke(app, ["events", str(lines), "--url", url])
    assert (done.exit_code, "1 events taken" in done.stdout) == (0, True)
    assert asked[0][2]["events"][0]["event_id"] == "e1"
    lines.write_text("no event\n")
    wrong = CliRunner().invoke(app, ["events", str(lines), "--url", url])
    assert (wrong.exit_code, "line 1" in wrong.stderr) == (2, True)
