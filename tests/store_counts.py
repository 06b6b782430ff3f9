"""Counting what a store holds after something was killed."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from store_writer import BATCH, USERS, batch
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Added, Store


def start_writer(url: str) -> subprocess.Popen[str]:
    """A process that writes batches and prints the number of each that was acknowledged."""
    script = Path(__file__).with_name("store_writer.py")
    return subprocess.Popen([sys.executable, str(script), url], stdout=subprocess.PIPE, text=True)


def kill_after(writer: subprocess.Popen[str], batches: int, first: int = 0) -> int:
    """kill -9 once so many batches were acknowledged; the number of the last that was."""
    assert writer.stdout is not None
    for number in range(first, batches):
        assert writer.stdout.readline() == f"{number}\n", "the writer ended"
    writer.kill()
    numbers = writer.stdout.read().split("\n")[:-1]  # what stands behind the last line's end is half a number
    writer.wait()
    return int(numbers[-1]) if numbers else batches - 1


def check_after_a_kill(url: str, last: int) -> None:
    """Every acknowledged event is there, once; the batch that was torn, sent again, counts once.

    Args:
        url: of the store.
        last: number of the last batch that was acknowledged.
    """

    async def check() -> None:
        store = open_store(url)
        try:
            acknowledged = [event for number in range(last + 1) for event in batch(number)]
            waiting = await _waiting(store)
            assert Counter(event.event_id for event in acknowledged) <= waiting
            assert max(waiting.values()) == 1

            # The next batch may have been taken though nobody was told, or in part: what a client does is send again.
            torn = batch(last + 1)
            answer = await store.add_events(torn)
            assert answer.accepted + answer.duplicates == BATCH
            assert await store.add_events(torn) == Added(0, BATCH)
            assert await store.add_events(acknowledged[-800:]) == Added(0, len(acknowledged[-800:]))

            everything = [*acknowledged, *torn]
            assert await _waiting(store) == Counter(event.event_id for event in everything)
            await _check_counts(store, everything)
        finally:
            await store.close()

    asyncio.run(check())


async def _waiting(store: Store) -> Counter[str]:
    return Counter(event.event_id for _, event in await store.outbox(0, 10_000_000))


async def _check_counts(store: Store, events: Sequence[Event]) -> None:
    of_users = Counter(event.user_id for event in events)
    for user_id in (f"u{number}" for number in range(USERS)):
        profile = await store.profile(user_id)
        assert profile.counters.get("click", 0) == of_users[user_id]
        own = [event.item_id for event in events if event.user_id == user_id]
        assert [seen.item_id for seen in profile.events] == own[-200:]
    of_items = Counter(event.item_id for event in events)
    items = [f"i{place}" for place in range(BATCH)]
    assert await store.item_counters(items) == [{"click": of_items[item]} for item in items]
