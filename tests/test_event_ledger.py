"""What is late in the stream or in the outbox is waited for before anything is called lost, and counts once."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tritonrank_recommend.events import Event
from tritonrank_recommend.log import layout
from tritonrank_recommend.log.parquet import EVENT_SCHEMA, event_table, write_whole
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.streams.interface import GROUP
from tritonrank_recommend.streams.opening import open_stream

from loadtests import event_ledger
from loadtests.event_ledger import Events, count, wait_for_stream


async def waited(store: str, taken_after: float | None, seconds: float) -> float:
    """Seconds of waiting for a stream with an event that is taken so much later, or never."""
    stream = open_stream("auto", store)
    assert stream is not None
    await stream.append([b"{}"], kept=True)

    async def take() -> None:
        assert taken_after is not None
        await asyncio.sleep(taken_after / 2)
        (message,) = await stream.read(GROUP, "gateway", 10, 1.0)
        await asyncio.sleep(taken_after / 2)  # read, and not yet in the store
        await stream.acknowledge(GROUP, [message.offset])

    taking = asyncio.create_task(take()) if taken_after is not None else None
    started = time.monotonic()
    await wait_for_stream(store, seconds)
    took = time.monotonic() - started
    if taking is not None:
        assert taking.done()
    await stream.close()
    return took


def test_an_event_in_the_stream_is_waited_for_until_it_is_acknowledged(tmp_path: Path) -> None:
    asyncio.run(waited(f"sqlite:{tmp_path}/store.db", 0.8, 30.0))


def test_a_stream_that_nobody_reads_is_waited_for_so_long_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_ledger, "LOOK_SECONDS", 0.01)
    assert asyncio.run(waited(f"sqlite:{tmp_path}/store.db", None, 0.5)) >= 0.5


def test_a_store_without_a_stream_holds_nothing_up() -> None:
    asyncio.run(wait_for_stream("sqlite::memory:"))


def click(number: int) -> Event:
    return Event(event_id=f"e{number}", user_id="ann", type="click", timestamp=1.0, item_id="i1", received_at=1.0)


def test_lost_and_twice_are_told_of_the_files_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two of four events are in the outbox alone, the second is in a file and in the outbox."""
    monkeypatch.setattr(event_ledger, "OUTBOX_SECONDS", 0.3)
    url, folder, acknowledged = f"sqlite:{tmp_path}/store.db", tmp_path / "log", Events()
    hour = layout.hour_folder(folder, layout.EVENTS, 1.0)

    def write(name: str, numbers: Sequence[int], replaces: Sequence[str] = ()) -> None:
        rows = event_table([click(number) for number in numbers], 1.0)
        write_whole(hour / name, iter([rows]), EVENT_SCHEMA, replaces)

    async def counted() -> tuple[list[str], list[str]]:
        return await count(acknowledged, url, folder)

    async def add() -> None:
        store = open_store(url)
        await store.add_events([click(number) for number in range(4)])
        await store.outbox_done(1)
        await store.close()

    asyncio.run(add())
    acknowledged.acknowledged["ann"] = {"e0", "e1", "e2", "e3"}
    joined, parts = layout.file_name("hour", 1, 2), [layout.file_name("part", number, number) for number in (1, 2)]
    write(parts[0], [0])
    write(parts[1], [1])
    write(joined, [0, 1], parts)  # and killed before the parts were removed
    started = time.monotonic()
    assert asyncio.run(counted()) == ([], [])
    assert time.monotonic() - started >= 0.3, "who writes the log had time"

    write(layout.file_name("part", 2, 3), [1, 2])
    assert asyncio.run(counted()) == ([], ["ann: event e1 is 2 times in the log"])
    acknowledged.acknowledged["ann"] |= {"e4"}
    assert asyncio.run(counted())[0] == ["ann: 4 counted, 5 acknowledged", "ann: event e4 is not in the log"]
