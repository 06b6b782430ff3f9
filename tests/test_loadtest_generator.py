"""The real Locust against servers that are slow, wrong, refusing, stalled or dead, each on purpose.

All loads are sent first, a few at a time, because Locust takes seconds to start; the tests look at what came of them.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TESTS
from misbehaving_server import (
    BROKEN,
    EXPIRED,
    INVALID,
    QUEUE_FULL,
    RIGHT,
    Behaviour,
    Malformed,
    MisbehavingServer,
    Slow,
    Stall,
)
from refused_ports import refused_address

from loadtests.processes import child_environment, free_port
from loadtests.results import Run, read_run

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # loads in real time

LOCUSTFILE = TESTS.parent / "loadtests" / "locustfile.py"
RATE = 25.0
STALL = (1.0, 1.0)
"""Begins so many seconds after the first request, and lasts so long."""
AT_ONCE = 3
ATTEMPTS = 3  # on a crowded machine the generator itself may come too late, and says so
REVERSED = Malformed(lambda outputs: outputs | {"scores": ("FP32", outputs["scores"][1][::-1])})
TWICE = Malformed(lambda outputs: outputs | {"indices": ("INT32", [0] * len(outputs["indices"][1]))})
FEWER = Malformed(lambda outputs: {name: (kind, values[:1]) for name, (kind, values) in outputs.items()})
FAILURES = [REVERSED, TWICE, FEWER, QUEUE_FULL, QUEUE_FULL, BROKEN, INVALID, EXPIRED, Slow(1.5), RIGHT]


@dataclass
class Sent:
    """A load that is over."""

    server: MisbehavingServer
    run: Run | None
    exit_code: int
    output: str
    folder: Path

    @property
    def result(self) -> Run:
        assert self.run is not None, self.output
        return self.run

    def item_ids(self) -> list[tuple[bytes, ...]]:
        """Of every request that arrived, golden ones left out: they have none."""
        return [tuple(asked.inputs["item_ids"]) for asked in self.server.asked if "item_ids" in asked.inputs]


LOADS: dict[str, tuple[str, Callable[[], list[Behaviour]], list[str]]] = {
    "grpc": ("grpc", lambda: [Slow(0.1)], ["--seconds", "2.5"]),
    "http, two workers": ("http", lambda: [Slow(0.1)], ["--seconds", "3", "--processes", "2"]),
    "open, stalled": ("grpc", lambda: [Stall(*STALL)], ["--seconds", "3"]),
    "closed, stalled": ("grpc", lambda: [Stall(*STALL)], ["--seconds", "3", "--shape", "closed"]),
    "failing": ("grpc", lambda: [RIGHT] * 10 + FAILURES, ["--seconds", "2", "--deadline-ms", "1000"]),
    "dead": ("grpc", lambda: [RIGHT], ["--seconds", "1.5", "--deadline-ms", "500"]),
    "too few senders": ("http", lambda: [Slow(0.5)], ["--seconds", "2", "--senders", "2", "--deadline-ms", "800"]),
}
GOLDEN = {"artifact": "fake", "cases": [{"query": "", "history": [], "items": ["abc", "a"], "scores": [3.0, 1.0]}]}
"""The fake server's score is the length of a text."""


@pytest.fixture(scope="module")
def loads(small_workload: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Sent]]]:
    """Every load of LOADS, by name, as soon as it is over."""
    golden = small_workload.with_name("golden.json")
    golden.write_text(json.dumps(GOLDEN), encoding="utf-8")
    servers: list[MisbehavingServer] = []

    def send(name: str) -> Sent:
        for _ in range(ATTEMPTS):
            sent = send_once(name)
            if sent.run is None or sent.run.client.valid or name == "too few senders":
                break
        return sent

    def send_once(name: str) -> Sent:
        protocol, make_script, arguments = LOADS[name]
        server = MisbehavingServer()
        servers.append(server)
        server.behave(*make_script())
        url = f"grpc://{refused_address()}" if name == "dead" else server.urls[protocol]
        folder = tmp_path_factory.mktemp("run")
        command = [*locust(small_workload, url), *arguments, "--headless", "--only-summary", "--golden", str(golden)]
        if "--processes" in arguments:
            port = str(free_port())
            command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]
        command += ["--run-file", str(folder / "run.json"), "--csv", str(folder / "locust")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=child_environment(), check=False)
        run = read_run(folder / "run.json") if (folder / "run.json").is_file() else None
        return Sent(server, run, done.returncode, done.stdout + done.stderr, folder)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(send, name) for name in LOADS}
    for server in servers:
        server.close()


def locust(workload: Path, url: str) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", url, "--workload", str(workload)]
    return [*command, "--rate", f"{RATE:g}", "--warm-up", "0", "--loglevel", "WARNING"]


# Sent when it is due, by whatever protocol


