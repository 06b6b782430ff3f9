"""The fuzz: the same seed sends the same, what it finds it says, and the server stands a short one."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from fastapi.routing import APIRoute
from gateway_stand_ins import StandIn
from tiny_catalogue import tiny_catalogue
from tritonrank.artifacts.workspace import Workspace
from tritonrank_gateway.app import create_app
from tritonrank_gateway.dialects import routers
from tritonrank_gateway.recommend import routers as recommend_routers
from tritonrank_gateway.settings import GatewaySettings
from typer.testing import CliRunner

from loadtests.__main__ import app
from loadtests.fuzz import clients, grpc_requests, http_requests, values
from loadtests.fuzz.gateway_requests import PAGES, mutate_json, operations_of
from loadtests.fuzz.http_requests import HttpFuzz
from loadtests.fuzz.mutations import MUTATIONS, mutate
from loadtests.fuzz.record import LEAK, Answer, End, Record
from loadtests.fuzz.served import FuzzedServer
from loadtests.fuzz.verb import Family, run_fuzz

SHORT = 200
SEED = 5
"""None of its first requests is one of those that end Triton 2.51."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_server_stands_a_short_fuzz(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    options = ["--requests", str(SHORT), "--seed", str(SEED), "--out", str(out)]
    result = CliRunner().invoke(app, ["fuzz", str(workspace.root), *options])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert (record["passed"], record["requests"], record["blocks"], record["why"]) == (True, SHORT, 1, [])
    assert 0 < record["accepted"] < SHORT
    assert len(record["counts"]) >= 11, "nearly every kind was sent"
    assert sum(sum(counts.values()) for counts in record["counts"].values()) == SHORT
    assert json.loads(result.stdout.splitlines()[-1])["passed"] is True


GATEWAY_REQUESTS = 500


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_gateway_with_everything_stands_a_short_fuzz(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.repository, tmp_path / "tiny" / "repository")
    tiny_catalogue(tmp_path / "tiny" / "catalogue")
    out = tmp_path / "fuzz.json"
    options = ["--only", "gateway", "--requests", str(GATEWAY_REQUESTS), "--seed", "8", "--out", str(out)]
    result = CliRunner().invoke(app, ["fuzz", str(tmp_path / "tiny"), *options])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert (record["passed"], record["requests"], record["why"]) == (True, GATEWAY_REQUESTS, [])
    assert record["accepted"] > 0.1 * GATEWAY_REQUESTS
    assert [len(record["footprints"][name]) for name in ("server", "gateway")] == [2, 2]


# The harness itself, with requests that do what they should not


@pytest.fixture(scope="module")
def server(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedServer]:
    with FuzzedServer(workspace.root, tmp_path_factory.mktemp("fuzzed")) as server:
        yield server


def right(random: Random) -> Answer:
    return Answer("OK", "", "right")


def planted(send: Callable[[Random], Answer], server: FuzzedServer, requests: int = 3) -> Record:
    return run_fuzz(server, [Family("planted", 1, send)], requests=requests, seed=1, seconds=120)


def processes(name: str) -> list[psutil.Process]:
    """Of this test's own server, which is a command; other tests have servers of their own beside it."""
    commands = [one for one in psutil.Process(os.getpid()).children() if "serve" in one.cmdline()]
    family = [process for command in commands for process in command.children(recursive=True)]
    return [one for one in family if any(name in word for word in one.cmdline()[:1])]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["tritonserver", "triton_python_backend_stub"])
def test_an_end_is_noticed_counted_and_waited_for(server: FuzzedServer, victim: str) -> None:
    killed: list[int] = []

    def kill_once(random: Random) -> Answer:
        if not killed:
            found = processes(victim)[0]
            killed.append(found.pid)
            found.send_signal(signal.SIGKILL)
            psutil.wait_procs([found], timeout=2)
        return right(random)

    record = planted(kill_once, server)
    assert len(killed) == 1
    assert len(record.ends) == 1, "one, though the others of the server went with it"
    assert record.ends[0].family in ("planted", "end of a block")
    assert (record.wrong_golden, record.blocks) == ([], 1), "it was waited for"
    assert record.ends[0].repaired_seconds is not None


def test_an_internal_error_is_found_but_for_what_triton_says_of_json() -> None:
    record = Record(blocks=1)
    record.add("f", Answer("200", "", ""), 0.1)
    record.add("f", Answer("500", '{"error":"Unable to parse \'shape\': attempt to access JSON non-array"}', ""), 0.1)
    assert record.faults() == []
    for status in ("500", "INTERNAL"):
        record.add("f", Answer(status, "tokenize: IndexError", ""), 0.1)
    assert record.unexpected_count == 2
    assert len(record.faults()) == 1


def test_what_is_given_away_is_found(server: FuzzedServer) -> None:
    answer = Answer("500", 'Traceback (most recent call last):\n  File "/srv/model.py", line 9', "planted")
    record = planted(lambda _: answer, server)
    assert (record.leaking, record.leaks[0]["leak"]) == (3, "Traceback")
    assert any("3 answers" in reason for reason in record.faults())


