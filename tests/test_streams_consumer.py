"""The consumer and the intake in one process: dead letters, a store that fails, an erasure in between."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from stream_events import POISON
from tritonrank_recommend.events import Event
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Added, Store, StoreError
from tritonrank_recommend.streams.consumer import MOST_DELIVERIES, MOST_TRIES, Consumer
from tritonrank_recommend.streams.dead_letters import DeadLetters
from tritonrank_recommend.streams.intake import Intake
from tritonrank_recommend.streams.interface import Message, StreamRefusedError
from tritonrank_recommend.streams.local import LocalStream
from tritonrank_recommend.streams.messages import MOST_BYTES, PoisonError, bodies_of, read_message


def click(user: str, item: str = "i1", **more: object) -> Event:
    told = {"event_id": f"{user}-{item}", "timestamp": 5.0, "received_at": time.time()} | more
    return Event(user_id=user, type="click", item_id=item, **told)  # type: ignore[arg-type]


def body(user: str, item: str = "i1") -> bytes:
    return json.dumps({"type": "click", "user_id": user, "item_id": item, "event_id": f"{user}-{item}"}).encode()


class Fixture:
    """A local stream, a SQLite store, and an intake between them."""

    def __init__(self, folder: Path) -> None:
        self.stream, self.store = LocalStream(folder / "stream.db"), open_store(f"sqlite:{folder / 'store.db'}")
        self.letters = DeadLetters(folder / "letters" / "dead.jsonl")

    def intake(self, store: Store | None = None, privacy: Privacy | None = None, **more: object) -> Intake:
        privacy, store = privacy or Privacy(), store or self.store
        consumer = Consumer(self.stream, store, self.letters, privacy=privacy, idle_seconds=0.0, **more)  # type: ignore[arg-type]
        return Intake(self.stream, store, consumer, self.letters, privacy, log=False)

    def told(self) -> list[dict[str, object]]:
        if not self.letters.file.exists():
            return []
        return [json.loads(line) for line in self.letters.file.read_text(encoding="utf-8").splitlines() if line]

    async def clicks_of(self, user: str) -> int:
        return (await self.store.profile(user)).counters.get("click", 0)


class Wrapped:
    """A store whose ``add_events`` a test decides about; the rest is the store's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_away = False
        self.hated = ""
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def ready(self) -> bool:
        if self.is_away:
            raise StoreError("away")
        return await self._store.ready()

    async def add_events(self, events: Sequence[Event], *, log: bool = True) -> Added:
        self.calls += 1
        if self.is_away:
            raise StoreError("away")
        if any(event.user_id == self.hated for event in events):
            raise StoreError("no")
        return await self._store.add_events(events, log=log)


async def steps(consumer: Consumer, count: int = 1) -> None:
    for _ in range(count):
        await consumer.step(0.01)


def test_poison_goes_to_the_dead_letters_and_is_in_nobodys_way(tmp_path: Path) -> None:
    huge = b'{"type": "search", "user_id": "u1", "query": "' + b"x" * MOST_BYTES + b'"}'

    async def run(fixture: Fixture) -> None:
        intake = fixture.intake()
        for poison in (*POISON, huge):
            await fixture.stream.append([poison, body(f"u{len(poison)}")], kept=False)
        await steps(intake.consumer, 2)
        assert [await fixture.clicks_of(f"u{len(poison)}") for poison in (*POISON, huge)] == [1] * (len(POISON) + 1)
        assert (await fixture.stream.lag("profiles")).messages == 0
        assert intake.state.dead_letters == len(POISON) + 1

    fixture = Fixture(tmp_path)
    asyncio.run(run(fixture))
    told = fixture.told()
    assert [one["offset"] for one in told] == ["1", "3", "5", "7", "9", "11"]
    reasons = [str(one["reason"]) for one in told]
    for reason, expected in zip(
        reasons, ["truncated", "user_id", "length", "", "Invalid enum value", "expected at most"], strict=True
    ):
        assert expected in reason
    assert told[1]["body"] == '{"type": "click"}'
    assert len(str(told[5]["body"])) == 64 << 10
    assert fixture.letters.file.stat().st_mode & 0o77 == 0


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"type": "click", "user_id": "u"}, "item_id: expected the item's id"),
        ({"type": "rating", "user_id": "u", "item_id": "i", "value": 9}, "value: expected a rating"),
        ({"type": "click", "user_id": "u", "item_id": "i", "timestamp": 1.8e12}, "milliseconds"),
        ({"type": "click", "user_id": "u", "item_id": "i", "colour": "red"}, "colour"),
        ({"events": [{"type": "click", "user_id": "u", "item_id": "i"}, {"type": "search", "user_id": "u"}]},
         "events[1].query"),
        ({"type": "click", "user_id": "u\x00", "item_id": "i"}, "user_id"),
    ],
)  # fmt: skip
def test_a_message_is_checked_as_a_request_is(told: dict[str, object], expected: str) -> None:
    with pytest.raises(PoisonError) as caught:
        read_message(Message("1", json.dumps(told).encode(), False, 100.0), Privacy())
    assert expected in str(caught.value)


