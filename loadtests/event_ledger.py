"""Which events were acknowledged, and whether the store and the training log hold each of them, once.

Senders post batches until each is acknowledged, under the same ids, as the client library does; some batches are sent
again after that, some in part before.
"""

import asyncio
import json
import random
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonrank_client import RankError

from loadtests.json_connections import JsonConnections

if TYPE_CHECKING:
    from tritonrank_recommend.events import Event
    from tritonrank_recommend.stores.interface import Store

EVENT_SENDERS = 3
EVENT_PAUSE_SECONDS = 0.02
USERS_PER_SENDER = 20
BATCH = 3
AGAIN_SHARE = 0.2
"""Of batches that are sent once more after they were acknowledged, and of those of which a part is sent before."""
PATIENCE_SECONDS = 60.0
STREAM_SECONDS, OUTBOX_SECONDS, LOOK_SECONDS = 30.0, 10.0, 0.1
ANSWER_SECONDS = 2.0


@dataclass
class Events:
    """What senders know: events that were acknowledged, by user."""

    acknowledged: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    given_up: int = 0
    counted_twice: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))


def send_events(
    url: str,
    place: int,
    items: Sequence[str],
    events: Events,
    ended: threading.Event,
    clock: Callable[[], float] = time.time,
) -> None:
    """One sender, until it is ended.

    Args:
        url: of the gateway.
        place: of this sender; no two may have the same.
        items: ids that events may be about.
        events: takes what was acknowledged.
        ended: set when no further batch is to be begun.
        clock: of the sender, which may go wrong.
    """
    connections, chance = JsonConnections(url), random.Random(place)
    while not ended.wait(EVENT_PAUSE_SECONDS):
        user = f"sender-{place}-{chance.randrange(USERS_PER_SENDER)}"
        batch = [
            {
                "event_id": uuid.uuid4().hex,
                "user_id": user,
                "type": chance.choice(("view", "click", "cart")),
                "item_id": chance.choice(items),
                "timestamp": clock(),
            }
            for _ in range(BATCH)
        ]
        parts = [batch[:1], batch] if chance.random() < AGAIN_SHARE else [batch]
        answers = []
        for part in parts:
            if (answer := _post_until_taken(connections, part)) is None:
                events.given_up += 1
                return
            answers.append(answer)
        with events.lock:
            events.acknowledged[user] |= {str(event["event_id"]) for event in batch}
        if chance.random() < AGAIN_SHARE:
            with suppress(RankError):
                taken = json.loads(connections.post("/v1/events", {"events": batch}, ANSWER_SECONDS).body)
                # What the stream took while the store was away comes into the store later, and is told apart there:
                # of such batches ``count`` alone says whether they counted once.
                if taken["accepted"] and not any(one.get("queued") for one in (*answers, taken)):
                    events.counted_twice.append(f"{taken['accepted']} of a batch that was acknowledged before")


def _post_until_taken(connections: JsonConnections, batch: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The answer; None where nobody took it."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < ends:
        with suppress(RankError):
            answer: dict[str, Any] = json.loads(connections.post("/v1/events", {"events": batch}, ANSWER_SECONDS).body)
            return answer
        time.sleep(0.1)
    return None


async def wait_for_stream(store: str, seconds: float = STREAM_SECONDS) -> None:
    """Until the stream beside a store holds no event that is not in the store.

    What is acknowledged while the store is away, or by a gateway that is killed then, waits in the stream and comes
    into the store later: it is late, and not lost. What has not come when time is over is missed by whoever counts.

    Args:
        store: URL of the store of gateways that run.
        seconds: at the most.
    """
    from tritonrank_recommend.streams.interface import GROUP, StreamError
    from tritonrank_recommend.streams.opening import open_stream

    stream = open_stream("auto", store)
    if stream is None:
        return
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends:
            with suppress(StreamError):
                if not (await stream.lag(GROUP)).messages:
                    return
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await stream.close()


async def count(events: Events, store: str, log: Path) -> tuple[list[str], list[str]]:
    """What is missing and what is there twice, in the users' counters, and in log and outbox.

    The gateways have to run: what is in their stream comes into the store first, and what waits in the outbox into the
    log. An event that still waits may be in a file already, of which the store is told next: that counts once.
    """
    from tritonrank_recommend.stores import open_store

    lost: list[str] = []
    twice: list[str] = []
    await wait_for_stream(store)
    opened = open_store(store)
    try:
        for user, ids in events.acknowledged.items():
            counted = sum((await opened.profile(user)).counters.values())
            said = f"{user}: {counted} counted, {len(ids)} acknowledged"
            if counted != len(ids):
                (lost if counted < len(ids) else twice).append(said)
        waiting = Counter(event.event_id for _, event in await _waiting(opened))
    finally:
        await opened.close()
    logged = Counter(_logged(log))  # after the outbox: what comes from there meanwhile is not missed
    for user, ids in events.acknowledged.items():
        lost += [f"{user}: event {one} is not in the log" for one in ids if not logged[one] and not waiting[one]]
        for held, said in ((logged, "in the log"), (waiting, "in the outbox")):
            twice += [f"{user}: event {one} is {held[one]} times {said}" for one in ids if held[one] > 1]
    return lost, twice


async def _waiting(store: "Store") -> list[tuple[int, "Event"]]:
    """What is in the outbox once whoever writes the log has had time to take it."""
    ends = time.monotonic() + OUTBOX_SECONDS
    while (found := await store.outbox(await store.log_position(), 10_000_000)) and time.monotonic() < ends:
        await asyncio.sleep(LOOK_SECONDS)
    return found


def _logged(log: Path) -> list[str]:
    """The ids of events in the files that count."""
    from tritonrank_recommend.log import layout
    from tritonrank_recommend.log.parquet import read_hour

    tables = [table for hour in layout.hour_folders(log, layout.EVENTS) for table in read_hour(hour, ["event_id"])]
    return [event_id for table in tables for event_id in table["event_id"].to_pylist()]
