"""From a stream, or from the training log, to a fresh store: the profiles and counters that live consumption gave.

They are equal to the byte (``dump.py``), since what a store holds does not depend on the order in which events come.
Three things are not: what ``profile_days`` has ended, what was imported by other ways, and an event that came again
after its id was forgotten (a week at least), which counted twice then and counts once here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from tritonrank_recommend.events import Event
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.stores.interface import Store
from tritonrank_recommend.streams.interface import Stream
from tritonrank_recommend.streams.messages import PoisonError, read_message

TOGETHER = 2_000


class Replayed(msgspec.Struct, frozen=True):
    """What became of what was read.

    Attributes:
        events: new to the store.
        duplicates: that came again.
        poison: messages that nobody can take; live they went to the dead letters.
    """

    events: int = 0
    duplicates: int = 0
    poison: int = 0


async def replay_stream(
    stream: Stream, store: Store, *, privacy: Privacy, start: str = "", advance: Callable[[int], None] = lambda _: None
) -> Replayed:
    """Read a stream again, from an offset on ("" from its oldest message).

    Args:
        stream: no group of it is touched.
        store: a fresh one.
        privacy: as the gateways have it.
        start: offset of the first message.
        advance: told of events that were read.

    Raises:
        StoreError: stream or store do not answer.
        StreamRefusedError: the offset is none.
    """
    poison = 0

    async def read() -> AsyncIterator[list[Event]]:
        nonlocal poison
        async for message in stream.replay(start):
            try:
                yield read_message(message, privacy)
            except PoisonError:
                poison += 1

    done = await _send(store, read(), advance)
    return msgspec.structs.replace(done, poison=poison)


async def replay_log(log: Path, store: Store, *, advance: Callable[[int], None] = lambda _: None) -> Replayed:
    """Read a training log again; rows of users that were erased are left out, as ``prepare`` leaves them out.

    Args:
        log: its folder, see docs/events.md. It holds what was kept: pseudonyms where there is a key.
        store: a fresh one.
        advance: told of events that were read.

    Raises:
        StoreError: the store does not answer.
        OSError: a file cannot be read.
    """
    pieces = _log_events(log)

    async def read() -> AsyncIterator[list[Event]]:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    return await _send(store, read(), advance)


async def _send(store: Store, pieces: AsyncIterator[list[Event]], advance: Callable[[int], None]) -> Replayed:
    accepted = duplicates = 0
    waiting: list[Event] = []

    async def flush() -> None:
        nonlocal accepted, duplicates
        for start in range(0, len(waiting), TOGETHER):
            batch = waiting[start : start + TOGETHER]
            added = await store.add_events(batch, log=False)  # they are in the log, or were when they came
            accepted, duplicates = accepted + added.accepted, duplicates + added.duplicates
            advance(len(batch))
        waiting.clear()

    async for piece in pieces:
        waiting += piece
        if len(waiting) >= TOGETHER:
            await flush()
    await flush()
    return Replayed(accepted, duplicates)


def _log_events(log: Path) -> Iterator[list[Event]]:
    from tritonrank_recommend.log import layout
    from tritonrank_recommend.log.parquet import EVENT_SCHEMA, conformed, read_in_pieces, replaced_by, without_users

    erased = layout.tombstones(log)
    for hour in layout.hour_folders(log, layout.EVENTS):
        for file in layout.counting_files(hour, replaced_by):
            for table in read_in_pieces(file):
                rows = without_users(conformed(table, EVENT_SCHEMA), layout.EVENTS, erased)
                yield list(_events(rows.to_pylist()))


def _events(rows: Iterable[dict[str, object]]) -> Iterator[Event]:
    for row in rows:
        named = {name: row[name] for name in Event.__struct_fields__ if row[name] is not None}
        yield Event(**named)  # type: ignore[arg-type]  # columns of the log's own schema