def test_a_message_always_gives_the_same_events() -> None:
    told = b'{"events": [{"type": "click", "user_id": "u", "item_id": "i1"}, '
    told += b'{"type": "cart", "user_id": "u", "item_id": "i1"}]}'
    message = Message("7-0", told, False, 1_795_744_000.123)
    first, second = read_message(message, Privacy())
    assert [first, second] == read_message(message, Privacy())
    assert first.timestamp == first.received_at == 1_795_744_000.123
    assert first.timestamp < second.timestamp < first.timestamp + 1e-3, "in the order in which they were sent"
    assert first.event_id != second.event_id
    later = read_message(Message("8-0", told, False, 1_795_744_000.123), Privacy())
    assert not {first.event_id, second.event_id} & {event.event_id for event in later}
    assert first.event_id != read_message(Message("7-0", told, False, 1_795_744_009.0), Privacy())[0].event_id


def test_what_a_gateway_writes_is_read_as_it_was_kept() -> None:
    events = [click("a"), click("b", "é"), click("a", "i2", query="q", value=2.5, page="p", position=3)]
    bodies = bodies_of(events)
    assert len(bodies) == 2, "a message tells of one user"
    read = [event for one in bodies for event in read_message(Message("1", one, True, 1.0), Privacy(b"k" * 16))]
    assert sorted(read, key=lambda one: one.event_id) == sorted(events, key=lambda one: one.event_id)
    with pytest.raises(PoisonError):
        read_message(Message("1", bodies[0], False, 1.0), Privacy())
    with pytest.raises(PoisonError):
        read_message(Message("1", body("u"), True, 1.0), Privacy())


def test_posted_events_are_in_the_stream_and_in_the_profile_when_they_are_answered(tmp_path: Path) -> None:
    async def run(fixture: Fixture) -> None:
        store = Wrapped(fixture.store)
        intake = fixture.intake(store)  # type: ignore[arg-type]
        assert await intake.add_events([click("ann"), click("bob"), click("ann")]) == Added(2, 1)
        assert await fixture.clicks_of("ann") == 1
        assert [one.kept async for one in fixture.stream.replay()] == [True, True]
        assert (await fixture.stream.lag("profiles")).messages == 2
        await intake.close()
        assert store.calls == 1, "nobody applied them again"

    fixture = Fixture(tmp_path)
    asyncio.run(run(fixture))
    left = LocalStream(tmp_path / "stream.db")
    assert asyncio.run(left.lag("profiles")).messages == 0
    asyncio.run(left.close())


def test_a_gateway_that_ends_between_stream_and_store_leaves_its_events_to_others(tmp_path: Path) -> None:
    async def run(fixture: Fixture) -> None:
        dead, alive = fixture.intake(), fixture.intake()
        await fixture.stream.append(bodies_of([click("ann")]), kept=True, taker=dead.consumer.taker)
        await steps(alive.consumer)
        assert await fixture.clicks_of("ann") == 1
        assert alive.state.claimed == 1

    asyncio.run(run(Fixture(tmp_path)))


def test_events_are_queued_while_the_store_is_away(tmp_path: Path) -> None:
    async def run(fixture: Fixture) -> None:
        store = Wrapped(fixture.store)
        intake = fixture.intake(store)  # type: ignore[arg-type]
        store.is_away = True
        assert await intake.add_events([click("ann")]) == Added(1, 0, is_queued=True)
        await steps(intake.consumer, MOST_TRIES + 2)
        assert await fixture.clicks_of("ann") == 0
        store.is_away = False
        await steps(intake.consumer)
        assert await fixture.clicks_of("ann") == 1
        assert (await fixture.stream.lag("profiles")).messages == 0
        assert fixture.told() == []

    asyncio.run(run(Fixture(tmp_path)))


def test_a_message_that_fails_alone_is_tried_and_given_up(tmp_path: Path) -> None:
    async def run(fixture: Fixture) -> None:
        store = Wrapped(fixture.store)
        store.hated = "bad"
        intake = fixture.intake(store)  # type: ignore[arg-type]
        await fixture.stream.append([body("ann"), body("bad"), body("bob")], kept=False)
        await steps(intake.consumer)
        assert [await fixture.clicks_of(user) for user in ("ann", "bad", "bob")] == [1, 0, 1], "others do not wait"
        assert fixture.told() == []
        await steps(intake.consumer, MOST_TRIES)
        assert (await fixture.stream.lag("profiles")).messages == 0

    fixture = Fixture(tmp_path)
    asyncio.run(run(fixture))
    (told,) = fixture.told()
    assert "while the store answered: no" in str(told["reason"])


