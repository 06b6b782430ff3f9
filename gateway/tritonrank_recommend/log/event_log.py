"""From the store's outbox to the log's files, while the gateway serves: at most once in the files, at least once taken.

One gateway of several writes events: the one that holds the store's lease. A batch of events is one file, named by its
outbox numbers; once it is on the disk the store is told. After a kill in between the file is there and the store does
not know: whoever writes next looks for a file that begins where the store's position ends, and holds the events that
still wait. If it is there, nothing but the telling is left to do.

A gateway may stand still for longer than its lease, in the middle of writing. Before it writes it claims in the store
which numbers go into which file; whoever takes over finds the claim and writes the very same file.

What was shown is written by each gateway for itself, from memory: losing the lists of the last seconds with a killed
process costs some negatives, while writing each of them durably would cost every answer its milliseconds.

A disk that is full stops nothing: events wait in the store, and the log goes on by itself when there is room.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from tritonrank_recommend.events import Event
from tritonrank_recommend.log import layout, upkeep
from tritonrank_recommend.log.impression import Impression
from tritonrank_recommend.log.parquet import (
    EVENT_SCHEMA,
    IMPRESSION_SCHEMA,
    event_table,
    impression_table,
    read_hour,
    read_whole,
    without_users,
    write_whole,
)
from tritonrank_recommend.stores.interface import Store, StoreError

LEASE = "events-log"
LEASE_SECONDS = 15.0
CLAIM_LEASES = 2.0
"""So many times as long as a lease a claim stands. An hour gets no new files a minute after its end, so no longer."""
MOST_ROWS = 20_000
"""Of one file."""
MOST_WAITING_LISTS = 10_000
"""Shown lists in memory; with 20 ids each about 20 MB. Older ones are given up for newer ones."""
TOLD_EVERY_SECONDS = 60.0
Result = TypeVar("Result")
LOG = logging.getLogger("tritonrank_recommend.log")


@dataclass(slots=True)
class LogState:
    """How the log does, for metrics.

    Attributes:
        written_events: by this process.
        written_lists: alike.
        lost_lists: that were shown and found no room in memory.
        failures: attempts to write that did not succeed.
        waiting_since: when the oldest event that is known to wait was received, unix seconds; 0 where none waits.
        writes_events: whether this gateway holds the lease.
    """

    written_events: int = 0
    written_lists: int = 0
    lost_lists: int = 0
    failures: int = 0
    waiting_since: float = 0.0
    writes_events: bool = False


class _Claim(msgspec.Struct, frozen=True):
    """Which events that wait go into which file.

    Attributes:
        through: the last one's number; they begin after the store's position.
        at: when it was claimed, unix seconds; tells the hour.
        lot: see ``layout.file_name``.
    """

    through: int
    at: float
    lot: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]

    def file(self, log: Path, position: int) -> Path:
        name = layout.file_name("part", position + 1, self.through, self.lot)
        return layout.hour_folder(log, layout.EVENTS, self.at) / name


class EventLog:
    """Writes a log until it is closed. Used from one event loop; files are written in a thread.

    Args:
        folder: of the log; it is made where it is not there.
        store: whose outbox is written.
        every_seconds: between two looks at the outbox.
        lease_seconds: after which another gateway goes on when this one was killed; a step takes less.
        clock: unix seconds, for tests.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        every_seconds: float = 3.0,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = LogState()
        self._folder, self._store, self._clock = folder, store, clock
        self._every_seconds, self._lease_seconds = every_seconds, lease_seconds
        self._owner = secrets.token_hex(8)
        self._shown: deque[Impression] = deque()
        self._working, self._reading = asyncio.Lock(), asyncio.Lock()
        self._is_certain = False
        self._joined_at_hour = -1
        self._told_at = -TOLD_EVERY_SECONDS
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write in the background."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Write what waits, as far as that works now, and let another gateway go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(OSError, StoreError):
            await self.step()
        with suppress(StoreError):
            await self._store.give_lease(LEASE, self._owner)

    def log_impression(self, shown: Impression) -> None:
        """Note a page that was shown; it is in the log some seconds later."""
        if len(self._shown) >= MOST_WAITING_LISTS:
            self._shown.popleft()
            self.state.lost_lists += 1
        self._shown.append(shown)

    async def step(self) -> int:
        """Write what waits: lists that were shown, and events where this gateway is the one to write them.

        Returns:
            Events that were written.

        Raises:
            OSError: the disk is full or cannot be written; nothing is lost, and the next step begins where this ended.
            StoreError: the store does not answer; alike.
        """
        async with self._working:
            await self._write_shown()
            self.state.writes_events = await self._take_lease()
            if not self.state.writes_events:
                self._is_certain = False  # another one writes meanwhile
                return 0
            await self._bury()
            written = await self._write_events()
            await self._join_once_an_hour()
            return written

    async def erase(self, user_id: str) -> bool:
        """Take a user, whom the store has erased already, out of this process and of the running hour's files.

        Returns:
            Whether that is done; else another gateway writes the log and does it within seconds: the store tells it.

        Raises:
            OSError: a file cannot be written; the next step tries again.
            StoreError: the store does not answer; alike.
        """
        async with self._working:
            self._shown = deque(one for one in self._shown if one.user_id != user_id)
            is_ours = await self._take_lease()
            if is_ours:
                await self._bury()
            return is_ours

    async def rows_of(self, user_id: str) -> list[dict[str, object]]:
        """What the files hold of a user: events and shown lists, oldest first, each with ``kind``.

        Raises:
            OSError: a file cannot be read.
        """
        async with self._reading:  # one at a time: each reads the whole log
            return await _in_thread(partial(_rows_of, self._folder, user_id))

    async def _run(self) -> None:
        while True:
            try:
                await self.step()
            # Whatever it is, events wait in the store meanwhile, and the next step may go better.
            except Exception as error:  # noqa: BLE001 - whatever a step meets, the log goes on
                self.state.failures += 1
                if time.monotonic() - self._told_at >= TOLD_EVERY_SECONDS:
                    self._told_at = time.monotonic()
                    LOG.error("%s: the log cannot be written, events wait in the store (%s)", self._folder, error)
            await asyncio.sleep(self._every_seconds)

    async def _write_shown(self) -> None:
        while self._shown:
            shown = [self._shown.popleft() for _ in range(min(len(self._shown), MOST_ROWS))]
            now = self._clock()
            number = int(now * 1_000)
            file = layout.hour_folder(self._folder, layout.IMPRESSIONS, now) / layout.file_name("part", number, number)
            try:
                await _in_thread(partial(_write_lists, file, shown))
            except OSError:
                room = MOST_WAITING_LISTS - len(self._shown)
                self.state.lost_lists += max(0, len(shown) - room)
                self._shown.extendleft(reversed(shown[-room:] if room else []))
                raise
            self.state.written_lists += len(shown)

    async def _write_events(self) -> int:
        written, position = 0, await self._store.log_position()
        while waiting := await self._store.outbox(position, MOST_ROWS):
            self.state.waiting_since = min(event.received_at or self._clock() for _, event in waiting)
            through = 0
            if not self._is_certain:
                through = await _in_thread(partial(_written_through, self._folder, position, waiting))
            if not through:
                if not await self._take_lease():
                    return written  # somebody else took over while this process stood still
                self._is_certain = False
                claim = await self._claimed(position, waiting[-1][0])
                if claim.through != waiting[-1][0]:  # another one's, who saw more or fewer of them
                    waiting = await self._store.outbox(position, MOST_ROWS)
                events = [event for number, event in waiting if number <= claim.through]
                if not events:  # written and told meanwhile
                    position = claim.through
                    continue
                await _in_thread(partial(_write_events, claim.file(self._folder, position), events, claim.at))
                through = claim.through
                written += len(events)
                self.state.written_events += len(events)
            await self._store.outbox_done(through)
            self._is_certain = True
            position = through
        self._is_certain = True
        self.state.waiting_since = 0.0
        return written

    async def _claimed(self, position: int, through: int) -> _Claim:
        """The claim on what follows a position: our own, unless there is one."""
        own = msgspec.json.encode(_Claim(through, self._clock(), layout.new_lot()))
        seconds = CLAIM_LEASES * self._lease_seconds
        return msgspec.json.decode(await self._store.put_new(f"{LEASE}:{position}", own, seconds), type=_Claim)

    async def _take_lease(self) -> bool:
        return await self._store.take_lease(LEASE, self._owner, self._lease_seconds)

    async def _bury(self) -> None:
        """Erase from the log who was erased from the store, whichever gateway was asked to."""
        erased = dict(await self._store.erased_users())
        if erased:
            await _in_thread(lambda: upkeep.erase_from_running_hour(self._folder, erased))
            await self._store.forget_erased(list(erased))

    async def _join_once_an_hour(self) -> None:
        now = self._clock()
        hour = int(now // layout.SECONDS_PER_HOUR)
        running = [(kind, layout.hour_folder(self._folder, kind, now)) for kind in layout.KINDS]
        if hour != self._joined_at_hour and now % layout.SECONDS_PER_HOUR > 60:
            await _in_thread(lambda: upkeep.join_parts(self._folder, now))
            self._joined_at_hour = hour
        else:
            await _in_thread(lambda: upkeep.join_parts(self._folder, now, running))


async def _in_thread(work: Callable[[], Result]) -> Result:
    """What ``work`` gives; it is waited for even if whoever waits is cancelled, so that no two write at once."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _write_lists(file: Path, shown: Sequence[Impression]) -> None:
    write_whole(file, iter([impression_table(shown)]), IMPRESSION_SCHEMA)


def _write_events(file: Path, events: Sequence[Event], now: float) -> None:
    if file.exists():
        if _holds(file, events):
            return
        file = file.with_name(layout.file_name("part", *layout.numbers_of(file)))  # what is in the log stays there
    write_whole(file, iter([event_table(events, now)]), EVENT_SCHEMA)


def _holds(file: Path, events: Sequence[Event]) -> bool:
    return {event.event_id for event in events} <= set(read_whole(file, ["event_id"])["event_id"].to_pylist())


def _written_through(log: Path, position: int, waiting: Sequence[tuple[int, Event]]) -> int:
    """The last number of a file that holds the first events that wait already; 0 where there is none.

    Numbers alone do not tell: a store that was put back from a copy gives them a second time.
    """
    for file in log.glob(f"{layout.EVENTS}/date=*/hour=*/part-{position + 1:012d}-*.parquet"):
        _, last = layout.numbers_of(file)
        events = [event for number, event in waiting if number <= last]
        if events and _holds(file, events):
            return last
    return 0


def _rows_of(log: Path, user_id: str) -> list[dict[str, object]]:
    erased = layout.tombstones(log)
    found: list[dict[str, object]] = []
    for kind in layout.KINDS:
        for hour in layout.hour_folders(log, kind):
            for rows in read_hour(hour, user_id=user_id):
                found += [{"kind": kind} | row for row in without_users(rows, kind, erased).to_pylist()]
    return found
