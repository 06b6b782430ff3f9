"""The simulated shoppers: the same world from the same seed, people who do what the truth says, and days gone wrong."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tritonrank.data.event_log import read_log
from tritonrank.data.faults import Faults

from loadtests.shoppers.played import DayLog, known_in_part, play, write_log
from loadtests.shoppers.poison import BOT, BOT_PAGES, POISONS, Poison, poisoned
from loadtests.shoppers.visits import LOOKED_AT, Step, clicked_when_looked_at, liked_in, react, settled_by, steps_of
from loadtests.shoppers.world import NEWCOMERS, World, WorldSettings

SMALL = WorldSettings(seed=3, users=20, items=60, before=4, days=6, arriving=3)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


@pytest.fixture(scope="module")
def days(world: World) -> dict[int, DayLog]:
    return dict(play(world, world.day_range, known_in_part()))


def test_the_seed_decides_everything(world: World, days: dict[int, DayLog]) -> None:
    again = World(SMALL)
    assert play(again, again.day_range, known_in_part()) == days
    other = World(WorldSettings(seed=4, users=20, items=60, before=4, days=6, arriving=3))
    assert [item.product for item in other.items] != [item.product for item in world.items]


def test_items_come_and_go_and_their_number_stays(world: World) -> None:
    for day in world.day_range:
        assert world.sold(day).sum() == SMALL.items
    assert [len(world.arriving(day)) for day in world.day_range] == [60] + 9 * [3]
    assert [len(world.leaving(day)) for day in world.day_range] == [0] + 9 * [3]
    brands = {item.product.brand: item.first_day for item in reversed(world.items)}
    assert all(brands[brand] > 0 for brand in set(NEWCOMERS) & set(brands))


def test_tastes_and_trends_drift(world: World) -> None:
    turned = sum(
        world.taste(user, day) != world.taste(user, day - 1)
        for user in range(SMALL.users)
        for day in list(world.day_range)[1:]
    )
    assert 2 <= turned <= 25  # 180 days of people, each with a chance of 5%
    first, last = (np.array([world.liked(user, day) for user in range(SMALL.users)]) for day in (-4, 5))
    assert np.abs(first - last).max() > 0.3
    assert np.allclose([*world.trend(0)[1].values()], [*world.trend(28)[1].values()])


def test_searches_are_for_what_the_person_shops(world: World) -> None:
    searches = [step for day in world.day_range for step in steps_of(world, day) if step.query]
    best = [world.items[int(liked_in(world, step).argmax())].product for step in searches]
    fits = [product.category == step.category for product, step in zip(best, searches, strict=True)]
    assert len(searches) > 20
    assert sum(fits) >= 0.9 * len(fits)  # now and then nothing of what was searched for is as good as something else


def test_clicks_are_as_likely_as_the_truth_says() -> None:
    """Of thousands of looks: by place they fall as people look, and by item they rise as it is liked."""
    crowd = World(WorldSettings(seed=1, users=400, items=60, before=2, days=4))
    expected, found = np.zeros(10), np.zeros(10)
    for day in range(4):
        for step in steps_of(crowd, day):
            sold = np.flatnonzero(crowd.sold(day))
            shown = np.random.default_rng(step.user).permutation(sold)[:10]
            chance = clicked_when_looked_at(liked_in(crowd, step))[shown]
            events = react(crowd, step, "p", [crowd.items[place].item_id for place in shown], at=0.0)
            expected += LOOKED_AT[:10] * chance
            found += np.bincount([event.position or 0 for event in events if event.type == "click"], minlength=10)
    assert (np.abs(found - expected) < 4 * np.sqrt(expected)).all()
    assert found[0] > 3 * found[9]


def test_the_same_page_gets_the_same_events_in_both_arms_and_a_change_changes_no_others(world: World) -> None:
    step = Step(0, 0, 0, 40_000.0)
    items = [item.item_id for item, sold in zip(world.items, world.sold(0), strict=True) if sold][:20]
    one = react(world, step, "a", items, at=5.0)
    assert {(e.type, e.item_id) for e in one} == {(e.type, e.item_id) for e in react(world, step, "b", items, at=9.0)}
    changed = [items[0], items[2], items[1], *items[3:]]
    kept = {items[1], items[2]}
    other = react(world, step, "a", changed, at=5.0)
    assert [e for e in one if e.item_id not in kept] == [e for e in other if e.item_id not in kept]
    assert len({event.event_id for event in one}) == len(one)


def test_what_was_bought_is_wanted_no_more(world: World, days: dict[int, DayLog]) -> None:
    settled: dict[str, set[str]] = {user: set() for user in world.users}
    for day in days.values():
        for event in day.events:
            assert event.item_id not in settled[event.user_id] or event.type == "search"
            settled[event.user_id] |= settled_by([event])
    assert any(settled.values())


def test_the_log_reads_as_a_gateways(days: dict[int, DayLog], tmp_path: Path) -> None:
    write_log(tmp_path / "log", days.values())
    faults = Faults()
    table, dropped = read_log(tmp_path / "log", faults)
    faults.raise_any()
    found = Counter(table.frame["type"].to_list())
    wanted = Counter(event.type for day in days.values() for event in day.events if event.item_id)
    assert not dropped
    assert {kind: found[kind] for kind in wanted} == wanted
    clicks = table.frame.filter(table.frame["type"] == "click")
    assert (clicks["query"] != "").sum() > 0


@pytest.mark.parametrize("poison", POISONS)
def test_poison_does_what_it_says(days: dict[int, DayLog], poison: Poison) -> None:
    day = days[2]
    bad = poisoned(day, poison)
    before, after = (Counter(event.type for event in one.events) for one in (day, bad))
    if poison == "flipped":
        assert after["click"] > 2 * before["click"]
        pairs = [{(e.page, e.item_id) for e in one.events if e.type == "click"} for one in (day, bad)]
        assert not pairs[0] & pairs[1]
    elif poison == "bot":
        assert Counter(event.user_id for event in bad.events)[BOT] == 3 * BOT_PAGES
        assert len(bad.impressions) == len(day.impressions) + BOT_PAGES
    elif poison in ("copied", "resent"):
        assert after == {kind: 3 * count for kind, count in before.items()}
        assert len({event.event_id for event in bad.events}) == len(day.events) * (3 if poison == "copied" else 1)
    elif poison == "drought":
        assert 0 < len(bad.events) <= 1 + len(day.events) / 20
    else:
        assert all(event.item_id.startswith("no-") for event in bad.events if event.item_id)
