"""The shop's rules: each holds for any list, and loses nothing; a file that is wrong is named by key."""

import datetime
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recommend_stand_ins import StandInCatalogue, StandInRanker, recommender_of
from tritonrank_recommend.engine.arrange import Situation, arranged, boosted
from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.engine.rules import (
    Blocked,
    Boost,
    Cap,
    NewItems,
    Pin,
    Rules,
    RulesError,
    RulesFile,
    SeenItems,
    read_rules,
)
from tritonrank_recommend.engine.wire import RecommendRequest

HERE = Situation("", {}, 1_000.0)
brands = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=40)


def fields_of(values: list[str | None]) -> list[dict[str, Any]]:
    return [{"brand": value, "n": place} for place, value in enumerate(values)]


@settings(max_examples=200, deadline=None)
@given(values=brands, most=st.integers(1, 3), first=st.integers(1, 30), data=st.data())
def test_a_cap_is_never_exceeded_while_others_are_left_and_nothing_is_lost(
    values: list[str | None], most: int, first: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(values))))
    rules = Rules(cap=[Cap(field="brand", most=most, first=first)])
    shown = arranged(order, fields_of(values), [math.nan] * len(values), rules, HERE)
    assert sorted(shown) == sorted(order)
    for place in range(min(first, len(shown))):
        counts = Counter(values[number] for number in shown[:place])
        value = values[shown[place]]
        if value is not None and counts[value] >= most:  # exceeded: then nobody was left who keeps it
            assert all(values[one] is not None and counts[values[one]] >= most for one in shown[place:])
    # Among items of one brand the better one stays before the worse one.
    for brand in set(values):
        kept = [number for number in shown if values[number] == brand]
        assert kept == [number for number in order if values[number] == brand]


@settings(max_examples=100, deadline=None)
@given(values=brands, most=st.integers(1, 2), share=st.floats(0, 1), data=st.data())
def test_new_items_have_their_share_as_far_as_caps_and_candidates_allow(
    values: list[str | None], most: int, share: float, data: st.DataObject
) -> None:
    ages = data.draw(st.lists(st.sampled_from([1.0, 100.0, math.nan]), min_size=len(values), max_size=len(values)))
    rules = Rules(cap=[Cap(field="brand", most=most, first=10)], new=NewItems(share=share, days=30, first=20))
    shown = arranged(list(range(len(values))), fields_of(values), ages, rules, HERE)
    assert sorted(shown) == list(range(len(values)))
    for place in range(min(20, len(shown))):
        before, due = sum(ages[one] <= 30 for one in shown[:place]), math.floor(share * (place + 1) + 1e-9)
        if before < due and not ages[shown[place]] <= 30:
            counts = Counter(values[number] for number in shown[:place])
            fitting = [one for one in shown[place:] if place >= 10 or values[one] is None or counts[values[one]] < most]
            assert not any(ages[one] <= 30 for one in fitting)


@settings(max_examples=100, deadline=None)
@given(values=brands, data=st.data())
def test_pins_stand_where_they_should_and_nothing_is_lost(values: list[str | None], data: st.DataObject) -> None:
    numbers = list(range(len(values)))
    pinned = data.draw(
        st.dictionaries(st.integers(0, 60), st.sampled_from(numbers or [0]), max_size=min(5, len(values)))
    )
    pinned = {place: number for place, number in pinned.items() if list(pinned.values()).count(number) == 1}
    rules = Rules(cap=[Cap(field="brand", most=1, first=10)])
    shown = arranged(numbers, fields_of(values), [math.nan] * len(values), rules, HERE, pinned)
    assert sorted(shown) == numbers
    for place, number in pinned.items():
        if place < len(shown) - len(pinned):
            assert shown[place] == number
    for place in range(min(10, len(shown))):  # pins count, and are not moved
        if shown[place] not in pinned.values():
            to_come = [one for one in shown[place:10] if one in pinned.values()]
            counts = Counter(values[one] for one in (*shown[:place], *to_come))
            value = values[shown[place]]
            if value is not None and counts[value] >= 1:
                rest = [one for one in shown[place:] if one not in pinned.values()]
                assert all(values[one] is not None and counts[values[one]] >= 1 for one in rest)


