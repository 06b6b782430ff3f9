"""Filters of any kind against brute force, and a catalogue that is read while it changes."""

import random
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_catalogue import tiny_catalogue
from tritonrank_recommend.catalogue import open_catalogue
from tritonrank_recommend.catalogue.interface import Liked, Wish
from tritonrank_recommend.catalogue.later_vectors import TAIL, LaterVectors
from tritonrank_recommend.catalogue.opened import OpenCatalogue
from tritonrank_recommend.stores.interface import ItemChange

COUNT = 120
BOUNDS = {"gt": "__gt__", "gte": "__ge__", "lt": "__lt__", "lte": "__le__"}


def some_fields(random: random.Random) -> dict[str, Any]:
    """Of an item, some of them absent, none of them of one kind alone."""
    return {
        "title": f"thing {random.choice('abc')}",
        "price": random.choice([None, 0, 1, 2.5, 7, -3]),
        "brand": random.choice([None, "", "A", "B", "Ünï"]),
        "tags": random.choice([None, [], ["x"], ["x", "y"], ["z"]]),
        "new": random.choice([None, True, False]),
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenCatalogue, dict[str, Mapping[str, Any]]]:
    """A catalogue of which a third was changed, with what its items are now."""
    chance = random.Random(7)
    items: dict[str, dict[str, Any]] = {f"i{number}": some_fields(chance) for number in range(COUNT)}
    folder = tmp_path_factory.mktemp("filters") / "catalogue"
    catalogue = open_catalogue(tiny_catalogue(folder, [{"item_id": name} | item for name, item in items.items()], []))
    later = {f"i{number}": some_fields(chance) for number in range(0, COUNT + 30, 3)}
    for fields in later.values():
        fields["colour"] = chance.choice(["red", "blue", None])
    catalogue.apply([ItemChange(*change) for change in later.items()])
    catalogue.wait_for_vectors(seconds=60)
    return catalogue, items | later


def admits(item: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    return all(fits(item.get(field), wanted) for field, wanted in filters.items())


def fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return value is not None and all(getattr(float(value), BOUNDS[name])(bound) for name, bound in wanted.items())
    held = value if isinstance(value, list) else [value]
    return any(one is not None and one == part for one in held for part in (wanted if isinstance(wanted, list) else [wanted]))  # noqa: E501 # fmt: skip


NUMBERS = st.sampled_from([-3, 0, 1, 2.5, 3, 7.0])
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "price": NUMBERS
        | st.lists(NUMBERS, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(BOUNDS)), NUMBERS.map(float), min_size=1, max_size=2),
        "brand": st.sampled_from(["A", "B", "Ünï", "C"]) | st.lists(st.sampled_from(["A", "C", "Ünï"]), max_size=3),
        "tags": st.sampled_from(["x", "y", "z", "w"]) | st.lists(st.sampled_from(["x", "y", "z"]), max_size=2),
        "new": st.booleans(),
        "colour": st.sampled_from(["red", "green"]),
    },
)


@settings(max_examples=100, deadline=None)
@given(FILTERS)
def test_any_filter_admits_what_it_says(
    shop: tuple[OpenCatalogue, dict[str, Mapping[str, Any]]], filters: dict[str, Any]
) -> None:
    catalogue, items = shop
    expected = sorted(name for name, item in items.items() if admits(item, filters))
    for wish in ({"sources": ("two-tower",), "query": "thing"}, {"sources": ("popular", "new", "lexical"), "query": "thing"}):  # noqa: E501 # fmt: skip
        found = catalogue.retrieve(Wish(filters=filters, size=500, **wish))
        assert sorted(found.ids) == expected
        assert not found.missing


def test_readers_see_whole_items_while_others_change_them(tmp_path: Path) -> None:
    """Each version of an item says its number in every field, so that a mixture of two would show."""
    catalogue = open_catalogue(tiny_catalogue(tmp_path / "catalogue"))
    changed = [f"item-{number:02}" for number in range(8)] + ["n0", "n1"]
    faults: list[str] = []
    ends = threading.Event()

    def title_of(number: Any) -> str:
        return f"red lamp {number % 9}"

    def read() -> None:
        while not ends.is_set():
            found = catalogue.retrieve(Wish(query="red lamp 7", history=[Liked("item-04")], size=60))
            if found.missing:
                faults.append(str(found.missing))
            if len(set(found.ids)) < len(found.ids):
                faults.append("an item twice")
            for held in catalogue.fields(found.ids):
                if held and "number" in held and held["title"] != title_of(held["number"]):
                    faults.append(f"half of one version and half of another: {held}")
            filtered = catalogue.retrieve(Wish(filters={"price": {"gt": 40}}, size=60))
            if not filtered.ids:
                faults.append("items that never changed were not found")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(150):
            version = {"title": title_of(number), "price": 1.0, "number": number}
            catalogue.apply([ItemChange(name, version) for name in changed[number % 5 :: 2]])
            catalogue.apply([ItemChange(changed[number % len(changed)], None)])
            if number % 50 == 49:
                catalogue.write_anew()
    finally:
        ends.set()
        for reader in readers:
            reader.join()
    assert not faults


def test_many_later_vectors_are_found_in_graphs_and_in_the_tail() -> None:
    chance = np.random.default_rng(2)
    rows = chance.normal(size=(TAIL + 300, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    later = LaterVectors(16)
    later.add(range(100, 100 + TAIL), rows[:TAIL].astype(np.float16))
    assert later.has_long_tail
    later.seal()
    assert not later.has_long_tail
    later.add(range(100 + TAIL, 100 + len(rows)), rows[TAIL:].astype(np.float16))
    wanted = rows[5] + rows[TAIL + 5]
    wanted /= np.linalg.norm(wanted)
    slots, scores = later.nearest(wanted, 20)
    best = np.argsort(-(rows @ wanted))[:20] + 100
    found = slots[np.argsort(-scores)][:20]
    assert len(set(best) & set(found)) >= 18
    np.testing.assert_allclose(scores, rows[slots - 100] @ wanted, atol=2e-3)
