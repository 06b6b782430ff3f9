"""Threads between the event loop and SQLite: one that writes, a few that read beside it.

A commit costs about as much as thirty small changes, so the writer takes everything that waits into one transaction.
Each piece of work has a savepoint of its own: one that fails takes nothing of the others with it.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from tritonrank_recommend.stores.interface import StoreError

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
MOST_TOGETHER = 64
"""pieces of work in one transaction"""
LONG_SECONDS = 0.03
TURN_SECONDS = 0.03
"""After a transaction that took long, other processes get their turn: SQLite has no queue, they look every 25 ms."""
REST_SECONDS = 60.0
"""between two rounds of tidying up"""
SHORT_REST_SECONDS = 1.0
"""where the last round left something"""
TRUNCATE_SECONDS = 2.0
"""An erasure waits so long until no reader needs the pages that still hold what was erased."""
log = logging.getLogger("tritonrank.store")


class _Task(NamedTuple):
    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    truncate: bool


class Writer:
    """One thread, one connection, a queue."""

    def __init__(self, connection: sqlite3.Connection, name: str, tidy: Work[bool]) -> None:
        """Start the thread.

        Args:
            connection: the thread's from now on.
            name: of the file, for messages.
            tidy: drops what has ended; called in a transaction, at once and then every minute. Whether there is more.
        """
        self._connection = connection
        self._name = name
        self._tidy = tidy
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._must_truncate = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def do(self, work: Work[Result], *, truncate: bool = False) -> Result:
        """What the work returns, once it is committed.

        Args:
            work: gets the connection, inside a transaction.
            truncate: empty the write-ahead log afterwards, for it holds what the work has removed.
        """
        if self._closed:
            raise StoreError(f"{self._name}: the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._tasks.put(_Task(work, loop, future, truncate))
        result: Result = await future
        return result

    def close(self) -> None:
        """Finish what waits, then end."""
        self._closed = True
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        due = 0.0
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + (SHORT_REST_SECONDS if self._tidy_up() else REST_SECONDS)
            try:
                tasks = [self._tasks.get(timeout=max(0.0, due - time.monotonic()))]
            except Empty:
                continue
            while tasks[-1] is not None and len(tasks) < MOST_TOGETHER:
                try:
                    tasks.append(self._tasks.get_nowait())
                except Empty:
                    break
            self._do_together([task for task in tasks if task is not None])
            if tasks[-1] is None:
                break
        self._connection.close()

    def _do_together(self, tasks: list[_Task]) -> None:
        tasks = [task for task in tasks if not task.future.cancelled()]  # nobody waits for these any more
        if not tasks:
            return
        started = time.monotonic()
        try:
            outcomes = self._commit([task.work for task in tasks])
        except sqlite3.Error as error:
            outcomes = [StoreError(f"{self._name}: {error}")] * len(tasks)
        was_long = time.monotonic() - started > LONG_SECONDS
        if any(task.truncate for task in tasks):
            self._must_truncate = True
            self._truncate(TRUNCATE_SECONDS)
        for task, outcome in zip(tasks, outcomes, strict=True):
            try:
                task.loop.call_soon_threadsafe(_settle, task.future, outcome)
            except RuntimeError:  # the loop has ended, and with it who asked
                continue
        if was_long:
            time.sleep(TURN_SECONDS)

    def _commit(self, works: list[Work[Any]]) -> list[Any]:
        """What each work returned, or the exception that it raised."""
        connection = self._connection
        outcomes: list[Any] = []
        connection.execute("BEGIN IMMEDIATE")
        try:
            for work in works:
                connection.execute("SAVEPOINT work")
                try:
                    outcomes.append(work(connection))
                except Exception as error:  # noqa: BLE001 - handed to who asked; the others' work goes on
                    connection.execute("ROLLBACK TO work")
                    outcomes.append(StoreError(f"{self._name}: {error}") if isinstance(error, sqlite3.Error) else error)
                connection.execute("RELEASE work")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has ended it already
                connection.execute("ROLLBACK")
            raise
        return outcomes

    def _tidy_up(self) -> bool:
        """Whether there is more to drop."""
        try:
            (is_more,) = self._commit([self._tidy])
            if self._must_truncate:
                self._truncate(0.0)
        except sqlite3.Error as error:
            log.warning("%s: could not drop what has ended: %s", self._name, error)
            return False
        return is_more is True  # and no exception

    def _truncate(self, seconds: float) -> None:
        """Move the write-ahead log into the file and empty it; a reader in another process may be in the way."""
        end = time.monotonic() + seconds
        while True:
            try:
                is_busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.Error:  # such as a full disk; what was erased is erased, its bytes go later
                is_busy = True
            if not is_busy:
                self._must_truncate = False
                return
            if time.monotonic() >= end:
                log.warning("%s: readers keep pages of before an erasure; they go within a minute", self._name)
                return
            time.sleep(0.01)


class Readers:
    """A few threads with a connection each; in WAL mode they wait for no writer."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], name: str, threads: int = 2) -> None:
        """Make the threads.

        Args:
            connect: makes a connection that only reads.
            name: of the file, for messages.
            threads: SQLite lets go of Python's lock while it reads, so a second one helps where a disk is slow.
        """
        self._name = name
        self._own = threading.local()
        self._connect = connect
        self._connections: list[sqlite3.Connection] = []
        self._pool = ThreadPoolExecutor(threads, "store-reader")

    async def do(self, work: Work[Result]) -> Result:
        """What the work returns; it gets a connection."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._do, work)
        except sqlite3.Error as error:
            raise StoreError(f"{self._name}: {error}") from error
        except RuntimeError as error:
            raise StoreError(f"{self._name}: the store is closed") from error

    def _do(self, work: Work[Result]) -> Result:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._connect()
            self._connections.append(connection)
        return work(connection)

    def close(self) -> None:
        """End the threads and their connections."""
        self._pool.shutdown()
        for connection in self._connections:
            connection.close()


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.cancelled():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
