"""A gRPC call whose caller stopped waiting goes on: it is never cancelled on the wire, and its answer reaches nobody.

tritonserver 2.51 can crash when calls are cancelled while it answers them.
"""

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from misbehaving_server import RIGHT, MisbehavingServer, Slow
from test_client_calls import Face, server  # noqa: F401 - a fixture
from tritonrank_client import (
    AsyncRankClient,
    DeadlineExceeded,
    Overloaded,
    RankClient,
    Retry,
    Unavailable,
    _grpc_connection,
)

from loadtests.chaos.proxy import TcpProxy

STYLES = pytest.mark.parametrize("style", ["sync", "async"])


def wait_until_idle(server: MisbehavingServer, answered: int) -> None:  # noqa: F811
    deadline = time.monotonic() + 10
    while server.answered < answered and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.answered == answered


@STYLES
def test_the_wire_deadline_is_seconds_later_than_the_callers(server: MisbehavingServer, style: str) -> None:  # noqa: F811
    server.behave(Slow(0.3))
    face = Face(style, "grpc")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        face.open(server).rank(items=["a"], timeout=0.05)
    assert time.monotonic() - started < 0.25
    (asked,) = server.asked
    assert asked.parameters["timeout"] <= 50_000, "the server is told the real one"
    assert asked.wire_seconds is not None
    assert asked.wire_seconds > 5
    face.close()
    wait_until_idle(server, answered=1)
    assert server.gave_up == 0, "close() lets abandoned calls end"


@STYLES
def test_short_deadlines_never_cancel_a_call(server: MisbehavingServer, style: str) -> None:  # noqa: F811
    """Thousands of deadlines around the time that an answer takes, from many threads, clients opened and closed."""
    server.behave(Slow(0.004))
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(5):
            face = Face(style, "grpc")
            client = face.open(server, retry=Retry(attempts=1))
            for _ in range(60):
                try:
                    client.rank(items=["a"], timeout=chance.uniform(0.001, 0.03))
                    what = "answered"
                except DeadlineExceeded:
                    what = "late"
                with lock:
                    counts[what] += 1
            face.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert counts["answered"] > 20
    assert counts["late"] > 20
    deadline = time.monotonic() + 10
    while server.answered < len(server.asked) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.answered == len(server.asked)
    assert server.gave_up == 0


async def test_a_cancelled_task_leaves_its_call_alone(server: MisbehavingServer) -> None:  # noqa: F811
    server.behave(Slow(0.3), RIGHT)
    async with AsyncRankClient(server.urls["grpc"]) as client:
        task = asyncio.create_task(client.rank(items=["a"]))
        while not server.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.rank(items=["bb"])).ranking[0].item == "bb"
    await asyncio.to_thread(wait_until_idle, server, 2)
    assert server.gave_up == 0


@STYLES
def test_health_and_metadata_are_abandoned_alike(server: MisbehavingServer, style: str) -> None:  # noqa: F811
    server.page_seconds = 0.3
    face = Face(style, "grpc")
    client = face.open(server, retry=Retry(attempts=1))
    started = time.monotonic()
    assert not client.health(timeout=0.05)
    with pytest.raises(DeadlineExceeded):
        client.model_info(timeout=0.05)
    assert time.monotonic() - started < 0.28
    face.close()
    wait_until_idle(server, answered=2)
    assert server.gave_up == 0


@STYLES
def test_abandoned_calls_are_bounded(
    server: MisbehavingServer,  # noqa: F811
    style: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_grpc_connection, "MOST_ABANDONED", 5)
    server.behave(Slow(0.8))
    face = Face(style, "grpc")
    client = face.open(server, retry=Retry(attempts=1))
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            client.rank(items=["a"], timeout=0.02)
    with pytest.raises(Overloaded, match="still unanswered") as caught:
        client.rank(items=["a"])
    assert caught.value.retryable
    assert len(server.asked) == 5
    wait_until_idle(server, answered=5)
    server.behave(RIGHT)
    patient = face.open(server)
    assert patient.rank(items=["a"]).indices == (0,)
    assert client.rank(items=["a"]).indices == (0,)
    face.close()


def test_the_end_of_a_program_waits_a_little_for_abandoned_calls(server: MisbehavingServer) -> None:  # noqa: F811
    """The end of the connection cancels, too."""
    server.behave(Slow(0.5))
    program = f"""
from tritonrank_client import RankClient, DeadlineExceeded
client = RankClient({server.urls["grpc"]!r})
try:
    client.rank(items=["a"], timeout=0.1)
except DeadlineExceeded:
    print("late")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "late\n"), done.stderr
    wait_until_idle(server, answered=1)
    assert server.gave_up == 0


def test_a_server_that_ends_ends_abandoned_calls() -> None:
    first = MisbehavingServer()
    first.behave(Slow(1.0))
    with RankClient(first.urls["grpc"], retry=Retry(attempts=1)) as client:
        with pytest.raises(DeadlineExceeded):
            client.rank(items=["a"], timeout=0.05)
        first.close()
        with pytest.raises(Unavailable):
            client.rank(items=["a"], timeout=2)
        assert not client._transport._wire._abandoned  # type: ignore[attr-defined]


@STYLES
def test_a_connection_that_is_dead_without_knowing_it_is_left(server: MisbehavingServer, style: str) -> None:  # noqa: F811
    """A router forgot it: nothing breaks, and nothing comes any more. A keep-alive ping would tell after a minute."""
    with TcpProxy(int(server.urls["grpc"].rpartition(":")[2])) as proxy:
        face = Face(style, "grpc")
        client = face.open(f"127.0.0.1:{proxy.port}", retry=Retry(attempts=1))
        client.rank(items=["a"], timeout=5)
        proxy.become("forgotten")
        with pytest.raises(DeadlineExceeded):
            client.rank(items=["a"], timeout=_grpc_connection.SILENT_SECONDS + 0.2)
        for _ in range(3):
            client.rank(items=["a"], timeout=5)
        face.close()


@STYLES
def test_a_slow_server_does_not_get_a_connection_for_each_late_answer(server: MisbehavingServer, style: str) -> None:  # noqa: F811
    server.behave(Slow(_grpc_connection.SILENT_SECONDS + 0.3))
    face = Face(style, "grpc")
    client = face.open(server, retry=Retry(attempts=1))
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            client.rank(items=["a"], timeout=_grpc_connection.SILENT_SECONDS + 0.1)
    assert len(server.grpc_peers) <= 2
    face.close()
    wait_until_idle(server, answered=3)
    assert server.gave_up == 0, "the old connection lets its calls end"
