"""Brings what lies in the stream into the store: every message at least once, every event once in effect.

A message is acknowledged when its events are durable in the store. A consumer that is killed in between leaves it
unacknowledged, another one claims it, and the store knows the ids of the events that it has. What nobody can take goes
to the dead letters and is acknowledged, so that it is in nobody's way. While the store does not answer, messages wait.

A message that fails alone, though the store answers, is tried some times and is a dead letter then; one that was given
out very often and never acknowledged most likely ends the processes that read it.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

from tritonrank_recommend.events import Event
from tritonrank_recommend.log.layout import digest_of
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.stores.interface import Store, StoreError
from tritonrank_recommend.streams.dead_letters import DeadLetters
from tritonrank_recommend.streams.interface import GROUP, Lag, Message, Stream, StreamError, StreamRefusedError, Taker
from tritonrank_recommend.streams.messages import PoisonError, read_message

LOG = logging.getLogger("tritonrank_recommend.streams")
MOST_TOGETHER = 2_000
"""messages that are read at once, and events that go to the store at once (or those of one message)"""
BLOCK_SECONDS = 0.5
IDLE_SECONDS = 5.0
"""A message that was not acknowledged for so long is claimed: longer than the store may take for a batch."""
ACKNOWLEDGE_SECONDS = 0.02
LOOK_SECONDS = 1.0
TRIM_SECONDS = 15.0
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
SUSPECT_DELIVERIES = 3
"""From then on a message is applied alone."""
MOST_DELIVERIES = 20
MOST_TRIES = 5
MOST_REMEMBERED = 20_000
REMEMBERED_SECONDS = 3_600.0
"""of who was erased: longer than a message is on its way"""
TOLD_EVERY_SECONDS = 60.0


@dataclass(slots=True)
class StreamState:
    """How the stream does, for metrics.

    Attributes:
        messages: that this process brought into the store and acknowledged, its own posts included.
        events: of other systems' and dead gateways' messages: new to the store.
        duplicates: alike, known to it.
        dead_letters: messages.
        claimed: messages that another consumer did not acknowledge.
        failures: calls of the stream or the store that did not succeed; they are made again.
        lag: of the group, at the last look.
    """

    messages: int = 0
    events: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    claimed: int = 0
    failures: int = 0
    lag: Lag = field(default_factory=Lag)


class _StoreAwayError(Exception):
    """The store takes nothing now."""


class Consumer:
    """One of the group's consumers, between ``start`` and ``close``. Used from one event loop.

    Args:
        stream: it is not closed with this.
        store: it takes events.
        dead_letters: for what nobody can take.
        privacy: what of others' events is kept.
        log: whether events are for the training log.
        keep: messages that stay in the stream behind what all groups have.
        idle_seconds: after which a message is claimed.
    """

    def __init__(
        self,
        stream: Stream,
        store: Store,
        dead_letters: DeadLetters,
        *,
        privacy: Privacy | None = None,
        log: bool = False,
        keep: int = 100_000,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.state = StreamState()
        self.taker = Taker(GROUP, f"gateway-{secrets.token_hex(6)}")
        self.taken: Callable[[Sequence[Event]], None] = lambda _: None
        """Told of the events of other systems that were new, or some of which were."""
        self._stream, self._store, self._dead_letters = stream, store, dead_letters
        self._privacy, self._log, self._keep, self._idle_seconds = privacy or Privacy(), log, keep, idle_seconds
        self._aside: list[Message] = []
        self._done: list[str] = []
        self._applied: OrderedDict[str, None] = OrderedDict()
        self._tries: dict[str, int] = {}
        self._erased: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._told_at = -TOLD_EVERY_SECONDS
        self._claimed_at = self._trimmed_at = 0.0

    def start(self) -> None:
        """Begin to read in the background."""
        create = asyncio.get_running_loop().create_task
        self._tasks = [create(self._read_on()), create(self._acknowledge_on()), create(self._look_on())]

    async def close(self) -> None:
        """Acknowledge what is done; what is not is claimed by another consumer at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(StreamError):
            await self._acknowledge()
            await self._stream.leave(self.taker.group, self.taker.consumer)

    def done(self, offsets: Sequence[str], *, is_taken: bool) -> None:
        """Messages are in the store already: acknowledge them within a moment, or when they are read."""
        if is_taken:
            self._done += offsets
            self.state.messages += len(offsets)
            return
        self._applied.update(dict.fromkeys(offsets))
        while len(self._applied) > MOST_REMEMBERED:
            self._applied.popitem(last=False)

    def put_aside(self, messages: Sequence[Message]) -> None:
        """Messages that this consumer was given, and that the store did not take."""
        self._aside += messages

    def forget(self, users: dict[str, float]) -> None:
        """These users were erased: what is on its way of them does not count (hash of the id -> when, unix seconds)."""
        self._erased = self._erased | users  # a new one: a batch on its way compares with what was known before

    async def look(self) -> None:
        """Note how far the group is behind, and drop what nobody needs.

        Raises:
            StreamError: the stream does not answer.
        """
        self.state.lag = await self._stream.lag(self.taker.group)
        if time.monotonic() >= self._trimmed_at + TRIM_SECONDS:
            self._trimmed_at = time.monotonic()
            await self._stream.trim(self._keep)

    async def step(self, block_seconds: float = BLOCK_SECONDS) -> int:
        """Take what waits: what the store refused before, what others left, what is new; how many messages.

        Raises:
            StreamError: the stream does not answer.
        """
        messages: list[Message] = []
        if time.monotonic() >= self._claimed_at + self._idle_seconds / 2:
            self._claimed_at = time.monotonic()
            # Not while the store is away: how often a message was claimed says whether it does harm.
            if await self._store_answers():
                claimed = await self._stream.claim(*self._names, self._idle_seconds, MOST_TOGETHER)
                self.state.claimed += len(claimed)
                messages += claimed
        messages += [one for one in self._aside if one.offset not in {again.offset for again in messages}]
        self._aside = []
        if not messages:
            messages = await self._stream.read(*self._names, MOST_TOGETHER, block_seconds)
        await self._take(messages)
        return len(messages)

    @property
    def _names(self) -> tuple[str, str]:
        return self.taker.group, self.taker.consumer

    async def _read_on(self) -> None:
        pause = SHORTEST_PAUSE_SECONDS
        while True:
            try:
                await self.step()
                pause = SHORTEST_PAUSE_SECONDS
            except Exception as error:  # noqa: BLE001 - whatever a step meets, events go on
                self._failed(error)
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)

    async def _acknowledge_on(self) -> None:
        while True:
            await asyncio.sleep(ACKNOWLEDGE_SECONDS)
            if self._done:
                try:
                    await self._acknowledge()
                except StreamError as error:
                    self._failed(error)
                    await asyncio.sleep(SHORTEST_PAUSE_SECONDS)

    async def _look_on(self) -> None:
        while True:
            try:
                await self.look()
            except StreamError as error:
                self._failed(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _take(self, messages: Sequence[Message]) -> None:
        """Bring messages into the store. Those that wait for it are put aside."""
        readable: list[tuple[Message, list[Event]]] = []
        for message in messages:
            if message.offset in self._applied:
                del self._applied[message.offset]
                self._finished([message])
            elif message.deliveries > MOST_DELIVERIES:
                times = f"it was given to consumers {message.deliveries} times, and none acknowledged it"
                await self._bury(message, times)
            else:
                try:
                    readable.append((message, read_message(message, self._privacy)))
                except PoisonError as error:
                    await self._bury(message, str(error))
        try:
            for batch in _batches(readable):
                await self._apply(batch)
                readable = readable[len(batch) :]
        except _StoreAwayError:
            self._aside += [message for message, _ in readable]
            await asyncio.sleep(SHORTEST_PAUSE_SECONDS)
        await self._acknowledge()

    async def _apply(self, batch: Sequence[tuple[Message, list[Event]]]) -> None:
        known = self._erased
        events = [event for _, of in batch for event in of if event.received_at > _erased_at(event.user_id, known)]
        try:
            added = await self._store.add_events(events, log=self._log)
        except Exception as error:  # StoreError, or what a message does to whoever reads it
            self._failed(error)
            if not await self._store_answers():
                raise _StoreAwayError from error
            if len(batch) > 1:
                for one in batch:
                    await self._apply([one])
                return
            message = batch[0][0]
            tries = self._tries[message.offset] = self._tries.get(message.offset, 0) + 1
            if tries >= MOST_TRIES:
                await self._bury(message, f"it failed {tries} times while the store answered: {error}")
            return  # until then it is claimed again, and is in nobody's way meanwhile
        self.state.events += added.accepted
        self.state.duplicates += added.duplicates
        self._finished([message for message, _ in batch])
        await self._acknowledge(always=True)
        for user in {event.user_id for event in events}:  # erased while the batch was on its way: once more
            if _erased_at(user, self._erased) > _erased_at(user, known):
                await self._store.erase_user(user)
        if added.accepted and (sent := [event for message, of in batch if not message.kept for event in of]):
            self.taken(sent)

    async def _bury(self, message: Message, reason: str) -> None:
        try:
            await asyncio.to_thread(self._dead_letters.add, message, reason)
        except OSError as error:  # a full disk; it is claimed later, and is in nobody's way
            self._failed(error)
            return
        # The reason may repeat what came, and texts of users do not belong into logs.
        LOG.warning("message %s is a dead letter; why, says %s", message.offset, self._dead_letters.file)
        self.state.dead_letters += 1
        self._finished([message])

    def _finished(self, messages: Sequence[Message]) -> None:
        self.state.messages += len(messages)
        for message in messages:
            self._done.append(message.offset)
            self._tries.pop(message.offset, None)

    async def _acknowledge(self, *, always: bool = False) -> None:
        """Acknowledge what is done; ``always`` asks who was erased even where nothing is."""
        if not self._done and not always:
            return
        done, self._done = self._done, []
        try:
            told = await self._stream.acknowledge(self.taker.group, done)
        except StreamError:
            self._done = done + self._done
            raise
        since = time.time() - REMEMBERED_SECONDS
        self._erased = {user: at for user, at in self._erased.items() if at > since} | dict(told)

    async def _store_answers(self) -> bool:
        try:
            return await self._store.ready()
        except StoreError:
            return False

    def _failed(self, error: Exception) -> None:
        self.state.failures += 1
        if time.monotonic() - self._told_at >= TOLD_EVERY_SECONDS or isinstance(error, StreamRefusedError):
            self._told_at = time.monotonic()
            LOG.error("%s: events wait (%s)", self._stream.name, error or type(error).__name__)


def _batches(readable: Sequence[tuple[Message, list[Event]]]) -> list[list[tuple[Message, list[Event]]]]:
    """Messages that go to the store together: in order, not too many events; those under suspicion alone."""
    batches: list[list[tuple[Message, list[Event]]]] = []
    for is_suspect, group in groupby(readable, lambda one: one[0].deliveries >= SUSPECT_DELIVERIES):
        size = MOST_TOGETHER
        for one in group:
            if is_suspect or size + len(one[1]) > MOST_TOGETHER:
                batches.append([])
                size = 0
            batches[-1].append(one)
            size += len(one[1])
    return batches


def _erased_at(user_id: str, erased: Mapping[str, float]) -> float:
    """When a user was erased, in unix seconds; 0 where that never was. ``erased`` knows hashes alone."""
    return erased.get(digest_of(user_id), 0.0) if erased else 0.0
