"""Events of a table into a store: in batches that other writers hardly notice, again and again with the same result."""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import polars as pl
from tritonrank_recommend.events import Event
from tritonrank_recommend.privacy import read_privacy
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Added, Store, StoreError

from tritonrank.errors import DataError
from tritonrank.system.progress import step

BATCH = 5_000
"""events; SQLite keeps other writers waiting for about a tenth of a second"""


@dataclass(frozen=True)
class Imported:
    """What became of the events.

    Attributes:
        accepted: new to the store.
        duplicates: known to it already, or twice in the table.
        users: with at least one event.
    """

    accepted: int
    duplicates: int
    users: int


def import_events(frame: pl.DataFrame, url: str, batch: int = BATCH) -> Imported:
    """Send events to a store. They are not for the training log: they lie in a table already.

    Args:
        frame: see ``ImportedEvents.frame``.
        url: of the store.
        batch: events at a time.

    Raises:
        DataError: the store cannot be used, or did not answer; what was sent before is kept, and counts once.
    """
    try:
        return asyncio.run(_import(frame, url, batch))
    except StoreError as error:
        raise DataError(f"{error}. What was imported is kept: run the command again, nothing counts twice") from error


async def _import(frame: pl.DataFrame, url: str, batch: int) -> Imported:
    privacy, store = read_privacy(os.environ), open_store(url)
    try:
        with step("importing events", total=frame.height) as bar:
            added = await _send_all(
                store, (list(map(privacy.event, one)) for one in _batches(frame, batch)), bar.advance
            )
    finally:
        await store.close()
    return Imported(added.accepted, added.duplicates, frame["user_id"].n_unique())


async def _send_all(store: Store, batches: Iterable[list[Event]], advance: Callable[[float], None]) -> Added:
    """A batch is made while the one before is written; never two at once, for their order counts."""
    accepted = duplicates = 0
    under_way: asyncio.Task[Added] | None = None
    for batch in chain(batches, [None]):
        if under_way is not None:
            added = await under_way
            accepted, duplicates = accepted + added.accepted, duplicates + added.duplicates
            advance(added.accepted + added.duplicates)
        if batch is not None:
            under_way = asyncio.create_task(store.add_events(batch, log=False))
            await asyncio.sleep(0)  # it begins now
    return Added(accepted, duplicates)


def _batches(frame: pl.DataFrame, size: int) -> Iterator[list[Event]]:
    names = ("user_id", "item_id", "type", "timestamp", "value", "query", "event_id")
    for part in frame.select(names).iter_slices(size):
        yield [
            Event(
                event_id=event_id or _id_of(user_id, item_id, kind, timestamp, value, query),
                user_id=user_id,
                type=kind,
                timestamp=float(timestamp),
                item_id=item_id,
                query=query,
                value=value,
            )
            for user_id, item_id, kind, timestamp, value, query, event_id in part.iter_rows()
        ]


def _id_of(*cells: str | int | float | None) -> str:
    """An id that the same row has whenever it is imported; a row that comes twice is one event."""
    return hashlib.blake2b("\x1f".join(map(str, cells)).encode(), digest_size=12).hexdigest()
