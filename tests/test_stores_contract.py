"""What every store promises, asked of each."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from tritonrank_recommend.events import Event, weight_of
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Added, ItemChange, Profile, Seen, Store
from tritonrank_recommend.stores.profiles import MOST_SEARCHES
from valkeys import SERVERS, empty_server

__all__ = ["empty_server"]
NOW = float(int(time.time()))
SHORT_SECONDS = 1.0
"""That a value or a lease lives, and that a busy machine needs for a few calls at the most."""


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_server: Callable[[str], str]) -> str:
    """Of an empty store, which any number can open."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'store.db'}"
    return empty_server(request.param)


def within(url: str, work: Callable[[Store], Awaitable[None]], most_events: int = 200) -> None:
    """Open the store, do the work, close it."""

    async def run() -> None:
        store = open_store(url, most_events=most_events)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


def click(number: int, user: str = "ann") -> Event:
    """On item ``i<number>`` in second ``number``."""
    return Event(event_id=f"e{number}", user_id=user, type="click", timestamp=NOW + number, item_id=f"i{number}")


def search(number: int, query: str) -> Event:
    """In second ``number``."""
    return Event(event_id=f"s{number}", user_id="ann", type="search", timestamp=NOW + number, query=query)


def as_seen(event: Event) -> Seen:
    """The event as a profile has it."""
    return Seen(event.item_id, event.type, event.timestamp, weight_of(event))


def expected_profile(user_id: str, events: Sequence[Event], most: int) -> Profile:
    """The profile after distinct events, the slow and plain way."""
    own = [event for event in events if event.user_id == user_id]
    items = sorted((event for event in own if event.type != "search"), key=lambda event: event.timestamp)
    searches = sorted((event for event in own if event.type == "search"), key=lambda event: event.timestamp)
    return Profile(
        user_id,
        tuple(as_seen(event) for event in items[-most:]),
        tuple(event.query for event in searches[-MOST_SEARCHES:]),
        dict(Counter(event.type for event in own)),
    )


def many_events(seed: int, count: int) -> list[Event]:
    """Of few users on few items, many at the same second, with all types and all kinds of texts."""
    chance = random.Random(seed)
    users = ["ann", "Jürgen", "日本", "a:b{c}d", "with space", 'q"uote', "x" * 256]
    types = ["view", "click", "cart", "purchase", "rating", "skip", "search"]
    events = []
    for number in range(count):
        kind = chance.choice(types)
        events.append(
            Event(
                event_id=f"{seed}-{number}",
                user_id=chance.choice(users),
                type=kind,  # type: ignore[arg-type]
                timestamp=NOW + chance.choice([chance.randrange(20), chance.random() * 20]),
                item_id="" if kind == "search" else f"item {chance.randrange(9)}",
                query=f"quéry {number}" if kind == "search" else "",
                value=chance.choice([0.5, 3.5, 5.0]) if kind == "rating" else None,
                position=chance.choice([None, 3]),
            )
        )
    return events


def test_an_empty_store_knows_nobody(url: str) -> None:
    async def work(store: Store) -> None:
        assert await store.ready()
        assert await store.profile("ann") == Profile("ann")
        assert await store.item_counters(["i1", "i2"]) == [{}, {}]
        assert await store.outbox(0, 10) == []
        assert await store.log_position() == 0
        assert await store.item_changes(0) == []
        assert await store.get("page") is None
        assert await store.erased_users() == []
        assert await store.add_events([]) == Added(0, 0)

    within(url, work)