def test_golden_requests_that_change_are_found(server: FuzzedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = server.golden()
    last_digit = [[(index, score + 1e-6) for index, score in ranking] for ranking in golden]
    answers = iter([golden, last_digit])
    monkeypatch.setattr(server, "golden", lambda: next(answers))
    record = planted(right, server)
    assert len(record.wrong_golden) == 1
    assert any("golden" in reason for reason in record.faults())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"counts": {}}, "0 of 0 requests"),
        ({"blocks": 0}, "never checked"),
        ({"leaking": 1}, "traceback"),
        ({"unexpected_count": 1}, "nobody should meet"),
        ({"ends": [End(1, "tritonserver", "f", "r", 4.9)]}, ""),
        ({"ends": [End(1, "tritonserver", "f", "r", 5.1)]}, "1 of 1 ends"),
        ({"ends": [End(1, "tritonserver", "f", "r", None)]}, "1 of 1 ends"),
        ({"ends": [End(1, "tritonserver", "f", "r", 2.0, by_itself=False)]}, "1 of 1 ends"),
    ],
)
def test_the_verdict(change: dict[str, Any], said: str) -> None:
    record = Record(blocks=1)
    record.add("f", Answer("OK", "", ""), 0.1)
    for name, value in change.items():
        setattr(record, name, value)
    faults = record.faults()
    assert len(faults) == bool(said)
    assert said in "".join(faults)


@pytest.mark.parametrize(
    ("footprints", "said"),
    [
        ([(100, 30), (100, 30), (120, 40), (124, 50)], ""),
        ([(100, 30), (400, 30), (410, 30), (420, 30)], ""),
        ([(100, 30), (400, 30), (410, 30), (540, 30)], "memory of gateway grew from 400 to 540 MiB"),
        ([(100, 30), (100, 30), (100, 40), (100, 60)], "open files of gateway grew from 30 to 60"),
    ],
)
def test_what_grows_is_found(footprints: list[tuple[int, int]], said: str) -> None:
    record = Record(blocks=1)
    record.add("f", Answer("OK", "", ""), 0.1)
    record.footprints["gateway"] = [(mebibytes * 2**20, files) for mebibytes, files in footprints]
    assert record.faults() == ([said] if said else [])


def test_every_route_of_the_gateway_is_among_those_that_are_fuzzed() -> None:
    page = create_app(GatewaySettings(), StandIn()).openapi()
    found = operations_of(page)
    served = {
        (method, route.path.replace(":path}", "}"))
        for router in [*routers(), *recommend_routers()]
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    unnamed = served - {(one.method, one.path) for one in found}
    assert {path for _, path in unnamed} <= set(PAGES)
    assert len(served) > 20
    assert all(one.examples for one in found if one.method == "POST")


def test_every_mutation_of_a_body_can_be_sent() -> None:
    random, changes = Random(1), set()
    for _ in range(2_000):
        value = {"query": "a", "items": ["b", {"c": [1, 2]}], "filters": {}}
        changes |= {mutate_json(random, value) for _ in range(3)}
        json.dumps(value)
    assert changes == {"replace", "drop", "add", "many", "nest", "rename"}


def test_refusals_alone_are_no_success() -> None:
    record = Record(blocks=1)
    for status in ("400", "UNAVAILABLE", "Unavailable", "no answer"):
        record.add("f", Answer(status, "", ""), 0.1)
    assert record.faults()


def test_a_name_that_no_kind_has_is_refused(workspace: Workspace) -> None:
    result = CliRunner().invoke(app, ["fuzz", str(workspace.root), "--only", "telnet", "--requests", "1"])
    assert result.exit_code == 2
    assert "HTTP JSON" in result.output
    assert json.loads(result.stdout.splitlines()[-1])["passed"] is False


# What is sent


def sent(seed: int) -> list[bytes]:
    """Bodies of every kind, without a server."""
    bodies: list[bytes] = []

    class Kept(HttpFuzz):
        def _post(self, path: str, body: bytes, headers: Any, shown: str) -> Answer:
            bodies.append(path.encode() + repr(headers).encode() + body)
            return right(Random())

    http = Kept(("127.0.0.1", 1))
    for number in range(300):
        random = Random(f"{seed} {number}")
        for send in (http.json, http.binary, http.generate):
            send(random)
        message = grpc_requests.right_message(random)
        for change in grpc_requests.CHANGES.values():
            try:
                change(random, message, 0)
            except (ValueError, TypeError, IndexError):
                continue
        bodies.append(message.SerializeToString(deterministic=True))
        bodies.append(repr(clients.hostile_arguments(random)).encode())
    return bodies


@pytest.mark.slow
def test_the_same_seed_sends_the_same_and_another_something_else() -> None:
    assert sent(1) == sent(1)
    assert sent(1) != sent(2)


@pytest.mark.slow
def test_nothing_that_is_sent_looks_like_what_is_searched_for() -> None:
    """An answer may repeat it."""
    assert [body[:200] for body in sent(3) if LEAK.search(body.decode("utf-8", "replace"))] == []
    assert not any(LEAK.search(repr(one)) for one in (*http_requests.RAW_LINES, *http_requests.RAW_BODIES))


def test_requests_are_right_before_they_are_mutated_and_every_mutation_comes() -> None:
    random = Random(1)
    changes = {mutate(random, values.right_request(random).json()) for _ in range(3_000)}
    assert set(MUTATIONS) <= changes
    for _ in range(100):
        request = values.right_request(random)
        assert all(len(str(one.data)) for one in request.inputs)
        assert {one.name for one in request.inputs} <= set(values.OPTIONAL) | {
            "query", "history", "items", "context_ids", "candidate_ids", "deadline", "logits", "row_of_candidate"
        }  # fmt: skip
