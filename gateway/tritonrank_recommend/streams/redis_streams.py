"""The stream in Redis or Valkey: one key of type stream, read by consumer groups.

Everything lies in one slot of a cluster. Others write with ``XADD tr:{stream}:events * event JSON``; what gateways
write stands in the field ``kept``. An offset is the id that the server gives: milliseconds of its clock, and a number.
"""

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from tritonrank_recommend.stores.interface import StoreError, StoreRefusedError
from tritonrank_recommend.stores.redis_connection import Command, RedisConnection, run
from tritonrank_recommend.streams import redis_stream_scripts as scripts
from tritonrank_recommend.streams.interface import Appended, Lag, Message, StreamError, StreamRefusedError, Taker

KEY = "tr:{stream}:events"
ERASED = "tr:{stream}:erased"
SENT, KEPT = b"event", b"kept"
PAGE = 1_000
ERASED_SECONDS = 3_600.0
MOST_COUNTED = 100_000
"""Messages that are counted one by one where the server does not know how many wait, after some were erased."""
GONE_SECONDS = 3_600.0
"""A consumer that holds nothing and was not heard of for so long is forgotten."""


class RedisStream:
    """See ``interface.Stream``."""

    can_erase = True

    def __init__(self, url: str) -> None:
        """Prepare connections; the first call opens one.

        Args:
            url: of a server or of any node of a cluster.

        Raises:
            StreamRefusedError: see ``RedisConnection``.
        """
        try:
            self._connection = RedisConnection(url)
        except StoreRefusedError as error:
            raise StreamRefusedError(str(error).replace("--store", "--events-stream")) from error
        self.name = self._connection.name
        self._groups: set[str] = set()

    async def append(self, bodies: Sequence[bytes], *, kept: bool, taker: Taker | None = None) -> Appended:
        if not bodies:
            return Appended([])
        group, consumer = (taker.group, taker.consumer) if taker else ("", "")
        if taker:
            await self._make_group(group)
        command = run(scripts.APPEND, [KEY], KEPT if kept else SENT, group, consumer, *bodies)
        is_taken, *offsets = await self._ask(*command)
        return Appended([offset.decode() for offset in offsets], is_taken=bool(is_taken))

    async def read(self, group: str, consumer: str, most: int, block_seconds: float) -> list[Message]:
        await self._make_group(group)
        block = max(1, int(block_seconds * 1000))
        command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", most, "BLOCK", block, "STREAMS", KEY, ">")
        answer = await self._ask(*command)
        if not answer:
            return []
        rows = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
        return [_message(row) for row in _flat(rows)]

    async def claim(self, group: str, consumer: str, idle_seconds: float, most: int) -> list[Message]:
        await self._make_group(group)
        rows = await self._ask(*run(scripts.CLAIM, [KEY], group, consumer, int(idle_seconds * 1000), most))
        return [_message((offset, fields), int(deliveries)) for offset, fields, deliveries in rows]

    async def acknowledge(self, group: str, offsets: Sequence[str]) -> Mapping[str, float]:
        commands: list[Command] = [("HGETALL", ERASED)]
        if offsets:
            commands.insert(0, ("XACK", KEY, group, *offsets))
        try:
            answers = await self._connection.ask_together(commands)
        except StoreError as error:
            raise self._failed(error) from error
        told = answers[-1]
        rows = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=True)
        return {user_id.decode(): float(at) for user_id, at in rows}

    async def lag(self, group: str) -> Lag:
        await self._make_group(group)
        length, messages, oldest, now = await self._ask(*run(scripts.LAG, [KEY], group, MOST_COUNTED))
        at = _seconds(oldest)
        return Lag(int(messages), max(0.0, float(now) - at) if int(messages) else 0.0, int(length))

    async def replay(self, start: str = "") -> AsyncIterator[Message]:
        newest = await self._ask("XREVRANGE", KEY, "+", "-", "COUNT", 1)
        if not newest:
            return
        (last, _), *_ = _flat(newest)
        place = _checked(start) if start else "-"
        while rows := _flat(await self._ask("XRANGE", KEY, place, last, "COUNT", PAGE)):
            for row in rows:
                yield _message(row)
            place = f"({rows[-1][0].decode()}"

    async def trim(self, keep: int) -> int:
        old = [user for user, at in (await self.acknowledge("", [])).items() if at < time.time() - ERASED_SECONDS]
        if old:
            await self._ask("HDEL", ERASED, *old)
        return int(await self._ask(*run(scripts.TRIM, [KEY], keep, int(GONE_SECONDS * 1000))))

    async def delete(self, offsets: Collection[str]) -> int:
        deleted = int(await self._ask("XDEL", KEY, *offsets)) if offsets else 0
        if deleted:
            await self._connection.forget_old_bytes()
        return deleted

    async def erased(self, users: Mapping[str, float]) -> None:
        if users:
            await self._ask("HSET", ERASED, *(word for user, at in users.items() for word in (user, repr(at))))

    async def leave(self, group: str, consumer: str) -> None:
        await self._ask(*run(scripts.LEAVE, [KEY], group, consumer))

    async def close(self) -> None:
        await self._connection.close()

    async def _make_group(self, group: str) -> None:
        """Once, and again after an answer that says that the server does not know it."""
        if group not in self._groups:
            await self._ask(*run(scripts.MAKE, [KEY], group))
            self._groups.add(group)

    async def _ask(self, *command: Any) -> Any:
        try:
            return await self._connection.ask(*command)
        except StoreError as error:
            raise self._failed(error) from error

    def _failed(self, error: StoreError) -> StreamError:
        if "NOGROUP" in str(error):  # it lost its data; the next call makes the group anew
            self._groups.clear()
        kind = StreamRefusedError if isinstance(error, StoreRefusedError) else StreamError
        return kind(f"the stream: {error}")


def _flat(rows: Any) -> list[tuple[bytes, Any]]:
    """Ids with their fields, as the client of either kind of server gives them."""
    return [(row[0], row[1]) for row in rows]


def _message(row: tuple[bytes, Any], deliveries: int = 1) -> Message:
    offset, told = row[0].decode(), row[1]
    fields = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=False)) if told else {}
    kept = KEPT in fields
    body = fields.get(KEPT) if kept else fields.get(SENT)
    if body is None:  # no field of ours: whatever stands there goes into the dead letter
        body = b"no field `event`: " + repr(fields).encode()
    return Message(offset, body, kept, _seconds(row[0]), deliveries)


def _seconds(offset: bytes) -> float:
    """When the server took it."""
    return int(offset.partition(b"-")[0] or 0) / 1000


def _checked(offset: str) -> str:
    first, _, second = offset.partition("-")
    if not (first.isdecimal() and (second.isdecimal() or not second) and offset.isascii()):
        raise StreamRefusedError(f"offset {offset!r}: expected an id of the stream, such as 1795744000123-0")
    return offset