@pytest.mark.parametrize("seed", range(3))
def test_events_cut_into_any_batches_give_the_profiles_of_a_plain_count(url: str, seed: int) -> None:
    events = many_events(seed, 300)

    async def work(store: Store) -> None:
        chance = random.Random(seed)
        start = 0
        while start < len(events):
            batch = events[start : start + chance.choice([1, 2, 40])]
            again = [*chance.sample(events[:start], min(start, 3)), batch[0]]
            sent = batch + again  # some that were seen before, and one twice in a batch
            assert await store.add_events(sent) == Added(len(batch), len(again))
            start += len(batch)

        for user_id in {event.user_id for event in events}:
            assert await store.profile(user_id) == expected_profile(user_id, events, most=12)
        items = sorted({event.item_id for event in events if event.item_id})
        counted = [Counter(event.type for event in events if event.item_id == item) for item in items]
        assert await store.item_counters(items) == counted
        waiting = await store.outbox(0, 1_000)
        assert sorted(event.event_id for _, event in waiting) == sorted(event.event_id for event in events)
        assert {event.event_id: event for _, event in waiting} == {event.event_id: event for event in events}

    within(url, work, most_events=12)


@pytest.mark.parametrize("seed", range(2))
def test_profiles_do_not_depend_on_the_order_in_which_received_events_come(url: str, seed: int) -> None:
    """Many at the same second; the newest of few are kept."""
    chance = random.Random(seed)
    events = [
        msgspec.structs.replace(event, received_at=NOW + 60 + chance.random()) for event in many_events(seed, 300)
    ]

    async def work(store: Store) -> None:
        for part in (shuffled[:100], shuffled[90:200], shuffled[200:], shuffled[50:150]):
            await store.add_events(part)
        assert sorted(await store.user_ids()) == sorted({event.user_id for event in events})
        assert sorted(await store.counted_items()) == sorted({one.item_id for one in events if one.item_id})
        for user_id in {event.user_id for event in events}:
            profile = await store.profile(user_id)
            own = sorted((one for one in events if one.user_id == user_id), key=_place)
            items = [as_seen(one) for one in own if one.type != "search"][-12:]
            assert [msgspec.structs.replace(one, received=False) for one in profile.events] == items
            searches = [one.query for one in own if one.type == "search"]
            assert list(profile.searches) == searches[-MOST_SEARCHES:]

    shuffled = chance.sample(events, len(events))
    within(url, work, most_events=12)


def _place(event: Event) -> tuple[object, ...]:
    return event.timestamp, event.query, weight_of(event), event.type, event.item_id


def test_what_was_acknowledged_is_there_for_another_that_opens_the_store(url: str) -> None:
    async def write(store: Store) -> None:
        await store.add_events([click(1), click(2)])
        await store.put("page", b"\x00\xff", 60)
        await store.change_items([ItemChange("i1", {"title": "One"})])

    async def read(store: Store) -> None:
        assert [seen.item_id for seen in (await store.profile("ann")).events] == ["i1", "i2"]
        assert await store.get("page") == b"\x00\xff"
        assert [change.item_id for _, change in await store.item_changes(0)] == ["i1"]
        assert await store.add_events([click(1)]) == Added(0, 1)

    within(url, write)
    within(url, read)


def test_the_same_id_of_two_users_is_two_events(url: str) -> None:
    async def work(store: Store) -> None:
        assert await store.add_events([click(1, "ann"), click(1, "bob")]) == Added(2, 0)
        assert await store.item_counters(["i1"]) == [{"click": 2}]

    within(url, work)


def test_an_event_that_comes_late_takes_its_place(url: str) -> None:
    async def work(store: Store) -> None:
        for number in (5, 1, 3):
            await store.add_events([click(number)])
        assert [seen.item_id for seen in (await store.profile("ann")).events] == ["i1", "i3", "i5"]
        await store.add_events([click(0), click(4)])  # three are kept: the oldest does not get in
        assert [seen.item_id for seen in (await store.profile("ann")).events] == ["i3", "i4", "i5"]
        assert (await store.profile("ann")).counters == {"click": 5}

    within(url, work, most_events=3)


def test_searches_are_kept_apart(url: str) -> None:
    async def work(store: Store) -> None:
        await store.add_events([search(2, "red shoes"), search(1, "boots"), click(3)])
        profile = await store.profile("ann")
        assert profile.searches == ("boots", "red shoes")
        assert [seen.item_id for seen in profile.events] == ["i3"]
        await store.add_events([search(10 + number, f"q{number}") for number in range(40)])
        assert len((await store.profile("ann")).searches) == MOST_SEARCHES

    within(url, work)


