"""The training log: every acknowledged event in it once, whatever is killed, and no erased user left."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tritonrank_recommend.events import Event
from tritonrank_recommend.log import layout, parquet, upkeep
from tritonrank_recommend.log.event_log import MOST_WAITING_LISTS, EventLog
from tritonrank_recommend.log.impression import Impression
from tritonrank_recommend.log.parquet import IMPRESSION_SCHEMA, read_whole, replaced_by
from tritonrank_recommend.stores.interface import Store
from tritonrank_recommend.stores.sqlite import SqliteStore

HOUR = 3_600.0
START = 1_795_745_000.0  # 2026-11-27, 02:03:20
SECRET = "user-4711-whom-nobody-may-find"


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def event(number: int, user: str = "ann", at: float = START) -> Event:
    return Event(
        event_id=f"e{number}", user_id=user, type="click", timestamp=at, item_id=f"i{number % 7}", received_at=at
    )


def shown(number: int, user: str = "ann", at: float = START) -> Impression:
    return Impression(
        f"page{number}", user, "lamp", at, "artifact", ("i1", "i2"), (0, 1), (1, 0), (0.1, 0.0), (0.0, 0.1)
    )


def counting(log: Path, kind: str = layout.EVENTS) -> list[Path]:
    """The files that count."""
    return [file for hour in layout.hour_folders(log, kind) for file in layout.counting_files(hour, replaced_by)]


def logged(log: Path, column: str = "event_id", kind: str = layout.EVENTS) -> list[str]:
    return [value for file in counting(log, kind) for value in read_whole(file)[column].to_pylist()]


def traces(folder: Path, text: str) -> list[Path]:
    """The files in which a text stands, in their raw bytes or in the columns of a table."""
    found = []
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        content = file.read_bytes()
        if file.suffix == ".parquet":
            content += json.dumps(pq.ParquetFile(file).read().to_pylist()).encode()
        if text.encode() in content:
            found.append(file)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def within(tmp_path: Path, clock: Clock, work: Callable[[Store], Awaitable[None]]) -> None:
    async def run() -> None:
        store = SqliteStore(tmp_path / "store.db", clock=clock)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


class Killed(BaseException):
    """Ends a step as a kill would: nothing of it runs on."""


class Dying:
    """A store on whose call of ``outbox_done`` the process dies, before the store hears of it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def outbox_done(self, through: int) -> None:
        raise Killed