def test_of_a_list_each_value_is_capped() -> None:
    fields = [{"genres": ["x", "y"]}, {"genres": ["y"]}, {"genres": ["z"]}, {"genres": []}, {}]
    rules = Rules(cap=[Cap(field="genres", most=1, first=4)])
    assert arranged([0, 1, 2, 3, 4], fields, [math.nan] * 5, rules, HERE) == [0, 2, 3, 4, 1]


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
    add=st.floats(-3, 3),
    multiply=st.floats(0.1, 10),
)
def test_a_boost_moves_what_it_names_and_nothing_else(scores: list[float], add: float, multiply: float) -> None:
    before = np.array(scores, np.float32)
    fields = [{"brand": "a" if place % 2 else "b"} for place in range(len(scores))]
    after = boosted(before, fields, [Boost(when={"brand": "a"}, add=add, multiply=multiply)], HERE)
    unit = float(before.astype(np.float64).std()) or 1.0
    for place, (was, now) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        expected = was + (unit * (add + math.log(multiply)) if place % 2 else 0.0)
        assert now == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_boost_by_a_field_leaves_alone_what_lacks_it_and_scores_of_nothing_do_not_blow_it_up() -> None:
    before = np.array([0.0, 2.0, 0.0, -3.4e38], np.float32)
    fields = [{"margin": 0.5}, {"margin": True}, {}, {"margin": 1.0}]
    after = boosted(before, fields, [Boost(by="margin", add=1.0)], HERE)
    unit = float(np.array([0.0, 2.0, 0.0]).std())
    assert after[:3].tolist() == pytest.approx([0.5 * unit, 2.0, 0.0], rel=1e-5)
    assert after[3] < -3e38


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (Boost(add=1), True),
        (Boost(add=1, until=datetime.date(1970, 1, 1)), True),
        (Boost(add=1, until=datetime.date(1969, 12, 31)), False),
        (Boost(add=1, begins=datetime.date(1970, 1, 2)), False),
        (Boost(add=1, context={"page": "home"}), True),
        (Boost(add=1, context={"page": "cart"}), False),
    ],
)
def test_a_rule_is_in_force_in_its_days_and_contexts(rule: Boost, holds: bool) -> None:
    situation = Situation("", {"page": "home"}, 1_000.0)
    assert (boosted(np.array([0.0], np.float32), [{}], [rule], situation)[0] > 0) == holds


@pytest.mark.parametrize(
    ("value", "condition", "does"),
    [
        ("a", "a", True),
        ("a", ["b", "a"], True),
        (["x", "y"], "y", True),
        (3, {"gte": 3, "lt": 4}, True),
        (3, {"gt": 3}, False),
        ("3", {"gt": 1}, False),
        (True, True, True),
        ("true", True, True),
        (1980.0, "1980", True),
        (None, "a", False),
        ([], "a", False),
    ],
)
def test_a_condition_is_met_as_by_the_catalogue(value: Any, condition: Any, does: bool) -> None:
    assert meets({"f": value}, {"f": condition}) == does


WHOLE = """
[seen]
types = ["purchase"]
days = 30

[filters]
in_stock = true

[block]
item_ids = ["i59"]

[[cap]]
field = "brand"
most = 1
first = 4

[[boost]]
when = { brand = "Fern" }
add = 5.0
until = 2100-01-01

[[pin]]
item_id = "i3"
position = 1

[[pin]]
item_id = "i4"
position = 0
query = "Desk"

[new]
share = 0.1
"""