def test_the_outbox_is_read_on_from_where_the_log_stands(url: str) -> None:
    async def work(store: Store) -> None:
        await store.add_events([click(number) for number in range(5)])
        await store.add_events([click(9, "bob")], log=False)
        first = await store.outbox(0, 3)
        assert [event for _, event in first] == [click(0), click(1), click(2)]
        assert [number for number, _ in first] == sorted({number for number, _ in first})
        await store.outbox_done(first[-1][0])
        assert await store.log_position() == first[-1][0]
        rest = await store.outbox(await store.log_position(), 10)
        assert [event for _, event in rest] == [click(3), click(4)]
        assert await store.outbox(0, 10) == rest

        await store.outbox_done(rest[-1][0])
        assert await store.outbox(0, 10) == []
        await store.add_events([click(7)])
        assert [number > rest[-1][0] for number, _ in await store.outbox(0, 10)] == [True]  # no number comes twice
        await store.outbox_done(first[-1][0])  # who comes late takes nothing back
        assert await store.log_position() == rest[-1][0]

    within(url, work)


def test_of_an_item_the_last_change_is_kept(url: str) -> None:
    async def work(store: Store) -> None:
        fields = {"title": "Óne", "price": 2.5, "stock": 3, "new": True, "tags": ["a", "b"], "brand": None}
        first = await store.change_items([ItemChange("i1", {"title": "old"}), ItemChange("i2", fields)])
        assert len(await store.item_changes(0)) == 2
        last = await store.change_items([ItemChange("i1", None)])
        assert last > first
        changes = await store.item_changes(0)
        assert [(change.item_id, change.fields) for _, change in changes] == [("i2", fields), ("i1", None)]
        assert [type(value) for value in (changes[0][1].fields or {}).values()] == [type(v) for v in fields.values()]
        assert all(abs(change.changed - time.time()) < 60 for _, change in changes)
        assert await store.item_changes(first) == changes[1:]
        assert await store.item_changes(last) == []
        assert await store.item_changes(0, most=1) == changes[:1]
        assert await store.change_items([]) == last

    within(url, work)


def test_one_item_twice_in_a_batch_of_changes_is_as_the_last_says(url: str) -> None:
    async def work(store: Store) -> None:
        last = await store.change_items([ItemChange("i1", {"n": 1}), ItemChange("i1", {"n": 2})])
        (change,) = await store.item_changes(0)
        assert (change[0], change[1].fields) == (last, {"n": 2})

    within(url, work)


def test_a_value_ends_with_its_time(url: str) -> None:
    async def work(store: Store) -> None:
        await store.put("short", b"1", SHORT_SECONDS)
        await store.put("long", b"2", 60)
        await store.put("long", b"3", 60)
        assert await store.get("short") == b"1"
        await asyncio.sleep(SHORT_SECONDS + 0.05)
        assert await store.get("short") is None
        assert await store.get("long") == b"3"

    within(url, work)


def test_of_values_that_are_put_as_new_the_first_stays_until_it_ends(url: str) -> None:
    async def work(store: Store) -> None:
        asked = (store.put_new("claim", str(number).encode(), SHORT_SECONDS) for number in range(5))
        (kept,) = set(await asyncio.gather(*asked))
        assert await store.get("claim") == kept
        assert await store.put_new("other", b"2", 60) == b"2"
        await asyncio.sleep(SHORT_SECONDS + 0.05)
        assert await store.get("claim") is None
        assert await store.put_new("claim", b"6", 60) == b"6"
        assert await store.put_new("claim", b"7", 60) == b"6"

    within(url, work)


