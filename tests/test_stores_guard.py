"""A store that hangs costs a request little, and then nothing: with a file that another process has locked."""

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores import GuardedStore, open_store
from tritonrank_recommend.stores.guard import FAILURES
from tritonrank_recommend.stores.interface import Added, StoreError

EVENT = Event(event_id="e1", user_id="ann", type="click", timestamp=1.0, item_id="i1")


def test_a_locked_store_fails_soon_then_at_once_and_comes_back_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def run() -> None:
        inner = open_store(f"sqlite:{path}")
        await inner.put("key", b"1", 60)
        store = GuardedStore(inner, read_seconds=20, put_seconds=0.05, other_seconds=20, rest_seconds=1.0)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        started = time.perf_counter()
        for _ in range(FAILURES):
            assert not store.open_circuit
            with pytest.raises(StoreError, match="50 ms"):
                await store.put("key", b"2", 60)
        assert time.perf_counter() - started >= 0.05 * FAILURES
        assert store.open_circuit
        with pytest.raises(StoreError, match="asked again"):  # reads too: nothing is asked
            await store.get("key")

        await asyncio.sleep(1.05)
        answers = await asyncio.gather(*(store.put("key", b"3", 60) for _ in range(5)), return_exceptions=True)
        assert ["50 ms" in str(answer) for answer in answers] == [True, False, False, False, False]  # one goes to see
        assert store.open_circuit

        other.execute("ROLLBACK")
        other.close()
        await asyncio.sleep(1.05)
        assert await store.get("key") in (b"1", b"2")  # who gave up cannot know
        assert await store.add_events([EVENT]) == Added(1, 0)
        await store.close()

    asyncio.run(run())


def test_one_failure_among_successes_opens_nothing() -> None:
    async def run() -> None:
        store = GuardedStore(open_store("sqlite::memory:"))
        await store.close()
        for _ in range(FAILURES - 1):
            with pytest.raises(StoreError, match="closed"):
                await store.profile("ann")
        assert not store.open_circuit

    asyncio.run(run())


def test_a_caller_with_a_shorter_limit_of_its_own_opens_the_circuit_too(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def run() -> None:
        store = GuardedStore(open_store(f"sqlite:{path}"), put_seconds=0.1)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(FAILURES):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(store.put("key", b"1", 60), 0.07)
        assert store.open_circuit
        other.execute("ROLLBACK")
        other.close()
        await store.close()

    asyncio.run(run())


def test_whoever_counts_is_told_what_became_of_each_call(tmp_path: Path) -> None:
    path, told = tmp_path / "store.db", list[tuple[str, str]]()

    async def run() -> None:
        store = GuardedStore(
            open_store(f"sqlite:{path}"),
            put_seconds=0.05,
            rest_seconds=60,
            watch=lambda operation, _, outcome: told.append((operation, outcome)),
        )
        await store.put("key", b"1", 60)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert store.answers
        for _ in range(FAILURES + 1):
            with pytest.raises(StoreError):
                await store.put("key", b"2", 60)
        assert not store.answers
        other.close()
        await store.close()

        closed = GuardedStore(open_store("sqlite::memory:"), watch=store.watch)
        await closed.close()
        with pytest.raises(StoreError, match="closed"):
            await closed.profile("ann")

    asyncio.run(run())
    assert told == [("put", "done"), *[("put", "late")] * FAILURES, ("put", "not_asked"), ("profile", "failed")]
