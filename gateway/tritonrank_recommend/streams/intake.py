"""How ``POST /v1/events`` takes events: first into the stream, then into the store, both before it answers.

The stream is first, so that it holds everything that profiles hold, and a replay gives the same profiles. A gateway
that is killed in between leaves messages that other gateways claim. Where the store does not answer, the events are
safe in the stream, and count when it does.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tritonrank_recommend.events import Event
from tritonrank_recommend.log.layout import digest_of
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.stores.interface import Added, Store, StoreError
from tritonrank_recommend.streams.consumer import Consumer, StreamState
from tritonrank_recommend.streams.dead_letters import DeadLetters
from tritonrank_recommend.streams.erasing import erase_from, events_of_user
from tritonrank_recommend.streams.interface import Message, Stream
from tritonrank_recommend.streams.messages import bodies_of


@dataclass
class Intake:
    """The stream of a gateway, and its consumer. Used from one event loop.

    Attributes:
        stream: closed with this.
        store: it takes events; it is not closed with this.
        consumer: started and closed with this.
        dead_letters: of the consumer.
        privacy: what of others' events is kept.
        log: whether events are for the training log.
    """

    stream: Stream
    store: Store
    consumer: Consumer
    dead_letters: DeadLetters
    privacy: Privacy
    log: bool

    @property
    def state(self) -> StreamState:
        """For metrics."""
        return self.consumer.state

    def watch(self, taken: Callable[[Sequence[Event]], None]) -> None:
        """Tell of events of other systems that were taken, some of which were new."""
        self.consumer.taken = taken

    def start(self) -> None:
        """Begin to read what others put into the stream."""
        self.consumer.start()

    async def close(self) -> None:
        """End; the stream keeps what it has."""
        await self.consumer.close()
        await self.stream.close()

    async def add_events(self, events: Sequence[Event]) -> Added:
        """Take events as they are kept: durable in the stream when this returns, and in the profiles unless queued.

        Raises:
            StreamError: the stream does not answer; whoever sends the same events again counts none twice.
        """
        bodies = bodies_of(events)
        appended = await self.stream.append(bodies, kept=True, taker=self.consumer.taker)
        try:
            added = await self.store.add_events(events, log=self.log)
        except (StoreError, asyncio.CancelledError) as error:
            if appended.is_taken:  # else the group's next reader has them
                now = time.time()
                pairs = zip(appended.offsets, bodies, strict=True)
                self.consumer.put_aside([Message(offset, body, True, now) for offset, body in pairs])
            if isinstance(error, asyncio.CancelledError):
                raise
            return Added(len(events), 0, is_queued=True)
        self.consumer.done(appended.offsets, is_taken=appended.is_taken)
        return added

    async def erase(self, names: Collection[str]) -> int:
        """Take a user out of the stream and the dead letters, before the store does; how many messages that changed.

        Args:
            names: that the user may be kept under.

        Raises:
            StreamError: the stream does not answer.
            OSError: the dead letters cannot be written anew.
        """
        erased = dict.fromkeys(map(digest_of, names), time.time())
        self.consumer.forget(erased)
        await self.stream.erased(erased)
        letters = await asyncio.to_thread(self.dead_letters.erase, names)
        return letters + await erase_from(self.stream, names, self.privacy)

    async def events_of(self, names: Collection[str]) -> list[Event]:
        """What the stream still holds of a user.

        Raises:
            StreamError: the stream does not answer.
        """
        return await events_of_user(self.stream, names, self.privacy)
