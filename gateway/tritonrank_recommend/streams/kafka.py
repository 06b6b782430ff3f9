"""The stream in a topic of Kafka, for those who have one; through librdkafka (package ``confluent-kafka``).

Messages are not given out one by one there: a consumer of the group has whole partitions, and its position in each is
committed up to the first message that it has not acknowledged. What a consumer that died had is read again by whoever
gets its partitions. Kafka removes messages by its own rules (``retention.ms``), never one by one.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from tritonrank_recommend.streams.interface import Appended, Lag, Message, StreamError, StreamRefusedError, Taker
from tritonrank_recommend.streams.kafka_positions import Positions, offset_of, starts_of

PROPERTIES_VARIABLE = "TRITONRANK_KAFKA_PROPERTIES"
ANSWER_SECONDS = 5.0
REPLAY_SECONDS = 10.0
"""without a message, though there are some"""
KEPT = ("kind", b"kept")
PAGE = 1_000
Result = TypeVar("Result")


class KafkaStream:
    """See ``interface.Stream``."""

    can_erase = False

    def __init__(self, url: str) -> None:
        """Prepare clients; the first call connects.

        Args:
            url: ``kafka://HOST:PORT,HOST:PORT/TOPIC``, with properties of librdkafka behind ``?``; those that are
                secret stand in a file of lines ``name=value`` that TRITONRANK_KAFKA_PROPERTIES names.

        Raises:
            StreamRefusedError: the package is missing, or it is no such URL.
        """
        try:
            import confluent_kafka
        except ModuleNotFoundError:
            said = "--events-stream kafka:// needs a package: pip install 'tritonrank[kafka]'"
            raise StreamRefusedError(said) from None
        place, _, query = url.removeprefix("kafka://").partition("?")
        hosts, _, self._topic = place.partition("/")
        if not hosts or not self._topic or "/" in self._topic or "@" in hosts:
            raise StreamRefusedError(
                "--events-stream: expected kafka://HOST:PORT/TOPIC; a password goes into the file that "
                f"{PROPERTIES_VARIABLE} names, as sasl.password=..."
            )
        self._kafka = confluent_kafka
        self.name = f"kafka://{place}"
        self._settings = {
            "bootstrap.servers": hosts,
            "socket.timeout.ms": int(ANSWER_SECONDS * 1000),
            **_properties_of_file(os.environ.get(PROPERTIES_VARIABLE, "")),
            **dict(parse_qsl(query)),
        }
        self._errors = (confluent_kafka.KafkaException, BufferError, ValueError, RuntimeError)
        self._producer: Any = None
        self._consumers: dict[str, Any] = {}
        self._positions: dict[str, Positions] = {}
        self._reader: Any = None
        # One thread appends, one reads, one does the rest: a read that waits must keep nobody waiting.
        self._threads = {name: ThreadPoolExecutor(1, f"kafka-{name}") for name in ("append", "read", "rest")}

    async def append(self, bodies: Sequence[bytes], *, kept: bool, taker: Taker | None = None) -> Appended:
        def append() -> Appended:
            offsets: list[str | None] = [None] * len(bodies)
            problems: list[Any] = []

            def delivered(place: int) -> Callable[[Any, Any], None]:
                def told(error: Any, message: Any) -> None:
                    if error is not None:
                        problems.append(error)
                    else:
                        offsets[place] = offset_of(message.partition(), message.offset())

                return told

            if self._producer is None:
                self._producer = self._made("Producer", {
                    "enable.idempotence": True,  # what is sent again after a lost answer stands there once
                    "linger.ms": 2,
                    "message.timeout.ms": int(ANSWER_SECONDS * 1000),
                })  # fmt: skip
            headers = [KEPT] if kept else None
            for place, body in enumerate(bodies):
                self._producer.produce(self._topic, body, headers=headers, on_delivery=delivered(place))
            self._producer.flush(2 * ANSWER_SECONDS)
            if problems or None in offsets:
                raise StreamError(f"{self.name}: {problems[0] if problems else 'no answer'}")
            return Appended([offset for offset in offsets if offset is not None])

        return await self._do("append", append)

    async def read(self, group: str, consumer: str, most: int, block_seconds: float) -> list[Message]:
        def read() -> list[Message]:
            found = self._consumer(group).consume(most, block_seconds)
            messages = [self._message(one) for one in found if self._is_message(one)]
            self._positions[group].given(messages)
            return messages

        return await self._do("read", read)

    async def claim(self, group: str, consumer: str, idle_seconds: float, most: int) -> list[Message]:
        positions = self._positions.get(group)
        return positions.given_again(idle_seconds, most) if positions else []

    async def acknowledge(self, group: str, offsets: Sequence[str]) -> Mapping[str, float]:
        positions = self._positions.get(group)
        to_commit = positions.acknowledged(offsets) if positions else {}

        def commit() -> None:
            make = self._kafka.TopicPartition
            places = [make(self._topic, partition, place) for partition, place in to_commit.items()]
            try:
                self._consumers[group].commit(offsets=places, asynchronous=False)
            except self._kafka.KafkaException as error:
                if error.args[0].code() not in self._lost_partition:  # whoever has it now reads them again
                    raise

        if to_commit:
            await self._do("rest", commit)
        return {}

    async def lag(self, group: str) -> Lag:
        def look() -> Lag:
            make, reader = self._kafka.TopicPartition, self._probe()
            partitions = [make(self._topic, number) for number in self._partitions()]
            committed = self._consumer_for_positions(group).committed(partitions, ANSWER_SECONDS)
            messages = length = 0
            oldest: list[float] = []
            for one in committed:
                low, high = reader.get_watermark_offsets(make(self._topic, one.partition), ANSWER_SECONDS)
                place = max(low, one.offset) if one.offset >= 0 else low
                length += high - low
                messages += high - place
                if high > place and (first := self._first(one.partition, place)) is not None:
                    oldest.append(first.appended_at)
            return Lag(messages, max(0.0, time.time() - min(oldest)) if oldest else 0.0, length)

        return await self._do("rest", look)

    async def replay(self, start: str = "") -> AsyncIterator[Message]:
        starts = starts_of(start)
        reader = self._reading_client()
        make = self._kafka.TopicPartition

        def assign() -> dict[int, int]:
            ends = {}
            places = []
            for number in self._partitions():
                low, high = reader.get_watermark_offsets(make(self._topic, number), ANSWER_SECONDS)
                first = max(low, starts.get(number, low))
                if first < high:
                    ends[number] = high
                    places.append(make(self._topic, number, first))
            reader.assign(places)
            return ends

        try:
            ends = await self._do("rest", assign)
            heard_at = time.monotonic()
            while ends:
                for one in await asyncio.to_thread(reader.consume, PAGE, 0.5):
                    if not self._is_message(one):
                        continue
                    heard_at = time.monotonic()
                    if one.partition() in ends and one.offset() < ends[one.partition()]:
                        yield self._message(one)
                    if one.offset() + 1 >= ends.get(one.partition(), 0):
                        ends.pop(one.partition(), None)
                if time.monotonic() > heard_at + REPLAY_SECONDS:
                    raise StreamError(f"{self.name}: no message for {REPLAY_SECONDS:g} s, though there are more")
        finally:
            await asyncio.to_thread(reader.close)

    async def trim(self, keep: int) -> int:
        """Nothing: Kafka does it, by the topic's retention."""
        return 0

    async def delete(self, offsets: Collection[str]) -> int:
        """Nothing: Kafka cannot take out single messages."""
        return 0

    async def erased(self, users: Mapping[str, float]) -> None:
        """Nothing: other consumers cannot be told here."""

    async def leave(self, group: str, consumer: str) -> None:
        client = self._consumers.pop(group, None)
        self._positions.pop(group, None)
        if client is not None:
            await self._do("read", client.close)

    async def close(self) -> None:
        for group in list(self._consumers):
            with suppress(StreamError):
                await self.leave(group, "")
        if self._producer is not None:
            await self._do("append", lambda: self._producer.flush(ANSWER_SECONDS))
        if self._reader is not None:
            await self._do("rest", self._reader.close)
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)

    # In threads

    def _made(self, kind: str, settings: Mapping[str, Any]) -> Any:
        try:
            return getattr(self._kafka, kind)({**self._settings, **settings, "log_level": 3})
        except self._errors as error:
            raise StreamRefusedError(f"{self.name}: {error}") from error

    def _consumer(self, group: str) -> Any:
        if group not in self._consumers:
            positions = self._positions[group] = Positions()
            client = self._made("Consumer", {
                "group.id": f"tritonrank-{group}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "session.timeout.ms": 6_000,
                "partition.assignment.strategy": "cooperative-sticky",
            })  # fmt: skip
            client.subscribe(
                [self._topic],
                on_revoke=lambda _, places: positions.lost([one.partition for one in places]),
                on_lost=lambda _, places: positions.lost([one.partition for one in places]),
            )
            self._consumers[group] = client
        return self._consumers[group]

    def _consumer_for_positions(self, group: str) -> Any:
        """One that can be asked for what the group has committed, without becoming one of it."""
        if group in self._consumers:
            return self._consumers[group]
        return self._probe(group)

    def _probe(self, group: str = "profiles") -> Any:
        if self._reader is None:
            self._reader = self._made("Consumer", {"group.id": f"tritonrank-{group}", "enable.auto.commit": False})
        return self._reader

    def _reading_client(self) -> Any:
        settings = {"group.id": f"tritonrank-replay-{secrets.token_hex(6)}", "enable.auto.commit": False}
        return self._made("Consumer", settings)

    def _partitions(self) -> list[int]:
        """None before something was appended, which makes the topic where the brokers allow that."""
        found = self._probe().list_topics(self._topic, ANSWER_SECONDS).topics[self._topic]
        if found.error is not None and found.error.code() != self._kafka.KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise StreamError(f"{self.name}: {found.error}")
        return sorted(found.partitions)

    def _first(self, partition: int, place: int) -> Message | None:
        """The message at a place, or the next one."""
        reader = self._probe()
        reader.assign([self._kafka.TopicPartition(self._topic, partition, place)])
        try:
            found = reader.consume(1, 1.0)
        finally:
            reader.unassign()
        return next((self._message(one) for one in found if self._is_message(one)), None)

    @property
    def _lost_partition(self) -> frozenset[int]:
        kinds = self._kafka.KafkaError
        return frozenset({kinds.ILLEGAL_GENERATION, kinds.UNKNOWN_MEMBER_ID, kinds.REBALANCE_IN_PROGRESS,
                          kinds._NO_OFFSET, kinds._STATE})  # fmt: skip

    def _is_message(self, one: Any) -> bool:
        error = one.error()
        if error is None:
            return True
        if error.code() in (self._kafka.KafkaError._PARTITION_EOF, self._kafka.KafkaError.UNKNOWN_TOPIC_OR_PART):
            return False  # the topic is made when something is appended
        raise StreamError(f"{self.name}: {error}")

    def _message(self, one: Any) -> Message:
        _, milliseconds = one.timestamp()
        kept = KEPT in (one.headers() or ())
        return Message(offset_of(one.partition(), one.offset()), one.value() or b"", kept, milliseconds / 1000)

    async def _do(self, thread: str, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads[thread], work)
        except self._errors as error:
            if isinstance(error, StreamError):
                raise
            raise StreamError(f"{self.name}: {error}") from error


def _properties_of_file(name: str) -> dict[str, str]:
    """Lines ``name=value``; empty ones and those with # say nothing.

    Raises:
        StreamRefusedError: there is no such file.
    """
    if not name:
        return {}
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StreamRefusedError(f"{PROPERTIES_VARIABLE}: {name}: {error.strerror}") from None
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}
