"""Many callers around one client that was used before its process forked; each looks whether its answers are its own.

    python forking_callers.py SETTING URL CALLS [SECONDS]

The server names the first item as the artifact (`misbehaving_server.Echo`), so an answer tells whose it is. The last
line is JSON: how many answers were right and wrong, and the errors by type.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tritonrank_client import AsyncRankClient, RankClient, RankResult

CHILDREN = 4
THREADS = 3


class Tally:
    """Counts answers by whether they were the caller's own."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def judge(self, asked: str, result: RankResult) -> None:
        is_own = result.artifact == asked and result.ranking[0].item == asked
        self.add("right" if is_own else "wrong")


def name(number: int) -> str:
    return f"process {os.getpid()} thread {threading.get_ident()} call {number}"


def call(client: RankClient, tally: Tally, calls: int) -> None:
    for number in range(calls):
        asked = name(number)
        try:
            tally.judge(asked, client.rank(items=[asked]))
        except Exception as error:  # noqa: BLE001 - the kind is what is counted
            tally.add(f"{type(error).__name__}: {error}"[:300])


def call_in_threads(client: RankClient, tally: Tally, calls: int) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: call(client, tally, calls // THREADS), range(THREADS)))


async def call_in_tasks(client: AsyncRankClient, tally: Tally, calls: int) -> None:
    async def one(task: int) -> None:
        for number in range(calls // 8):
            asked = f"{name(number)} task {task}"
            try:
                tally.judge(asked, await client.rank(items=[asked]))
            except Exception as error:  # noqa: BLE001
                tally.add(f"{type(error).__name__}: {error}"[:300])

    await asyncio.gather(*(one(task) for task in range(8)))


def in_children(work: Callable[[Tally], None], tally: Tally, meanwhile: Callable[[Tally], None]) -> None:
    """Fork as a preforking server does; the parent goes on, and then adds up what the children counted."""
    pipes = []
    for _ in range(CHILDREN):
        reading, writing = os.pipe()
        if os.fork() == 0:
            own = Tally()
            try:
                work(own)
            except BaseException as error:  # noqa: BLE001
                own.add(f"{type(error).__name__}: {error}"[:300])
            finally:
                os.write(writing, json.dumps(own.counts).encode())
                os._exit(0)
        os.close(writing)
        pipes.append(reading)
    meanwhile(tally)
    for reading in pipes:
        with os.fdopen(reading) as told:
            tally.counts.update(json.loads(told.read() or '{"died": 1}'))
    for _ in range(CHILDREN):
        os.wait()


def threads(url: str, tally: Tally, calls: int) -> None:
    with RankClient(url) as client:
        call_in_threads(client, tally, calls)


def prefork(url: str, tally: Tally, calls: int) -> None:
    client = RankClient(url)
    client.health()
    share = calls // (CHILDREN + 1)

    def work(own: Tally) -> None:
        call(client, own, share // 2)  # the thread that forked, with all that it left in the client
        call_in_threads(client, own, share // 2)
        client.close()

    in_children(work, tally, lambda own: call(client, own, share))
    call(client, tally, 5)  # the children closed theirs
    client.close()


def closed_parent(url: str, tally: Tally, calls: int) -> None:
    """Closed in the parent while the children use it."""
    client = RankClient(url)
    client.rank(items=["first"])
    in_children(lambda own: call(client, own, calls // CHILDREN), tally, lambda _: client.close())


def forks_of_forks(url: str, tally: Tally, calls: int) -> None:
    client = RankClient(url)
    call(client, tally, 5)

    def work(own: Tally) -> None:
        call(client, own, 5)
        share = calls // CHILDREN // (CHILDREN + 1)
        in_children(lambda grandchild: call(client, grandchild, share), own, lambda child: call(client, child, share))

    in_children(work, tally, lambda own: call(client, own, 5))


def fork_amid_calls(url: str, tally: Tally, calls: int) -> None:
    """One thread forks while others are in calls."""
    client = RankClient(url)
    is_over = threading.Event()

    def keep_calling() -> None:
        while not is_over.is_set():
            call(client, tally, 1)

    callers = [threading.Thread(target=keep_calling) for _ in range(THREADS)]
    for caller in callers:
        caller.start()
    rounds = 5
    share = calls // CHILDREN // rounds
    for _ in range(rounds):
        in_children(lambda own: call(client, own, share), tally, lambda own: call(client, own, 3))
    is_over.set()
    for caller in callers:
        caller.join()


def _process(client: RankClient, results: Any, calls: int) -> None:
    own = Tally()
    call_in_threads(client, own, calls)
    results.put(dict(own.counts))


def workers(url: str, tally: Tally, calls: int) -> None:
    """multiprocessing's fork, with a client that was made but never used before."""
    context = multiprocessing.get_context("fork")
    client, results = RankClient(url), context.Queue()
    processes = [context.Process(target=_process, args=(client, results, calls // CHILDREN)) for _ in range(CHILDREN)]
    for process in processes:
        process.start()
    for _ in processes:
        tally.counts.update(results.get(timeout=60))
    for process in processes:
        process.join()


def loops(url: str, tally: Tally, calls: int) -> None:
    """asyncio: the loop of each child is its own."""
    client = AsyncRankClient(url)
    share = calls // (CHILDREN + 1)
    with asyncio.Runner() as runner:
        runner.run(call_in_tasks(client, tally, 8))
        in_children(
            lambda own: asyncio.run(call_in_tasks(client, own, share)),
            tally,
            lambda own: runner.run(call_in_tasks(client, own, share)),
        )
        runner.run(client.close())


def exits(url: str, tally: Tally, calls: int) -> None:
    """Children that end as programs do, with all destructors, and never use what they inherited."""
    client = RankClient(url)
    for _ in range(CHILDREN):
        call(client, tally, calls // CHILDREN // 2)
        if (child := os.fork()) == 0:
            sys.exit(0)
        call(client, tally, calls // CHILDREN // 2)
        os.waitpid(child, 0)
    call(client, tally, 20)


SETTINGS = {
    setting.__name__: setting
    for setting in (threads, prefork, closed_parent, forks_of_forks, fork_amid_calls, workers, loops, exits)
}


def main() -> None:
    setting, url, calls = SETTINGS[sys.argv[1]], sys.argv[2], int(sys.argv[3])
    tally, started = Tally(), time.monotonic()
    setting(url, tally, calls)
    print(json.dumps({"seconds": round(time.monotonic() - started, 2), **tally.counts}))


if __name__ == "__main__":
    main()
