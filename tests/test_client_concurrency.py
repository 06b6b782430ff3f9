"""Many callers at once: threads share a blocking client, tasks an asyncio one, and both give back what they took."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from misbehaving_server import QUEUE_FULL, Fail, MisbehavingServer, Slow
from tritonrank_client import AsyncRankClient, Overloaded, RankClient, Retry, ServerFault

PROTOCOLS = pytest.mark.parametrize("protocol", ["http", "grpc"])


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    yield server
    server.close()


@PROTOCOLS
def test_sixteen_threads_share_a_client_and_get_their_own_answers(server: MisbehavingServer, protocol: str) -> None:
    barrier = threading.Barrier(16)

    def work(number: int) -> list[str]:
        barrier.wait()
        items = [f"thread {number}", f"thread {number} has a longer one"]
        return [str(client.rank(items=items, top_k=1).ranking[0].item) for _ in range(10)]

    with RankClient(server.urls[protocol], timeout=20) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(work, range(16)))
    assert answers == [[f"thread {number} has a longer one"] * 10 for number in range(16)]
    assert len(server.asked) == 160


@PROTOCOLS
def test_threads_wait_side_by_side(server: MisbehavingServer, protocol: str) -> None:
    server.behave(Slow(0.25))
    with RankClient(server.urls[protocol], timeout=20) as client, ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        list(pool.map(lambda _: client.rank(items=["a"]), range(8)))
    assert time.monotonic() - started < 1.9, "one after the other would take 2 s"


@PROTOCOLS
def test_the_retry_budget_is_shared_by_threads(server: MisbehavingServer, protocol: str) -> None:
    server.behave(QUEUE_FULL)
    thrifty = Retry(attempts=5, initial_seconds=0, max_seconds=0, budget_ratio=0, budget_burst=6)

    def work(_: int) -> None:
        with pytest.raises(Overloaded):
            client.rank(items=["a"])

    with RankClient(server.urls[protocol], retry=thrifty, timeout=20) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(32)))
    assert len(server.asked) == 32 + 6


@PROTOCOLS
def test_a_call_that_runs_when_the_client_closes_ends_first(server: MisbehavingServer, protocol: str) -> None:
    server.behave(Slow(1.0))
    client = RankClient(server.urls[protocol], timeout=20)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.rank, items=["a"])
        while not server.asked:
            time.sleep(0.01)
        started = time.monotonic()
        client.close()
        assert time.monotonic() - started < 0.9, "close() does not wait"
        assert running.result(timeout=5).indices == (0,)
        deadline = time.monotonic() + 5
        while server.open_sockets and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not server.open_sockets, "the thread that used the HTTP connection must close it, and it still lives"
        with pytest.raises(RuntimeError, match="closed"):
            client.rank(items=["a"])


@PROTOCOLS
async def test_closing_during_an_async_call_does_not_look_like_a_cancelled_task(
    server: MisbehavingServer, protocol: str
) -> None:
    server.behave(Slow(0.4))
    client = AsyncRankClient(server.urls[protocol], timeout=20)
    running = asyncio.create_task(client.rank(items=["a"]))
    while not server.asked:
        await asyncio.sleep(0.01)
    await client.close()
    if protocol == "grpc":  # never cancelled on the wire
        assert (await running).indices == (0,)
    else:
        with pytest.raises(RuntimeError, match="closed during the call"):
            await running


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
@PROTOCOLS
def test_threads_that_end_leave_no_open_files(server: MisbehavingServer, protocol: str) -> None:
    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    def one_thread() -> None:
        thread = threading.Thread(target=lambda: client.rank(items=["a"]))
        thread.start()
        thread.join()

    with RankClient(server.urls[protocol], timeout=20) as client:
        one_thread()
        before = count()
        for _ in range(20):
            one_thread()
        deadline = time.monotonic() + 5
        while count() > before + 4 and time.monotonic() < deadline:  # the server in this process hangs up later
            time.sleep(0.05)
        assert count() <= before + 4


@PROTOCOLS
async def test_tasks_run_side_by_side(server: MisbehavingServer, protocol: str) -> None:
    server.behave(Slow(0.25))
    async with AsyncRankClient(server.urls[protocol], timeout=20) as client:
        started = time.monotonic()
        answers = await asyncio.gather(*(client.rank(items=[f"item {number}"]) for number in range(8)))
    assert time.monotonic() - started < 1.9, "one after the other would take 2 s"
    assert [answer.ranking[0].item for answer in answers] == [f"item {number}" for number in range(8)]


@PROTOCOLS
async def test_cancelling_a_task_ends_its_call(server: MisbehavingServer, protocol: str) -> None:
    server.behave(Slow(1.0), Slow(0))
    async with AsyncRankClient(server.urls[protocol], timeout=20) as client:
        task = asyncio.create_task(client.rank(items=["a"]))
        while not server.asked:
            await asyncio.sleep(0.01)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 0.9, "cancelling must not wait for the answer"
        answer = await client.rank(items=["b"])
        assert answer.ranking[0].item == "b"
        assert len(server.asked) == 2, "a cancelled call is not retried"


@PROTOCOLS
async def test_a_timeout_around_a_call_is_the_callers(server: MisbehavingServer, protocol: str) -> None:
    server.behave(Slow(0.5))
    async with AsyncRankClient(server.urls[protocol], timeout=20) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.rank(items=["a"])


async def test_a_call_cancelled_by_the_server_does_not_look_like_a_cancelled_task(server: MisbehavingServer) -> None:
    server.behave(Fail(400, "CANCELLED", "stopped by an operator"))
    async with AsyncRankClient(server.urls["grpc"], timeout=20) as client:
        with pytest.raises(ServerFault, match="cancelled, though not by its caller"):
            await client.rank(items=["a"])


@PROTOCOLS
def test_an_async_client_belongs_to_one_loop(server: MisbehavingServer, protocol: str) -> None:
    client = AsyncRankClient(server.urls[protocol], timeout=20)  # made outside any loop
    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(client.rank(items=["a"])).indices == (0,)
        with pytest.raises(RuntimeError, match="belongs to the event loop"):
            second.run(client.rank(items=["a"]))
        first.run(client.close())


@PROTOCOLS
def test_a_gevent_program_may_use_the_client(server: MisbehavingServer, protocol: str) -> None:
    """Locust patches threading: greenlets are its threads, and none may stop the others or miss its deadline."""
    program = f"""
from gevent import monkey; monkey.patch_all()
import gevent
from tritonrank_client import RankClient
with RankClient({server.urls[protocol]!r}, timeout=20) as client:
    for _ in range(2):
        jobs = [gevent.spawn(client.rank, items=[f"item {{number}}"]) for number in range(8)]
        gevent.joinall(jobs)
        assert [job.value.ranking[0].item for job in jobs] == [f"item {{number}}" for number in range(8)]
    late = [gevent.spawn(client.rank, items=["a"], timeout=0.05) for _ in range(4)]
    gevent.joinall(late, timeout=0.19)
    assert [type(job.exception).__name__ for job in late] == ["DeadlineExceeded"] * 4
"""
    server.behave(Slow(0.2))
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert len(server.asked) == 16 + 4
    arrivals = [asked.seconds for asked in server.asked]
    assert arrivals[7] - arrivals[0] < 1.3, "greenlets wait side by side; one by one would take 1.4 s"
    assert started < arrivals[0]
