"""Neighbours change places as often as the log says, and nothing else does."""

import datetime
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from recommend_stand_ins import StandInCatalogue, StandInRanker, recommender_of
from tritonrank_recommend.engine.arrange import Situation
from tritonrank_recommend.engine.exploring import explored
from tritonrank_recommend.engine.listing import Listed
from tritonrank_recommend.engine.pages import Entry
from tritonrank_recommend.engine.rules import Explore, Pin, Rules, RulesError, read_rules
from tritonrank_recommend.engine.shown import impression_of
from tritonrank_recommend.engine.wire import RecommendRequest

HERE = Situation(context={"page": "home"}, now=1_795_745_000.0)


def listed(count: int, *pinned: str) -> Listed:
    entries = [Entry(f"i{place}", -float(place), None, [(0, place)]) for place in range(count)]
    return Listed(entries, pinned=frozenset(pinned))


def ids(entries: list[Entry]) -> list[str]:
    return [entry.item_id for entry in entries]


def test_every_place_is_as_likely_as_the_log_says() -> None:
    rule, random, rounds = Explore(swap=0.3, first=5), Random(1), 20_000
    stood: Counter[tuple[str, int]] = Counter()
    told: dict[str, Entry] = {}
    for _ in range(rounds):
        for place, entry in enumerate(explored(listed(7, "i1"), rule, HERE, random.random)):
            stood[entry.item_id, place] += 1
            told[entry.item_id] = entry
    for item_id, entry in told.items():
        stay = 1.0 - entry.move_up - entry.move_down
        for move, chance in ((-1, entry.move_up), (0, stay), (1, entry.move_down)):
            share = stood[item_id, entry.policy_position + move] / rounds
            assert share == pytest.approx(chance, abs=0.012), (item_id, move)
    assert sum(stood.values()) == 7 * rounds
    assert {one: (told[one].move_up, told[one].move_down) for one in ("i0", "i1", "i3", "i4", "i5")} == {
        "i0": (0.0, 0.0),  # its only neighbour is pinned
        "i1": (0.0, 0.0),
        "i3": (0.15, 0.15),
        "i4": (0.15, 0.0),  # the last of the first five
        "i5": (0.0, 0.0),
    }


def test_without_the_rule_and_elsewhere_nothing_is_left_to_chance() -> None:
    def draw() -> float:
        raise AssertionError("drew a lot")

    done = listed(6)
    assert explored(done, None, HERE, draw) is done.entries
    assert explored(done, Explore(swap=0.5, context={"page": "cart"}), HERE, draw) is done.entries
    assert [one.policy_position for one in done.entries] == [-1] * 6


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_lists_are_explored_too(count: int) -> None:
    shown = explored(listed(count), Explore(swap=0.5, first=20), HERE, lambda: 0.0)
    assert ids(shown) == [*ids(listed(count).entries[:2])[::-1], *ids(listed(count).entries[2:])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[explore]\nswap = 0.7\n", "explore.swap: Expected `float` <= 0.5"),
        ("[explore]\nfirst = 10\n", "explore: Object missing required field `swap`"),
        ("[explore]\nswap = 0.1\nfirst = 1\n", "explore.first: Expected `int` >= 2"),
        ("[explore]\nswap = 0.1\nshare = 1\n", "explore: Object contains unknown field `share`"),
    ],
)
def test_a_rule_that_is_wrong_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(RulesError, match=message):
        read_rules(file)


def test_the_rule_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text("[explore]\nswap = 0.1\nuntil = 2026-12-31\n")
    assert read_rules(file) == Rules(explore=Explore(swap=0.1, until=datetime.date(2026, 12, 31)))


async def test_a_page_and_its_sequel_keep_the_order_that_was_drawn_and_the_log_is_told() -> None:
    rules = Rules(explore=Explore(swap=0.5, first=20), pin=[Pin(item_id="i7", position=2)])
    async with recommender_of(StandInCatalogue(), StandInRanker(), rules=rules) as recommender:
        orders = set()
        for _ in range(8):
            first = await recommender.recommend(RecommendRequest(user_id="u", size=6), seconds=5)
            pinned = await recommender.pages.find(first.page, "u")
            rest = await recommender.recommend(RecommendRequest(user_id="u", cursor=first.cursor, size=54), seconds=5)
            order = [item.item_id for item in (*first.items, *rest.items)]
            assert order == ids(pinned.entries)
            assert order[2] == "i7"
            assert sorted(order) == sorted(f"i{number}" for number in range(60))
            orders.add(tuple(order))
            told = impression_of(first.page, pinned, rest.items, 1.0)
            assert told.positions == tuple(range(6, 60))
            expected = [entry.policy_position for entry in pinned.entries[6:]]
            assert told.policy_positions == tuple(expected)
            assert told.move_up[14:] == told.move_down[14:] == (0.0,) * 40  # from the twentieth on nothing moves
            assert max(told.move_down) == 0.25
        assert len(orders) > 1