def test_a_message_that_ends_every_process_is_given_up(tmp_path: Path) -> None:
    async def run(fixture: Fixture) -> None:
        await fixture.stream.append([body("ann")], kept=False)
        await fixture.stream.read("profiles", "killed", 10, 0.0)
        for _ in range(MOST_DELIVERIES - 1):
            await fixture.stream.claim("profiles", "killed", 0.0, 10)
        await steps(fixture.intake().consumer)

    fixture = Fixture(tmp_path)
    asyncio.run(run(fixture))
    (told,) = fixture.told()
    assert f"{MOST_DELIVERIES + 1} times" in str(told["reason"])


def test_a_dead_letter_that_cannot_be_written_blocks_nothing_and_is_not_lost(tmp_path: Path) -> None:
    async def run(fixture: Fixture) -> None:
        (tmp_path / "letters").write_text("a file where the folder should be")
        intake = fixture.intake()
        await fixture.stream.append([b"{", body("ann")], kept=False)
        await steps(intake.consumer)
        assert await fixture.clicks_of("ann") == 1
        assert (await fixture.stream.lag("profiles")).messages == 1
        (tmp_path / "letters").unlink()
        await steps(intake.consumer)
        assert (await fixture.stream.lag("profiles")).messages == 0
        assert len(fixture.told()) == 1

    asyncio.run(run(Fixture(tmp_path)))


def test_an_erased_user_is_gone_from_stream_and_letters_and_does_not_come_back(tmp_path: Path) -> None:
    privacy = Privacy(b"k" * 16)
    names = privacy.names("ann")

    async def run(fixture: Fixture) -> None:
        intake, other = fixture.intake(privacy=privacy), fixture.intake(privacy=privacy)
        await fixture.stream.append([b'{"type": "like", "user_id": "ann"}', body("ann"), body("bob")], kept=False)
        await steps(other.consumer)  # it has written the letter
        await intake.add_events([privacy.event(click("ann", "i2"))])
        held = await fixture.stream.read("profiles", "slow", 10, 0.0)
        assert held == []
        await fixture.stream.append([body("ann", "i3")], kept=False)
        (message,) = await fixture.stream.read("profiles", other.consumer.taker.consumer, 10, 0.0)
        assert len(await intake.events_of(names)) == 3

        assert await intake.erase(names) == 5  # a letter, and the message of it, which lies there, too
        for name in names:
            await fixture.store.erase_user(name)
        assert await intake.events_of(names) == []
        assert fixture.told() == []
        assert b"ann" not in b"".join(path.read_bytes() for path in tmp_path.glob("stream.db*")), "nor is the id itself"
        # Another gateway had read a message before, and brings it into the store only now.
        other.consumer.put_aside([message])
        await steps(other.consumer, 2)
        assert [await fixture.clicks_of(privacy.user(user)) for user in ("ann", "bob")] == [0, 1]
        await intake.add_events([privacy.event(click("ann", "i9", received_at=time.time() + 1))])
        assert await fixture.clicks_of(privacy.user("ann")) == 1, "who comes back is new"

    asyncio.run(run(Fixture(tmp_path)))


def test_clicks_of_other_systems_are_told_once(tmp_path: Path) -> None:
    async def run(fixture: Fixture) -> None:
        intake, told = fixture.intake(), []
        intake.watch(told.extend)
        await fixture.stream.append([body("ann")], kept=False)
        await fixture.stream.append(bodies_of([click("bob")]), kept=True)  # that gateway told of it itself
        await steps(intake.consumer)
        assert [event.user_id for event in told] == ["ann"]
        await fixture.stream.append([body("ann")], kept=False)
        await steps(intake.consumer)
        assert len(told) == 1

    asyncio.run(run(Fixture(tmp_path)))


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    open_store(f"sqlite:{tmp_path / 'store.db'}")
    with pytest.raises(StreamRefusedError, match="--events-stream local:FILE"):
        LocalStream(tmp_path / "store.db")


def test_letters_do_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonrank_recommend.streams.dead_letters.MOST_FILE_BYTES", 1_000)
    letters = DeadLetters(tmp_path / "dead.jsonl")
    for number in range(20):
        letters.add(Message(str(number), b"x" * 100, False, 1.0), "no")
    sizes = [file.stat().st_size for file in (letters.file, letters.file.with_name("dead.jsonl.1"))]
    assert max(sizes) <= 1_000
    assert b'"offset": "19"' in letters.file.read_bytes()
