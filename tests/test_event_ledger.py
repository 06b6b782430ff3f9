"""What is late in the stream is waited for before anything is called lost."""

import asyncio
import time
from pathlib import Path

import pytest
from tritonrank_recommend.streams.interface import GROUP
from tritonrank_recommend.streams.opening import open_stream

from loadtests import event_ledger
from loadtests.event_ledger import wait_for_stream


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
