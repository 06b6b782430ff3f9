"""The file of the SQLite store: refused, shared, killed while it is written, and without a trace of who was erased."""

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_counts import check_after_a_kill, kill_after, start_writer
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Added, Profile, StoreError, StoreRefusedError
from tritonrank_recommend.stores.profiles import ID_SECONDS
from tritonrank_recommend.stores.sqlite import SqliteStore


def click(number: int, user: str = "ann", kind: str = "click") -> Event:
    return Event(event_id=f"e{number}", user_id=user, type=kind, timestamp=float(number), item_id=f"i{number}")  # type: ignore[arg-type]


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    asyncio.run(open_store(f"sqlite:{path}").close())
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreRefusedError, match=r"store\.db.*newer tritonrank.*99.*pip install"):
        open_store(f"sqlite:{path}")
    assert path.read_bytes() == before


def test_another_programs_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
    connection.close()
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, but longer than a header of SQLite: " * 20)
    for file in (path, text):
        before = file.read_bytes()
        with pytest.raises(StoreRefusedError, match=rf"{file.name}.*--store sqlite:FILE"):
            open_store(f"sqlite:{file}")
        assert file.read_bytes() == before
        assert [one.name for one in tmp_path.iterdir() if one.name.startswith(f"{file.name}-")] == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "expected sqlite:FILE"),
        ("store.db", "expected sqlite:FILE"),
        ("sqlite:", "expected sqlite:FILE"),
        ("mysql://host/db", "'mysql:' is no store"),
        ("sqlite:FILE?profile_days=0", "profile_days"),
        ("sqlite:FILE?days=3", "days is no option"),
        ("sqlite:/dev/null/store.db", "cannot be written"),
    ],
)
def test_what_is_no_store_is_named(url: str, message: str) -> None:
    with pytest.raises(StoreRefusedError, match=message):
        open_store(url)


def test_several_may_make_the_file_at_once(tmp_path: Path) -> None:
    def take(number: int) -> Added:
        async def add() -> Added:
            store = open_store(f"sqlite:{tmp_path / 'folder' / 'store.db'}")
            try:
                return await store.add_events([click(number)])
            finally:
                await store.close()

        return asyncio.run(add())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(take, range(6))) == [Added(1, 0)] * 6
    assert (tmp_path / "folder" / "store.db").stat().st_mode & 0o077 == 0


def test_one_that_fails_takes_nothing_of_the_others_with_it() -> None:
    async def run() -> None:
        store = open_store("sqlite::memory:")
        batches = [[click(1)], [click(2, "bob"), click(3, "bob", "no such type")], [click(4)]]
        answers = await asyncio.gather(*map(store.add_events, batches), return_exceptions=True)
        assert [answers[0], answers[2]] == [Added(1, 0), Added(1, 0)]
        assert isinstance(answers[1], KeyError)
        assert await store.profile("bob") == Profile("bob")
        assert len(await store.outbox(0, 10)) == 2
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.profile("bob")
        with pytest.raises(StoreError, match="closed"):
            await store.add_events([click(5)])

    asyncio.run(run())


def test_profiles_and_ids_end(tmp_path: Path) -> None:
    now = 1_700_000_000.0

    async def at(seconds: float, *events: Event) -> tuple[Added, Profile, int]:
        """What a gateway sees that is started at that time."""
        store = SqliteStore(tmp_path / "store.db", profile_days=30, clock=lambda: now + seconds)
        try:
            added = await store.add_events(events)
            await store.put("key", b"", 1)  # comes after the round of tidying up at the start
            profile = await store.profile("ann")
        finally:
            await store.close()
        with sqlite3.connect(tmp_path / "store.db") as connection:
            (ids,) = connection.execute("SELECT count(*) FROM ids").fetchone()
        connection.close()
        return added, profile, ids

    assert asyncio.run(at(0, click(1), click(2)))[2] == 2
    added, _, _ = asyncio.run(at(ID_SECONDS, click(1)))
    assert added == Added(0, 1)
    _, profile, ids = asyncio.run(at(2 * ID_SECONDS))
    assert (len(profile.events), ids) == (2, 0)
    _, profile, _ = asyncio.run(at(32 * 86_400))
    assert profile == Profile("ann")


def test_an_erased_user_leaves_no_bytes_in_the_file(tmp_path: Path) -> None:
    """Among many others, and after changes that make SQLite move rows from page to page."""
    path = tmp_path / "store.db"
    name, words = "the-user-who-goes", "words that only this user searched for"

    async def fill() -> None:
        store = open_store(f"sqlite:{path}")
        chance = random.Random(3)
        for number in range(60):
            others = [click(number * 100 + n, f"user {chance.randrange(500)}") for n in range(40)]
            own = Event(
                event_id=f"x{number}",
                user_id=name,
                type="search" if number % 2 else "view",
                timestamp=float(number),
                query=words,
                item_id="" if number % 2 else f"i{number}",
            )
            await store.add_events([*others, own])
            await store.put(f"page {number}", f"{words} {number}".encode(), 600, user_id=name)
            if number % 7 == 0:
                await store.outbox_done(number * 20)
        assert words.encode() in b"".join(file.read_bytes() for file in tmp_path.iterdir())  # the test can see it
        await store.erase_user(name)
        held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert words.encode() not in held
        assert held.count(name.encode()) <= 2  # the tombstone, and its place in the index
        await store.forget_erased([name])
        for number in range(60):
            await store.add_events([click(100_000 + number * 100 + n, f"user {n}") for n in range(40)])
        await store.close()
        assert name.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())

    asyncio.run(fill())


@pytest.mark.parametrize("batches", [1, 40, 150])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path, batches: int) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}"
    writer = start_writer(url)
    last = kill_after(writer, batches)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    check_after_a_kill(url, last)


def test_two_gateways_that_send_the_same_count_it_once(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}"
    writers = [start_writer(url), start_writer(url)]
    check_after_a_kill(url, max([kill_after(writer, 40) for writer in writers]))


@pytest.mark.slow
@pytest.mark.alone
def test_a_gateway_gets_its_turn_while_another_process_writes_large_batches(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}"
    large = """
import asyncio, itertools, sys, time
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores import open_store

async def main():
    store = open_store(sys.argv[1])
    for number in itertools.count():
        event = {"type": "click", "timestamp": 1.0, "item_id": "i"}
        batch = [Event(event_id=f"{number} {n}", user_id=f"u{n % 50}", **event) for n in range(5_000)]
        started = time.perf_counter()
        await store.add_events(batch, log=False)
        print(time.perf_counter() - started, flush=True)

asyncio.run(main())
"""

    async def worst() -> float:
        store = open_store(url)
        longest = 0.0
        for _ in range(20):
            started = time.perf_counter()
            await store.put("key", b"1", 60)
            longest = max(longest, time.perf_counter() - started)
            await asyncio.sleep(0.03)
        await store.close()
        return longest

    with subprocess.Popen([sys.executable, "-c", large, url], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            first = float(other.stdout.readline())
            longest_wait = asyncio.run(worst())
        finally:
            other.kill()
        longest_batch = max(first, *map(float, other.stdout.read().split()[:-1]))
    assert longest_wait < 2 * longest_batch + 0.3  # not ten of them, as without a pause