def test_a_load_over_grpc_is_sent_when_it_is_due_and_overlaps(loads: dict[str, Future[Sent]]) -> None:
    """At 25/s and 0.1 s each, one after the other would take 2.5 times as long as there is."""
    sent = loads["grpc"].result()
    run = sent.result
    assert run.totals.offered == run.totals.good == pytest.approx(RATE * 2.5, abs=1)
    assert run.totals.latency.p50 is not None
    assert 100 <= run.totals.latency.p50 < 250
    assert run.client.most_in_flight >= 2
    assert run.client.valid, run.client.why
    assert sent.exit_code == 0
    arrived = sorted(asked.seconds for asked in sent.server.asked if "item_ids" in asked.inputs)
    assert arrived[-1] - arrived[0] == pytest.approx(2.4, abs=0.6)
    assert (run.target.protocol, run.target.artifact) == ("grpc", "fake-1")


def test_golden_requests_travel_along(loads: dict[str, Future[Sent]]) -> None:
    sent = loads["grpc"].result()
    assert sum("item_ids" not in asked.inputs for asked in sent.server.asked) == 1, "one in two seconds"
    assert sent.result.totals.candidates_per_second == pytest.approx(4 * sent.result.totals.answered_per_second)


def test_locust_has_its_own_statistics_of_each_request(loads: dict[str, Future[Sent]]) -> None:
    sent = loads["grpc"].result()
    rows = (sent.folder / "locust_stats.csv").read_text().splitlines()
    counts = {row.split(",")[1]: int(row.split(",")[2]) for row in rows[1:]}
    assert counts["rank"] == sent.result.totals.offered
    assert counts["golden"] == 1


def test_workers_divide_the_load_and_send_nothing_twice(loads: dict[str, Future[Sent]]) -> None:
    sent = loads["http, two workers"].result()
    run = sent.result
    assert run.totals.offered == run.totals.good == pytest.approx(RATE * 3, abs=1)
    assert len(sent.item_ids()) == len(set(sent.item_ids())) == run.totals.offered
    assert run.client.processes == 2
    assert run.client.most_in_flight >= 2
    assert (run.client.valid, run.target.protocol) == (True, "http")


# A stall of one second


def test_everybody_who_was_due_in_a_stall_waits_for_its_end(loads: dict[str, Future[Sent]]) -> None:
    """Due x seconds after its beginning: answered 1 - x later. The sampled seconds add up to that."""
    run = loads["open, stalled"].result().result
    slow = [row for row in run.per_second if (row.latency.max or 0) > 500]
    assert max(row.latency.max or 0 for row in run.per_second) == pytest.approx(1_000, abs=200)
    assert sum(row.offered for row in slow) >= RATE - 2
    # A third of three seconds is stalled: a tenth of all requests waits for 0.7 s or more.
    assert run.totals.latency.p90 == pytest.approx(700, abs=200)
    assert run.totals.latency.p50 is not None
    assert run.totals.latency.p50 < 250
    assert run.totals.good == run.totals.offered
    assert max(row.in_flight for row in run.per_second) > 0.6 * RATE, "nobody held back"


def test_a_closed_loop_hides_the_same_stall(loads: dict[str, Future[Sent]]) -> None:
    """One client meets it once, among many quick answers: why load here is open."""
    run = loads["closed, stalled"].result().result
    assert run.totals.latency.max == pytest.approx(1_000, abs=200)
    assert run.totals.latency.p90 is not None
    assert run.totals.latency.p90 < 250
    assert run.client.most_in_flight == 1


# What goes wrong


def test_every_failure_is_told_apart(loads: dict[str, Future[Sent]]) -> None:
    sent = loads["failing"].result()
    run = sent.result
    assert run.totals.failed == {"wrong": 3, "rejected": 2, "fault": 1, "invalid": 1, "expired": 2}
    assert run.totals.good == run.totals.offered - 9
    assert run.totals.rejection.max is not None
    assert run.totals.rejection.max < 500
    assert run.client.valid, "it was the server's fault"
    assert sent.exit_code == 1
    assert any("breaks the contract" in text for text in run.failures)
    assert {text.partition(":")[0] for text in run.failures} == set(run.totals.failed)


def test_a_request_that_was_refused_is_not_sent_again(loads: dict[str, Future[Sent]]) -> None:
    sent = loads["failing"].result()
    assert len(sent.item_ids()) == len(set(sent.item_ids())) == sent.result.totals.offered


def test_a_dead_server_is_a_failure_of_every_request(loads: dict[str, Future[Sent]]) -> None:
    sent = loads["dead"].result()
    assert sent.result.totals.failed == {"unavailable": sent.result.totals.offered}
    assert (sent.result.totals.answered, sent.result.target.artifact, sent.exit_code) == (0, "", 1)


def test_a_generator_without_senders_blames_itself(loads: dict[str, Future[Sent]]) -> None:
    """Two senders and a server that takes half a second: what is due meanwhile is sent too late or not at all."""
    run = loads["too few senders"].result().result
    assert not run.client.valid
    assert "senders" in run.client.why
    assert set(run.totals.failed) <= {"unanswered", "expired"}
    assert not run.passed


def test_a_load_of_which_nothing_was_sent_is_no_success(small_workload: Path) -> None:
    """Locust's exit code counts failures, and of no request none fails: it is ended before the first is due."""
    server = MisbehavingServer()
    command = [*locust(small_workload, server.urls["grpc"]), "--headless", "--seconds", "60", "--rate", "0.02"]
    process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        time.sleep(6)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0].decode()
    finally:
        process.kill()
        server.close()
    assert not server.asked
    assert process.returncode == 1, output
