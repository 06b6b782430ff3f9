"""What every stream promises, asked of each: a file, Valkey, a cluster of it, and Kafka's mock."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from kafka_mock import mock_brokers
from tritonrank_recommend.events import Event
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.streams.erasing import erase_from, events_of_user
from tritonrank_recommend.streams.interface import Message, Stream, StreamRefusedError, Taker
from tritonrank_recommend.streams.messages import bodies_of, read_message
from tritonrank_recommend.streams.opening import open_stream
from valkeys import empty_server

__all__ = ["empty_server"]
GROUP = "profiles"
ONE, TWO = Taker(GROUP, "one"), Taker(GROUP, "two")


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    with mock_brokers() as hosts:
        yield hosts


@pytest.fixture(params=["local", "valkey", pytest.param("valkey cluster", marks=pytest.mark.slow)])
def erasable(request: pytest.FixtureRequest, tmp_path: Path, empty_server: Callable[[str], str]) -> str:
    """An empty stream that gives messages out one by one."""
    if request.param == "local":
        return f"local:{tmp_path / 'stream.db'}"
    return empty_server(request.param)


@pytest.fixture(params=["local", "valkey", pytest.param("valkey cluster", marks=pytest.mark.slow),
                        pytest.param("kafka", marks=pytest.mark.slow)])  # fmt: skip
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_server: Callable[[str], str]) -> str:
    """An empty stream of each kind."""
    if request.param == "kafka":
        return f"kafka://{request.getfixturevalue('brokers')}/{tmp_path.name}"
    if request.param == "local":
        return f"local:{tmp_path / 'stream.db'}"
    return empty_server(request.param)


def within(url: str, work: Callable[[Stream], Awaitable[None]]) -> None:
    async def run() -> None:
        stream = open_stream(url)
        assert stream is not None
        try:
            await work(stream)
        finally:
            await stream.close()

    asyncio.run(run())


async def read_all(stream: Stream, count: int, consumer: str = "one", group: str = GROUP) -> list[Message]:
    """So many messages; joining a group of Kafka takes seconds."""
    found: list[Message] = []
    end = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < end, found
        found += await stream.read(group, consumer, 100, 0.5)
    return found


def test_messages_come_in_order_once_and_wait_until_they_are_acknowledged(url: str) -> None:
    bodies = [f'{{"n": {number}}}'.encode() for number in range(5)]

    async def work(stream: Stream) -> None:
        appended = await stream.append(bodies[:3], kept=False)
        more = await stream.append(bodies[3:], kept=True)
        offsets = [*appended.offsets, *more.offsets]
        assert len(set(offsets)) == 5
        found = await read_all(stream, 5)
        of_offset = {message.offset: message for message in found}
        assert [of_offset[offset].body for offset in offsets] == bodies
        assert [of_offset[offset].kept for offset in offsets] == [False, False, False, True, True]
        assert all(abs(message.appended_at - time.time()) < 60 for message in found)
        assert await stream.read(GROUP, "one", 100, 0.05) == []
        behind = await stream.lag(GROUP)
        assert behind.messages == behind.length == 5
        assert 0 < behind.seconds < 60
        assert await stream.acknowledge(GROUP, offsets) == {}
        behind = await stream.lag(GROUP)
        assert (behind.messages, behind.seconds, behind.length) == (0, 0.0, 5)

    within(url, work)


def test_what_is_not_acknowledged_is_given_again_and_counted(url: str) -> None:
    async def work(stream: Stream) -> None:
        await stream.append([b"1", b"2"], kept=False)
        first, second = sorted(await read_all(stream, 2), key=lambda one: one.body)
        await stream.acknowledge(GROUP, [first.offset])
        assert await stream.claim(GROUP, "one", 60.0, 10) == []
        await asyncio.sleep(0.05)
        (again,) = await stream.claim(GROUP, "one", 0.01, 10)
        assert (again.offset, again.body, again.deliveries) == (second.offset, b"2", 2)
        await asyncio.sleep(0.05)
        assert [one.deliveries for one in await stream.claim(GROUP, "one", 0.01, 10)] == [3]
        await stream.acknowledge(GROUP, [second.offset])
        assert await stream.claim(GROUP, "one", 0.0, 10) == []

    within(url, work)


def test_a_replay_touches_no_group_and_begins_where_it_is_told(url: str) -> None:
    async def work(stream: Stream) -> None:
        assert [one async for one in stream.replay()] == []
        offsets = (await stream.append([str(number).encode() for number in range(2_500)], kept=False)).offsets
        found = {one.offset: one.body async for one in stream.replay()}
        assert [found[offset] for offset in offsets] == [str(number).encode() for number in range(2_500)]
        partition = offsets[2_400].rpartition(":")[0]  # "" but of Kafka, where order is that of a partition
        own = [offset for offset in offsets if offset.rpartition(":")[0] == partition]
        again = [one.offset async for one in stream.replay(offsets[2_400])]
        assert [one for one in again if one.rpartition(":")[0] == partition] == own[own.index(offsets[2_400]) :]
        assert (await stream.lag(GROUP)).messages == 2_500
        with pytest.raises(StreamRefusedError, match="such as"):
            _ = [one async for one in stream.replay("yesterday")]

    within(url, work)


def test_another_that_opens_the_stream_goes_on_where_the_group_stands(url: str) -> None:
    async def first(stream: Stream) -> None:
        await stream.append([b"1", b"2"], kept=False)
        messages = sorted(await read_all(stream, 2), key=lambda one: one.body)
        await stream.acknowledge(GROUP, [messages[0].offset])
        await stream.leave(GROUP, "one")

    async def second(stream: Stream) -> None:
        await stream.append([b"3"], kept=False)
        found: list[Message] = []
        end = time.monotonic() + 30
        while len(found) < 2 and time.monotonic() < end:
            found += await stream.claim(GROUP, "two", 5.0, 10)  # what a consumer left need not wait
            found += await stream.read(GROUP, "two", 10, 0.5)
        assert sorted(one.body for one in found) == [b"2", b"3"]

    within(url, first)
    within(url, second)


def test_who_appends_and_applies_at_once_is_given_the_messages_itself(erasable: str) -> None:
    async def work(stream: Stream) -> None:
        appended = await stream.append([b"1", b"2"], kept=True, taker=ONE)
        assert appended.is_taken
        assert await stream.read(GROUP, "two", 10, 0.05) == []
        assert (await stream.lag(GROUP)).messages == 2
        await stream.acknowledge(GROUP, appended.offsets[:1])
        await asyncio.sleep(0.05)  # "one" is killed here: another one gets the rest
        (left,) = await stream.claim(GROUP, "two", 0.01, 10)
        assert left.offset == appended.offsets[1]
        await stream.acknowledge(GROUP, [left.offset])

        await stream.append([b"3"], kept=False)  # of another system; it waits
        later = await stream.append([b"4"], kept=True, taker=ONE)
        assert not later.is_taken, "who waited longer comes first"
        assert [one.body for one in await read_all(stream, 2, "two")] == [b"3", b"4"]

    within(erasable, work)


def test_nothing_is_trimmed_that_a_group_has_not_acknowledged(erasable: str) -> None:
    async def work(stream: Stream) -> None:
        bodies = [str(number).encode() * 50 for number in range(1_000)]
        await stream.append(bodies, kept=False)
        assert await stream.trim(0) == 0, "no group has read it"
        mine = await read_all(stream, 1_000)
        theirs = await read_all(stream, 1_000, "x", group="analytics")
        await stream.acknowledge(GROUP, [one.offset for one in mine])
        assert await stream.trim(0) == 0, "the other group has acknowledged nothing"
        await stream.acknowledge("analytics", [one.offset for one in theirs if one is not theirs[600]])
        trimmed = await stream.trim(500)
        assert 300 <= trimmed <= 500  # a server drops whole pages of messages
        more = await stream.trim(0)
        assert trimmed + more <= 600, "the one that is not acknowledged stays"
        assert [one.body async for one in stream.replay(theirs[600].offset)] == bodies[600:]
        (left,) = await stream.claim("analytics", "y", 0.0, 10)
        assert left.body == bodies[600]

    within(erasable, work)


def test_a_user_is_taken_out_and_others_in_the_same_message_stay(erasable: str) -> None:
    privacy = Privacy()
    mixed = '{"events": [{"type": "click", "user_id": "Jos\\u00e9", "item_id": "i1"},' \
        ' {"type": "click", "user_id": "bob", "item_id": "i2"}]}'  # fmt: skip

    async def work(stream: Stream) -> None:
        kept = [Event(event_id=f"e{name}", user_id=name, type="click", timestamp=5.0, item_id="i", received_at=6.0)
                for name in ("José", "bob")]  # fmt: skip
        await stream.append([mixed.encode()], kept=False)
        await stream.append(bodies_of(kept), kept=True)
        ids_before = {one.event_id for one in await events_of_user(stream, ["bob"], privacy)}
        assert len(await events_of_user(stream, ["José"], privacy)) == 2
        assert await erase_from(stream, ["José"], privacy) == 2
        assert await events_of_user(stream, ["José"], privacy) == []
        assert {one.event_id for one in await events_of_user(stream, ["bob"], privacy)} == ids_before
        held = [event for message in await read_all(stream, 2) for event in read_message(message, privacy)]
        assert {event.user_id for event in held} == {"bob"}
        await stream.erased({"José": time.time()})
        assert list(await stream.acknowledge(GROUP, [])) == ["José"]

    within(erasable, work)


@pytest.mark.parametrize("url_", ["nonsense", "local:", "kafka:topic", "redis:somewhere", "kafka://host:1/"])
def test_what_is_no_stream_is_refused(url_: str) -> None:
    with pytest.raises(StreamRefusedError, match="--events-stream"):
        open_stream(url_)
