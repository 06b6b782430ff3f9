"""Events for tests of streams, as another system sends them: late ones, ones that come twice, ones of the same time."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from tritonrank_recommend.events import Event
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.streams.dump import dump
from tritonrank_recommend.streams.interface import Stream, StreamError
from tritonrank_recommend.streams.messages import read_message
from tritonrank_recommend.streams.opening import open_stream

NOW = float(int(time.time()))
TYPES = ("view", "click", "cart", "purchase", "rating", "skip", "search")
POISON = (b"{", b'{"type": "click"}', b'{"events": []}', b"\xff\xfe", b'{"type": "like", "user_id": "u1"}')


def sent_events(seed: int, count: int) -> list[bytes]:
    """Bodies of messages: of few users, many at the same second, some days late, a fifth twice, out of order."""
    chance = random.Random(seed)
    bodies = []
    for number in range(count):
        kind = chance.choice(TYPES)
        event = {
            "event_id": f"{seed}-{number}",
            "type": kind,
            "user_id": f"u{chance.randrange(12)}",
            "timestamp": NOW - chance.choice([0, 86_400 * 3]) + chance.randrange(30),
        }
        event |= {"query": f"quéry {number}"} if kind == "search" else {"item_id": f"i{chance.randrange(9)}"}
        event |= {"value": chance.choice([0.5, 3.5, 5])} if kind == "rating" else {}
        bodies.append(json.dumps(event).encode())
    bodies += chance.sample(bodies, count // 5)
    chance.shuffle(bodies)
    return bodies


async def append_all(stream: Stream, bodies: Sequence[bytes], together: int = 20) -> None:
    """As a producer does that keeps what was not acknowledged, and sends it again."""
    for start in range(0, len(bodies), together):
        while True:
            try:
                await stream.append(bodies[start : start + together], kept=False)
                break
            except StreamError:
                await asyncio.sleep(0.05)


def dump_of(url: str) -> bytes:
    """What a store holds, see ``streams/dump.py``."""

    async def read() -> bytes:
        store = open_store(url)
        try:
            return b"".join([line async for line in dump(store)])
        finally:
            await store.close()

    return asyncio.run(read())


def rebuilt(stream_url: str, folder: Path, *, seed: int = 0, start: str = "") -> bytes:
    """What a fresh store holds after one batch of everything in the stream, in any order, by a loop of its own."""

    async def build() -> None:
        stream, store = open_stream(stream_url), open_store(f"sqlite:{folder / f'rebuilt{seed}.db'}")
        assert stream is not None
        try:
            events: list[Event] = []
            async for message in stream.replay(start):
                try:
                    events += read_message(message, Privacy())
                except ValueError:
                    continue
            by_id = {(event.user_id, event.event_id): event for event in reversed(events)}  # the first one counts
            distinct = list(by_id.values())
            random.Random(seed).shuffle(distinct)
            await store.add_events(distinct, log=False)
        finally:
            await store.close()
            await stream.close()

    asyncio.run(build())
    return dump_of(f"sqlite:{folder / f'rebuilt{seed}.db'}")
