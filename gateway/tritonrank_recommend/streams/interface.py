"""The stream as everything else sees it. Three implementations pass one contract test.

A stream keeps messages in the order in which they came, each with an offset. A **group** of readers has every message
at least once: it is given to one of the group's consumers, waits until that one acknowledges it, and is claimed by
another one where it does not. Messages stay behind that, so that another group, or a replay, can read them again.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from tritonrank_recommend.stores.interface import StoreError

GROUP = "profiles"
"""The gateways: they bring events into profiles, counters and the outbox."""


class StreamError(StoreError):
    """The stream cannot be reached or does not answer in time; nothing was acknowledged."""


class StreamRefusedError(StreamError):
    """The URL, the file or the server is not one that can be used; trying again does not help."""


class Message(msgspec.Struct, frozen=True):
    """What lies in a stream.

    Attributes:
        offset: where; offsets of one stream are never given twice. Of Kafka ``PARTITION:OFFSET``.
        body: JSON in UTF-8, see ``messages.py``.
        kept: whether a gateway wrote it: its events were checked, and hold pseudonyms where there is a key.
        appended_at: unix seconds, by the stream's clock.
        deliveries: how often it was given to a consumer, this time included.
    """

    offset: str
    body: bytes
    kept: bool
    appended_at: float
    deliveries: int = 1


class Taker(msgspec.Struct, frozen=True):
    """The consumer that appends messages and deals with them at once, so that nobody else need do so."""

    group: str
    consumer: str


class Appended(msgspec.Struct, frozen=True):
    """What became of messages that were appended.

    Attributes:
        offsets: in the order of the messages.
        is_taken: they were given to the taker already: it acknowledges them. False where there was none, where others
            waited before them, or where the stream knows no such thing; a reader of the group gets them then.
    """

    offsets: list[str]
    is_taken: bool = False


class Lag(msgspec.Struct, frozen=True):
    """How far a group is behind.

    Attributes:
        messages: that are not acknowledged.
        seconds: since the oldest of them was appended; 0 where there is none.
        length: messages that the stream holds, those that the group has included.
    """

    messages: int = 0
    seconds: float = 0.0
    length: int = 0


class Stream(Protocol):
    """Raises StreamError from every method where the stream cannot answer. Used from one event loop.

    Attributes:
        name: for messages to people, without a password.
        can_erase: whether ``delete`` removes anything.
    """

    name: str
    can_erase: bool

    async def append(self, bodies: Sequence[bytes], *, kept: bool, taker: Taker | None = None) -> Appended:
        """Add messages; durable when this returns. After an error they may be there or not: append them again, for
        events count once by their ids."""

    async def read(self, group: str, consumer: str, most: int, block_seconds: float) -> list[Message]:
        """Messages that no consumer of the group was given yet, oldest first; none where none comes in that time.

        A group that is new begins with the oldest message that is there.
        """

    async def claim(self, group: str, consumer: str, idle_seconds: float, most: int) -> list[Message]:
        """Messages that a consumer was given so long ago and did not acknowledge; they are this one's now."""

    async def acknowledge(self, group: str, offsets: Sequence[str]) -> Mapping[str, float]:
        """The group has these messages.

        Returns:
            Who was erased in the last hour, by the hash of the id, and when (unix seconds), see ``erased``.
        """

    async def lag(self, group: str) -> Lag:
        """How far a group is behind."""

    def replay(self, start: str = "") -> AsyncIterator[Message]:
        """All messages from an offset on (that one included; "" from the oldest) to those that are there now, in order.
        No group is touched."""

    async def trim(self, keep: int) -> int:
        """Drop the oldest messages behind what all groups have acknowledged, but leave so many; how many went.

        Where there is no group, nothing goes.
        """

    async def delete(self, offsets: Collection[str]) -> int:
        """Take messages out; how many were there. Their offsets are not given again."""

    async def erased(self, users: Mapping[str, float]) -> None:
        """Remember for an hour who was erased and when: messages that a consumer holds just now may name them.

        Args:
            users: by ``log.layout.digest_of`` of the id, which would be a trace itself; unix seconds.
        """

    async def leave(self, group: str, consumer: str) -> None:
        """A consumer ends; what it did not acknowledge is claimed by others."""

    async def close(self) -> None:
        """Give connections and files back; what was appended stays."""