def test_a_file_is_read_and_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(WHOLE)
    file = RulesFile(path)
    assert file.rules.seen == SeenItems(types=("purchase",), days=30)
    assert file.rules.block == Blocked(item_ids=frozenset({"i59"}))
    assert (file.rules.cap[0].most, file.rules.boost[0].until) == (1, datetime.date(2100, 1, 1))
    assert not file.refresh()
    path.write_text(WHOLE + "# longer\n")
    assert file.refresh()
    path.write_text("[[cap]]\nfield = 3\nmost = 1\n")
    assert not file.refresh()
    assert "cap[0].field" in caplog.text
    assert file.rules.cap[0].field == "brand"  # the rules before stay in force
    path.unlink()
    assert not file.refresh()
    assert file.rules.cap[0].field == "brand"
    path.write_text("[filters]\nin_stock = false\n")
    assert file.refresh()
    assert file.rules.filters == {"in_stock": False}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[cap]]\nfield = 'b'\nmost = 0\n", "cap[0].most"),
        ("[[cap]]\nfield = 'b'\n", "most"),
        ("[[boost]]\nwhen = { a = 1 }\n", "boost[0]"),
        ("[[boost]]\nadd = 1\nwhen = { price = { near = 3 } }\n", "boost[0].when.price"),
        ("[[boost]]\nmultiply = 0\n", "boost[0].multiply"),
        ("[[boost]]\nadd = 1\nuntil = 'soon'\n", "boost[0].until"),
        ("[filters]\nprice = { lt = 'x' }\n", "filters.price"),
        ("[seen]\ntypes = ['stare']\n", "seen.types[0]"),
        ("[colour]\n", "colour"),
        ("[[pin]]\nitem_id = 'a'\nposition = 0\n[[pin]]\nitem_id = 'b'\nposition = 0\n", "pin[1].position"),
        ("[[pin]]\nitem_id = 'a'\nposition = 500\n", "pin[0].position"),
        ("[new]\nshare = 2\n", "new.share"),
        ("[filters\n", "line 1"),
    ],
)
def test_a_wrong_file_is_named_by_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(RulesError) as told:
        read_rules(path)
    assert str(path) in str(told.value)
    assert named in str(told.value)
    assert "docs/recommend.md" in str(told.value)
    with pytest.raises(RulesError, match="nowhere"):
        read_rules(tmp_path / "nowhere.toml")


async def test_all_rules_together_in_a_list(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(WHOLE)
    catalogue = StandInCatalogue()
    async with recommender_of(catalogue, StandInRanker(), rules=read_rules(path)) as recommender:
        answer = await recommender.recommend(RecommendRequest(size=60), seconds=5)
        items = answer.items
        assert len({item.item_id for item in items}) == len(items) == 54  # of 60 six are sold out, one of them blocked
        assert all(item.fields["in_stock"] for item in items)
        assert items[0].fields["brand"] == "Fern"  # raised
        assert items[1].item_id == "i3"  # pinned
        assert len({item.fields["brand"] for item in items[:4]}) == 4  # capped
        searched = await recommender.recommend(RecommendRequest(size=3, query=" desk"), seconds=5)
        assert [item.item_id for item in searched.items[:2]] == ["i4", "i3"]
        # What a filter or an exclusion keeps out a pin does not bring back.
        request = RecommendRequest(size=60, exclude=["i3"], filters={"brand": "Brasserie"})
        kept_out = await recommender.recommend(request, seconds=5)
        assert {item.fields["brand"] for item in kept_out.items} == {"Brasserie"}


async def test_a_pinned_item_comes_though_it_was_not_retrieved() -> None:
    rules = Rules(pin=[Pin(item_id="i50", position=2)])
    async with recommender_of(StandInCatalogue(), StandInRanker(), rules=rules) as recommender:
        answer = await recommender.recommend(RecommendRequest(size=4, candidates=5), seconds=5)
    assert [item.item_id for item in answer.items] == ["i4", "i3", "i50", "i2"]
    assert answer.items[2].sources == {"pin": 0}
    assert answer.items[2].logit is None


async def test_both_hold_where_a_rule_and_a_request_filter_the_same_field() -> None:
    rules = Rules(filters={"price": {"lt": 30}})
    async with recommender_of(StandInCatalogue(), StandInRanker(), rules=rules) as recommender:
        request = RecommendRequest(size=60, filters={"price": {"gte": 25}})
        answer = await recommender.recommend(request, seconds=5)
        assert [item.item_id for item in answer.items] == ["i29", "i28", "i27", "i26", "i25"]
        similar = await recommender.similar("i1", 50, {"price": {"gte": 20}})
        assert [item.item_id for item in similar.items] == ["i21", "i25", "i29"]
