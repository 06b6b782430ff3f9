"""What a consumer of Kafka has been given and not acknowledged: its position is committed up to there.

Used from two threads: one reads, one acknowledges.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tritonrank_recommend.streams.interface import Message, StreamRefusedError


def offset_of(partition: int, place: int) -> str:
    """The offset of a message."""
    return f"{partition}:{place}"


def starts_of(text: str) -> dict[int, int]:
    """Places by partition from ``0:120,1:98``; a partition that is not named begins with its oldest message.

    Raises:
        StreamRefusedError: it is none.
    """
    starts = {}
    for one in filter(None, text.split(",")):
        partition, colon, place = one.partition(":")
        if not (colon and partition.isdecimal() and place.isdecimal() and one.isascii()):
            raise StreamRefusedError(f"offset {text!r}: expected PARTITION:OFFSET, such as 0:120 or 0:120,1:98")
        starts[int(partition)] = int(place)
    return starts


class Positions:
    """The open messages of one consumer, by partition."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, dict[int, tuple[Message, float]]] = {}
        self._next: dict[int, int] = {}

    def given(self, messages: Iterable[Message]) -> None:
        """These were read."""
        with self._lock:
            for message in messages:
                partition, place = _split(message.offset)
                self._open.setdefault(partition, {})[place] = message, time.monotonic()
                self._next[partition] = max(place + 1, self._next.get(partition, 0))

    def acknowledged(self, offsets: Sequence[str]) -> Mapping[int, int]:
        """Where partitions stand after that: the next place that is to be read after a restart."""
        with self._lock:
            touched = set()
            for offset in offsets:
                partition, place = _split(offset)
                if self._open.get(partition, {}).pop(place, None) is not None:
                    touched.add(partition)
            return {one: min(self._open[one], default=self._next[one]) for one in touched}

    def given_again(self, idle_seconds: float, most: int) -> list[Message]:
        """Messages that have been open for so long."""
        now = time.monotonic()
        with self._lock:
            late = [
                (partition, place, message)
                for partition, of in self._open.items()
                for place, (message, since) in of.items()
                if since <= now - idle_seconds
            ][:most]
            again = []
            for partition, place, message in late:
                message = msgspec.structs.replace(message, deliveries=message.deliveries + 1)
                self._open[partition][place] = message, now
                again.append(message)
        return again

    def lost(self, partitions: Iterable[int]) -> None:
        """Another consumer has these partitions from here on."""
        with self._lock:
            for partition in partitions:
                self._open.pop(partition, None)
                self._next.pop(partition, None)


def _split(offset: str) -> tuple[int, int]:
    partition, _, place = offset.partition(":")
    return int(partition), int(place)