def test_a_lease_has_one_owner_until_it_ends(url: str) -> None:
    async def work(store: Store) -> None:
        assert await store.take_lease("log", "a", SHORT_SECONDS)
        assert not await store.take_lease("log", "b", 60)
        assert await store.take_lease("log", "a", SHORT_SECONDS)
        await store.give_lease("log", "b")
        assert not await store.take_lease("log", "b", 60)
        await asyncio.sleep(SHORT_SECONDS + 0.05)
        assert await store.take_lease("log", "b", 60)
        assert not await store.take_lease("log", "a", 60)
        await store.give_lease("log", "b")
        assert await store.take_lease("log", "a", 60)
        assert await store.take_lease("other", "b", 60)

    within(url, work)


def test_an_erased_user_is_gone_from_everything_but_the_tombstones(url: str) -> None:
    async def work(store: Store) -> None:
        await store.add_events([click(1), search(2, "boots"), click(3, "bob")])
        await store.put("page", b'{"items": []}', 60, user_id="ann")
        await store.put("other page", b"\xff", 60, user_id="bob")
        await store.put("nobody's", b"1", 60)
        held = await store.export_user("ann")
        assert held["user_id"] == "ann"
        assert [seen["item_id"] for seen in held["events"]] == ["i1"]
        assert held["searches"] == [{"query": "boots", "timestamp": NOW + 2}]
        assert held["counters"] == {"click": 1, "search": 1}
        assert [event["event_id"] for event in held["waiting"]] == ["e1", "s2"]
        assert held["pages"] == {"page": '{"items": []}'}

        removed = await store.erase_user("ann")
        assert (removed["profiles"], removed["waiting"], removed["pages"]) == (1, 2, 1)
        assert await store.profile("ann") == Profile("ann")
        assert await store.get("page") is None
        assert [event for _, event in await store.outbox(0, 10)] == [click(3, "bob")]
        empty = await store.export_user("ann")
        assert not any(value for name, value in empty.items() if name != "user_id")
        assert [user_id for user_id, _ in await store.erased_users()] == ["ann"]
        assert abs((await store.erased_users())[0][1] - time.time()) < 60

        assert len((await store.profile("bob")).events) == 1
        assert await store.get("other page") == b"\xff"
        assert await store.get("nobody's") == b"1"
        assert await store.add_events([click(1)]) == Added(1, 0)  # the ids are forgotten too

        await store.erase_user("nobody knows")
        await store.forget_erased(["ann"])
        assert [user_id for user_id, _ in await store.erased_users()] == ["nobody knows"]

    within(url, work)


def test_several_writers_at_once_lose_nothing_and_count_nothing_twice(url: str) -> None:
    events = many_events(7, 200)

    async def work(first: Store) -> None:
        second = open_store(url)
        try:
            batches = [events[start : start + 10] for start in range(0, len(events), 10)]
            answers = await asyncio.gather(
                *(store.add_events(batch) for batch in batches for store in (first, second, first))
            )
            assert sum(answer.accepted for answer in answers) == len(events)
            assert sum(answer.duplicates for answer in answers) == 2 * len(events)
            waiting = await second.outbox(0, 1_000)
            assert len(waiting) == len(events)
            items = sorted({event.item_id for event in events if event.item_id})
            counted = [Counter(event.type for event in events if event.item_id == item) for item in items]
            assert await second.item_counters(items) == counted
            for user_id in {event.user_id for event in events}:
                counters = (await first.profile(user_id)).counters
                assert counters == Counter(event.type for event in events if event.user_id == user_id)
        finally:
            await second.close()

    within(url, work)


def test_more_calls_at_once_than_there_are_connections_are_all_answered(url: str) -> None:
    async def work(store: Store) -> None:
        first = await asyncio.gather(*(store.add_events([click(number)]) for number in range(120)))
        assert first == [Added(1, 0)] * 120
        assert await asyncio.gather(*(store.profile("nobody") for _ in range(300))) == [Profile("nobody")] * 300
        assert len(await store.outbox(0, 1_000)) == 120

    within(url, work)