def test_events_get_into_the_log_once_in_order(tmp_path: Path, folder: Path, clock: Clock) -> None:
    async def work(store: Store) -> None:
        log = EventLog(folder, store, clock=clock)
        await store.add_events([event(number) for number in range(5)])
        assert await log.step() == 5
        await store.add_events([event(number) for number in range(3, 9)])  # the same two again
        assert await log.step() == 4
        assert await log.step() == 0
        await log.close()

    within(tmp_path, clock, work)
    assert logged(folder) == [f"e{number}" for number in range(9)]
    assert [layout.numbers_of(file) for file in counting(folder)] == [(1, 5), (6, 9)]
    row = read_whole(counting(folder)[0]).to_pylist()[0]
    assert row == {
        "event_id": "e0", "user_id": "ann", "item_id": "i0", "type": "click", "query": "", "timestamp": START,
        "value": None, "page": "", "position": None, "received_at": START, "weight": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("hours", [0, 1], ids=["within the hour", "in the next hour"])
def test_a_batch_whose_writer_died_is_not_written_again(tmp_path: Path, folder: Path, clock: Clock, hours: int) -> None:
    async def work(store: Store) -> None:
        await store.add_events([event(number) for number in range(5)])
        with pytest.raises(Killed):
            await EventLog(folder, cast(Store, Dying(store)), clock=clock).step()
        await store.add_events([event(number) for number in range(5, 8)])  # before anybody looks again
        clock.now += 20 + hours * HOUR
        assert await EventLog(folder, store, clock=clock).step() == 3

    within(tmp_path, clock, work)
    assert sorted(logged(folder)) == [f"e{number}" for number in range(8)]


def test_a_store_from_a_copy_does_not_lose_what_gets_old_numbers(tmp_path: Path, folder: Path, clock: Clock) -> None:
    async def first(store: Store) -> None:
        await store.add_events([event(number) for number in range(5)])
        await EventLog(folder, store, clock=clock).step()

    async def other(store: Store) -> None:
        clock.now += 20
        await store.add_events([event(number) for number in range(100, 105)])
        assert await EventLog(folder, store, clock=clock).step() == 5

    within(tmp_path, clock, first)
    for file in tmp_path.glob("store.db*"):
        file.unlink()
    within(tmp_path, clock, other)
    assert len(logged(folder)) == 10


def test_what_lies_in_the_log_is_not_replaced_by_a_file_of_that_name(
    tmp_path: Path, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was put back gives numbers again, and a claim that it kept may name a file with other events."""
    lots = iter(["0" * 8, "1" * 8, "0" * 8, *(f"{number:08x}" for number in range(2, 99))])
    for module in (layout, parquet):
        monkeypatch.setattr(module, "new_lot", lambda: next(lots))

    def work(numbers: range) -> Callable[[Store], Awaitable[None]]:
        async def write(store: Store) -> None:
            await store.add_events([event(number) for number in numbers])
            assert await EventLog(folder, store, clock=clock).step() == 5

        return write

    within(tmp_path, clock, work(range(5)))
    for file in tmp_path.glob("store.db*"):
        file.unlink()
    within(tmp_path, clock, work(range(5, 10)))
    assert sorted(logged(folder)) == [f"e{number}" for number in range(10)]
    assert len(counting(folder)) == 2


def test_one_of_two_gateways_writes_and_the_other_takes_over(tmp_path: Path, folder: Path, clock: Clock) -> None:
    async def work(store: Store) -> None:
        one, two = (EventLog(folder, store, clock=clock) for _ in range(2))
        for number in range(20):
            await store.add_events([event(number)])
            await asyncio.gather(one.step(), two.step())
        assert {one.state.written_events, two.state.written_events} == {0, 20}
        writing, waiting = (one, two) if one.state.writes_events else (two, one)
        await store.add_events([event(20)])
        assert await waiting.step() == 0
        await writing.close()  # writes what waits, and gives the lease back
        await store.add_events([event(21)])
        assert await waiting.step() == 1
        await store.add_events([event(22)])
        clock.now += 20  # as long as if the holder had been killed
        assert await writing.step() == 1

    within(tmp_path, clock, work)
    assert logged(folder) == [f"e{number}" for number in range(23)]


class Standing:
    """A store whose process stands still before or after a call, until it is told to go on."""

    def __init__(self, store: Store, call: str, *, before: bool) -> None:
        self._store, self._call, self._before = store, call, before
        self.stands, self.goes_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        do = getattr(self._store, name)
        if name != self._call or self.stands.is_set():
            return do

        async def stand(*arguments: Any) -> Any:
            answer = None if self._before else await do(*arguments)
            self.stands.set()
            await self.goes_on.wait()
            return await do(*arguments) if self._before else answer

        return stand


@pytest.mark.parametrize("is_hour_over", [False, True], ids=["within the hour", "in the next hour"])
@pytest.mark.parametrize("told", [True, False], ids=["told", "killed before"])
@pytest.mark.parametrize(
    ("call", "before"),
    [("put_new", False), ("put_new", True), ("outbox", False), ("take_lease", False)],
    ids=["with a claim", "before the claim", "with what waited", "with the lease"],
)
def test_who_stood_still_for_longer_than_the_lease_writes_nothing_twice(
    tmp_path: Path, folder: Path, clock: Clock, call: str, before: bool, told: bool, is_hour_over: bool
) -> None:
    if is_hour_over:
        clock.now += HOUR - clock.now % HOUR - 10

    async def work(store: Store) -> None:
        standing = Standing(store, call, before=before)
        first = EventLog(folder, cast(Store, standing), clock=clock)
        await store.add_events([event(number) for number in range(5)])
        step = asyncio.create_task(first.step())
        await asyncio.wait_for(standing.stands.wait(), 60)
        await store.add_events([event(number) for number in range(5, 8)])
        clock.now += 16
        if told:
            second = EventLog(folder, store, clock=clock)
            assert await second.step() == 8
            await second.close()  # and another one may write
        else:
            with pytest.raises(Killed):
                await EventLog(folder, cast(Store, Dying(store)), clock=clock).step()
            clock.now += 16
        standing.goes_on.set()
        await step
        await first.step()

    within(tmp_path, clock, work)
    assert sorted(logged(folder)) == [f"e{number}" for number in range(8)]


def test_events_wait_while_the_disk_is_full(
    tmp_path: Path, folder: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: Store) -> None:
        folder.write_text("a file in the folder's place: nothing can be written below it")
        log = EventLog(folder, store, clock=clock, every_seconds=0.01)
        log.log_impression(shown(1))
        log.start()
        await store.add_events([event(number) for number in range(3)])
        while log.state.failures < 3:
            await asyncio.sleep(0.01)
        assert log.state.written_events == 0
        folder.unlink()
        while log.state.written_events < 3 or log.state.written_lists < 1 or log.state.waiting_since:
            await asyncio.sleep(0.01)
        assert log.state.written_events == 3
        await log.close()

    within(tmp_path, clock, work)
    assert len(logged(folder)) == 3
    assert logged(folder, "page", layout.IMPRESSIONS) == ["page1"]
    assert [record.getMessage() for record in caplog.records if str(folder) in record.getMessage()] != []


def test_shown_lists_are_bounded_in_memory(tmp_path: Path, folder: Path, clock: Clock) -> None:
    async def work(store: Store) -> None:
        log = EventLog(folder, store, clock=clock)
        for number in range(MOST_WAITING_LISTS + 2):
            log.log_impression(shown(number))
        assert log.state.lost_lists == 2
        await log.step()

    within(tmp_path, clock, work)
    pages = logged(folder, "page", layout.IMPRESSIONS)
    assert (len(pages), pages[0]) == (MOST_WAITING_LISTS, "page2")


async def written_hour(folder: Path, store: Store, clock: Clock, users: Iterable[str]) -> None:
    """A part with an event and a part with a shown list for each user, and the hour is over."""
    log = EventLog(folder, store, clock=clock)
    for number, user in enumerate(users):
        await store.add_events([event(number, user, clock.now)])
        log.log_impression(shown(number, user, clock.now))
        await log.step()
    await log.close()
    clock.now += HOUR


def test_the_parts_of_an_hour_become_one_file_even_if_joining_was_killed(
    tmp_path: Path, folder: Path, clock: Clock
) -> None:
    within(tmp_path, clock, lambda store: written_hour(folder, store, clock, ["ann", "bob", "cid"]))
    before = logged(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert upkeep.join_parts(folder, clock.now) == 2
    files = [file for hour in layout.hour_folders(folder, layout.EVENTS) for file in layout.files_of(hour)]
    assert [(file.name[:5], layout.numbers_of(file)) for file in files] == [("hour-", (1, 3))]
    assert logged(folder) == before

    # Killed before the parts were removed: all are there. Then it is done again, and ends alike.
    shutil.copytree(copy, folder, dirs_exist_ok=True)
    assert logged(folder) == before
    hour = layout.hour_folders(folder, layout.EVENTS)[0]
    layout.files_of(hour)[0].unlink()  # or while they were
    assert logged(folder) == before
    upkeep.join_parts(folder, clock.now)
    assert logged(folder) == before
    assert len(layout.files_of(hour)) == 1


def test_an_hour_that_is_joined_while_it_is_read_is_read_again(
    tmp_path: Path, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    within(tmp_path, clock, lambda store: written_hour(folder, store, clock, ["ann", "bob", "cid"]))
    hour = layout.hour_folders(folder, layout.EVENTS)[0]
    read = []

    def reading(file: Path, *columns: Any) -> pa.Table:
        if len(read) == 1:
            upkeep.join_parts(folder, clock.now)
        read.append(file)
        return read_whole(file, *columns)

    monkeypatch.setattr(parquet, "read_whole", reading)
    tables = parquet.read_hour(hour, ["user_id"])
    assert [user for table in tables for user in table["user_id"].to_pylist()] == ["ann", "bob", "cid"]
    assert [file.name[:5] for file in read] == ["part-", "part-", "hour-"]
    for file in layout.files_of(hour):
        file.write_bytes(b"torn")
    with pytest.raises(pa.ArrowInvalid):
        parquet.read_hour(hour)


def test_files_from_before_there_were_lots_are_joined_with_later_ones(tmp_path: Path) -> None:
    early = [field for field in IMPRESSION_SCHEMA if field.name not in ("policy_positions", "move_up", "move_down")]
    hour = layout.hour_folder(tmp_path, layout.IMPRESSIONS, START)
    hour.mkdir(parents=True)
    for number, schema in enumerate([pa.schema(early), IMPRESSION_SCHEMA]):
        row = msgspec.structs.asdict(shown(number))
        table = pa.Table.from_pylist([{name: row[name] for name in schema.names}], schema=schema)
        pq.write_table(table, hour / layout.file_name("part", number, number))
    assert upkeep.join_parts(tmp_path, START + 2 * HOUR) == 1
    (file,) = counting(tmp_path, layout.IMPRESSIONS)
    rows = {row["page"]: (row["policy_positions"], row["move_up"]) for row in read_whole(file).to_pylist()}
    assert rows == {"page0": (None, None), "page1": ([1, 0], [pytest.approx(0.1), 0.0])}


def test_many_parts_are_joined_while_the_hour_runs(tmp_path: Path, folder: Path, clock: Clock) -> None:
    async def work(store: Store) -> None:
        log = EventLog(folder, store, clock=clock)
        for number in range(upkeep.MOST_PARTS + 5):
            await store.add_events([event(number)])
            await log.step()

    within(tmp_path, clock, work)
    assert len(logged(folder)) == upkeep.MOST_PARTS + 5
    assert len(counting(folder)) == 6


def test_an_erased_user_leaves_no_trace(tmp_path: Path, folder: Path, clock: Clock) -> None:
    async def work(store: Store) -> None:
        await written_hour(folder, store, clock, ["ann", SECRET, "bob"])
        log = EventLog(folder, store, clock=clock)
        await store.add_events([event(10, SECRET, clock.now), event(11, "ann", clock.now)])
        log.log_impression(shown(10, SECRET, clock.now))
        await log.step()
        log.log_impression(shown(11, SECRET, clock.now))  # in memory
        await store.add_events([event(12, SECRET, clock.now)])  # in the outbox
        older = set(traces(folder, SECRET))
        clock.now += 1
        await store.erase_user(SECRET)
        await log.erase(SECRET)
        await log.step()
        left = set(traces(folder, SECRET))
        assert left < older
        assert all(not is_of_running_hour(file, clock) for file in left)
        assert not await store.erased_users()
        await store.add_events([event(13, SECRET, clock.now + 1)])  # who comes back is new
        await log.close()
        assert upkeep.sweep(folder) == 2
        assert "e13" in logged(folder)
        await store.erase_user(SECRET)

    within(tmp_path, clock, work)
    assert sorted(set(logged(folder, "user_id"))) == ["ann", "bob", SECRET]


def is_of_running_hour(file: Path, clock: Clock) -> bool:
    return file.parent == layout.hour_folder(file.parents[3], file.parents[2].name, clock.now)
