"""A client that was used before its process forked gives every caller its own answers, over every transport.

The callers are programs of their own (`forking_callers.py`), as the server is: a fork would copy this process's
threads' locks, too.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

SETTINGS = {
    "threads": 1_000,
    "prefork": 1_500,
    "closed_parent": 600,
    "forks_of_forks": 600,
    "fork_amid_calls": 400,
    "workers": 600,
    "loops": 1_200,
    "exits": 200,
}
QUICK = ("threads", "prefork", "fork_amid_calls")


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """A server in a process of its own, which says with each answer whose it is."""
    command = [sys.executable, TESTS / "misbehaving_server.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())
        server.stdin.close()
        server.wait(timeout=20)


@pytest.mark.parametrize(
    ("setting", "calls"),
    [pytest.param(*one, marks=[] if one[0] in QUICK else [pytest.mark.slow], id=one[0]) for one in SETTINGS.items()],
)
def test_no_caller_gets_the_answer_of_another(urls: dict[str, str], setting: str, calls: int) -> None:
    def run(protocol: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, TESTS / "forking_callers.py", setting, urls[protocol], str(calls)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    protocols = ("http", "grpc")
    with ThreadPoolExecutor(2) as pool:
        for protocol, done in zip(protocols, pool.map(run, protocols), strict=True):
            assert done.returncode == 0, done.stderr
            counts = json.loads(done.stdout.splitlines()[-1])
            seconds, died = counts.pop("seconds"), counts.pop("died", 0)
            assert set(counts) == {"right"}, counts
            # gRPC's own library does not bear a fork amid its calls: about one child in sixty ends there.
            assert died <= (2 if (setting, protocol) == ("fork_amid_calls", "grpc") else 0)
            assert counts["right"] >= calls * (0.95 - 0.05 * died)
            assert seconds < 60


def test_the_settings_make_ten_thousand_calls() -> None:
    assert 2 * sum(SETTINGS.values()) >= 10_000


def test_a_spawned_process_is_told_to_make_a_client_of_its_own(urls: dict[str, str]) -> None:
    program = f"""
import multiprocessing
from tritonrank_client import RankClient

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=print, args=(RankClient({urls["http"]!r}),))
    try:
        process.start()
    except TypeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "make a client there" in done.stdout, done.stderr


def test_a_loop_that_was_forked_is_refused_by_name(urls: dict[str, str]) -> None:
    program = f"""
import asyncio, os
from tritonrank_client import AsyncRankClient

client, loop = AsyncRankClient({urls["http"]!r}), asyncio.new_event_loop()
loop.run_until_complete(client.rank(items=["a"]))
if os.fork() == 0:
    try:
        loop.run_until_complete(client.rank(items=["a"]))
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
assert loop.run_until_complete(client.rank(items=["b"])).artifact == "b"
loop.run_until_complete(client.close())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "asyncio.run()" in done.stdout


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_gevent_worker_may_be_forked(urls: dict[str, str], protocol: str) -> None:
    program = f"""
from gevent import monkey; monkey.patch_all()
import gevent, os
from tritonrank_client import RankClient

client = RankClient({urls[protocol]!r})
client.rank(items=["before"])

def ask(name):
    return all(client.rank(items=[f"{{name}} {{number}}"]).artifact == f"{{name}} {{number}}" for number in range(20))

children = []
for child in range(3):
    if (pid := os.fork()) == 0:
        jobs = [gevent.spawn(ask, f"child {{child}} greenlet {{greenlet}}") for greenlet in range(4)]
        gevent.joinall(jobs)
        os._exit(0 if all(job.value for job in jobs) else 1)
    children.append(pid)
assert ask("parent")
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
assert ask("parent")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
