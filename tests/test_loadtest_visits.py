"""Visits to a gateway that recommends: what is sent, and which answers are not right."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tritonrank_client import Overloaded, ServerFault
from typer.testing import CliRunner

from loadtests import recommend
from loadtests.__main__ import app
from loadtests.checks import WrongAnswerError
from loadtests.results import OWN_STEPS
from loadtests.users import visitors_of, write_events
from loadtests.visits import PAGE_SIZE, STEPS, VisitCaller, check_page
from loadtests.workload import WorkloadRequest

REQUEST = WorkloadRequest(0, 0.0, "ann", "desk lamp", [], ["a"], ["1"], None)


class Shop:
    """A shop of 100 items that answers as a gateway does; ``twist`` changes its pages."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.twist: dict[str, Any] = {}
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name is http.server's
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                shop.bodies.append((self.path, body))
                told = json.dumps(shop.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/events":
            return {"accepted": len(body["events"]), "duplicates": 0} | self.twist.get("events", {})
        first = int(body.get("cursor") or 0)
        items = [{"item_id": f"i{place}", "position": place} for place in range(first, first + body["size"])]
        times = {"profile": 1.0, "retrieve": 2.0, "rank": 30.0, "blend": 0.5, "total": 34.0}
        answer = {"items": items, "page": "p1", "cursor": str(first + body["size"]), "milliseconds": times}
        return answer | self.twist.get("page", {})


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.server.shutdown()
    shop.server.server_close()


def test_a_visit_looks_searches_and_pages_and_tells_what_it_did(shop: Shop) -> None:
    caller = VisitCaller(shop.url, candidates=200)
    for _ in STEPS:
        answer = caller.call(REQUEST, 5.0)
        assert answer.steps[OWN_STEPS] == pytest.approx(3.5)
        assert answer.afterwards is not None
        assert set(answer.afterwards()) == {"events"}
    pages = [body for path, body in shop.bodies if path == "/v1/recommend"]
    assert [bool(page.get("cursor")) for page in pages] == [step == "page" for step in STEPS]
    assert [page.get("query", "") for page in pages if "cursor" not in page] == ["", "desk lamp", "", "desk lamp"]
    assert all(page["candidates"] == 200 for page in pages if "cursor" not in page)
    events = [event for path, body in shop.bodies if path == "/v1/events" for event in body["events"]]
    assert len({event["event_id"] for event in events}) == len(events)
    assert {event["user_id"] for event in events} == {"ann"}
    assert max(event["position"] for event in events) >= PAGE_SIZE, "positions are those of the whole list"


def test_visitors_are_copies_of_the_workloads_users(shop: Shop) -> None:
    caller = VisitCaller(shop.url, visitors=3)
    for _ in range(40 * len(STEPS)):
        caller.call(REQUEST, 5.0)
    assert {body["user_id"] for _, body in shop.bodies} == {"ann", "ann~1", "ann~2"}


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ({"items": []}, WrongAnswerError),
        ({"items": [{"item_id": "a", "position": 0}, {"item_id": "a", "position": 1}]}, WrongAnswerError),
        ({"items": [{"item_id": "a", "position": 0}, {"item_id": "b", "position": 2}]}, WrongAnswerError),
        ({"items": [{"position": 0}]}, ServerFault),
        ({"degraded": True, "degraded_reasons": ["ranker: overloaded"]}, Overloaded),
    ],
    ids=["empty", "twice", "gap", "no id", "degraded"],
)
def test_a_page_that_is_none_is_a_failure(shop: Shop, page: dict[str, Any], error: type[Exception]) -> None:
    shop.twist = {"page": page}
    with pytest.raises(error):
        VisitCaller(shop.url).call(REQUEST, 5.0)


def test_a_second_page_that_repeats_the_first_is_wrong() -> None:
    check_page(["c", "d"], [2, 3], {"a", "b"}, set())
    with pytest.raises(WrongAnswerError, match="earlier page"):
        check_page(["b", "d"], [2, 3], {"a", "b"}, set())


def test_what_was_bought_must_not_come_again() -> None:
    with pytest.raises(WrongAnswerError, match="bought"):
        check_page(["c"], [0], set(), {"c"})


def test_events_that_are_not_taken_are_a_failure(shop: Shop) -> None:
    shop.twist = {"events": {"accepted": 0}}
    answer = VisitCaller(shop.url).call(REQUEST, 5.0)
    assert answer.afterwards is not None
    with pytest.raises(WrongAnswerError, match="new events"):
        answer.afterwards()


def test_every_user_of_the_dataset_has_copies_with_the_same_past(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    rows = {"user_id": ["ann", "bob", "ann"], "item_id": ["1", "2", "3"], "query": ["", "lamp", ""]}
    rows |= {"timestamp": [1, 2, 3], "label": [1, 0, 1], "split": ["train"] * 3}
    pl.DataFrame(rows).write_parquet(tmp_path / "dataset" / "events.parquet")
    assert visitors_of(tmp_path, 5) == 3
    told = pl.read_parquet(write_events(tmp_path, 3, tmp_path / "events.parquet"))
    assert sorted(set(told["user_id"])) == ["ann", "ann~1", "ann~2", "bob", "bob~1", "bob~2"]
    assert told.filter(pl.col("user_id") == "ann~2").select("item_id", "type").rows() == [
        ("1", "click"),
        ("3", "click"),
    ]
    assert told.filter(pl.col("user_id") == "bob")["type"].to_list() == ["view"]
    newest = pl.read_parquet(write_events(tmp_path, 2, tmp_path / "newest.parquet", past=1))
    assert sorted(newest.select("user_id", "item_id").rows()) == [
        ("ann", "3"),
        ("ann~1", "3"),
        ("bob", "2"),
        ("bob~1", "2"),
    ]


def test_a_workload_that_cannot_be_sent_is_told_before_a_store_is_filled(
    small_workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> Any:
        raise AssertionError("a store was filled")

    monkeypatch.setattr(recommend, "prepared", fill)
    (tmp_path / "catalogue").mkdir()
    done = CliRunner().invoke(app, ["recommend", str(tmp_path), "--workload", str(small_workload)])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert "no request with 200 items" in done.output
    assert "tritonrank workload" in done.output
