"""Rows that cannot be used are dropped by a stated rule, counted by kind, and too many of a kind stop the build."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tritonrank.data.loading import Tables, load_tables
from tritonrank.errors import DataError
from tritonrank.recipe import TablesData

FIRST = 1_000_000_000
ITEMS = pl.DataFrame({"item_id": [f"i{n}" for n in range(20)], "title": [f"Item {n}" for n in range(20)]})
EVENTS = pl.DataFrame(
    {
        "user_id": [f"u{n % 4}" for n in range(40)],
        "item_id": [f"i{n % 20}" for n in range(40)],
        "timestamp": [str(FIRST + n) for n in range(40)],
        "stars": ["5"] * 40,
    }
)


def shop(folder: Path, items: pl.DataFrame = ITEMS, events: pl.DataFrame = EVENTS, **changes: Any) -> TablesData:
    paths = {"items": folder / "items.csv", "events": folder / "events.csv"}
    items.write_csv(paths["items"])
    events.write_csv(paths["events"])
    return TablesData(source="tables", text_fields=["title"], label="stars", **(paths | changes))


def one(**cells: str) -> pl.DataFrame:
    """An event of its own, but for the cells named."""
    usual = {"user_id": "u0", "item_id": "i7", "timestamp": str(FIRST + 100), "stars": "4"}
    return pl.DataFrame([usual | cells])


def load(folder: Path, *further: pl.DataFrame, **changes: Any) -> Tables:
    return load_tables(shop(folder, events=pl.concat([EVENTS, *further]), **changes), seed=1)


@pytest.mark.parametrize(
    ("wrong", "kind", "example"),
    [
        (one(user_id=""), r"events\.csv whose user_id \(data\.user_id\) is not an id", "line 42: empty"),
        (one(timestamp="soon"), r"timestamp \(data\.timestamp\) is not an ISO date", "line 42: 'soon'"),
        (one(stars="good"), r"stars \(data\.label\) is not a number", "line 42: 'good'"),
        (one(item_id="gone"), r"events of items that items\.csv does not have", "gone"),
        (one(timestamp="2999-01-01"), "events in the future", "i7"),
        (EVENTS[5:6], "events that are written twice", "i5"),
    ],
)
def test_a_bad_event_is_left_out_and_counted(tmp_path: Path, wrong: pl.DataFrame, kind: str, example: str) -> None:
    tables = load(tmp_path, wrong)
    assert tables.events.equals(load_tables(shop(tmp_path), seed=1).events)
    (dropped,) = tables.dropped
    assert re.search(kind, dropped.kind)
    assert (dropped.count, dropped.share, dropped.examples) == (1, pytest.approx(1 / 41), (example,))
    with pytest.raises(DataError, match=r"events\.csv:42|data\.tolerate"):
        load(tmp_path, wrong, tolerate=0)


def test_three_examples_of_a_kind_are_shown_and_all_counted(tmp_path: Path) -> None:
    (dropped,) = load(tmp_path, *(one(item_id=f"gone{n}") for n in range(5))).dropped
    assert (dropped.count, dropped.examples) == (5, ("gone0", "gone1", "gone2"))


def test_too_many_stop_the_build_with_one_line_per_kind(tmp_path: Path) -> None:
    bad = [EVENTS.with_columns(timestamp=pl.lit("soon")) for _ in range(3)]
    with pytest.raises(DataError) as caught:
        load(tmp_path, *bad, one(item_id="gone"), *(one(stars="") for _ in range(80)), tolerate=0.1)
    first, *kinds, advice = str(caught.value).splitlines()
    assert "data.tolerate (10.0%)" in first
    assert [re.sub(r"^ *([\d,]+) rows of events.csv whose (\w+).*$", r"\1 \2", line) for line in kinds] == [
        "120 timestamp",
        "80 stars",
    ]
    assert "--set data.tolerate=0.51" in advice


@pytest.mark.parametrize(
    ("line", "kind"),
    [("u0,i7,1000000100\n", "too many or too few fields"), ('u0,"i"7,1000000100,4\n', "no CSV"),
     ("é\udce9,i7,1000000100,4\n", "broken UTF-8")],
)  # fmt: skip
def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path, line: str, kind: str) -> None:
    settings = shop(tmp_path)
    with (tmp_path / "events.csv").open("ab") as file:
        file.write(line.encode("utf-8", "surrogateescape"))
    tables = load_tables(settings, seed=1)
    assert tables.events.height == 40
    (dropped,) = tables.dropped
    assert kind in dropped.kind
    assert dropped.examples[0].startswith("line 42: ")


def test_what_an_open_quote_swallows_is_counted(tmp_path: Path) -> None:
    settings = shop(tmp_path)
    lines = (tmp_path / "events.csv").read_text().splitlines(keepends=True)
    (tmp_path / "events.csv").write_text("".join([*lines[:21], '"', *lines[21:]]))
    with pytest.raises(DataError, match=r"20 rows of events\.csv that are no CSV \(50\.0%\)"):
        load_tables(settings, seed=1)


def test_of_a_repeated_item_the_last_row_counts_in_the_place_of_the_first(tmp_path: Path) -> None:
    items = pl.concat([ITEMS, ITEMS[3:5], ITEMS[3:4].with_columns(title=pl.lit("Now in red"))])
    tables = load_tables(shop(tmp_path, items), seed=1)
    assert tables.items["item_id"].to_list() == ITEMS["item_id"].to_list()
    assert tables.items["title"].to_list() == [*ITEMS["title"][:3], "Now in red", *ITEMS["title"][4:]]
    assert {dropped.kind: (dropped.count, dropped.examples) for dropped in tables.dropped} == {
        "repeated rows of items.csv": (2, ("i3", "i4")),
        "rows of items.csv whose item has a later row": (1, ("i3",)),
    }


def test_events_from_before_an_item_existed_are_left_out_where_its_date_is_known(tmp_path: Path) -> None:
    items = ITEMS.with_columns(since=pl.lit(FIRST + 7).cast(pl.String))
    tables = load_tables(shop(tmp_path, items, available_from="since"), seed=1)
    assert tables.items.columns == ["item_id", "title"]
    assert tables.events["timestamp"].min() == FIRST + 7
    (dropped,) = tables.dropped
    assert (dropped.kind, dropped.count) == ("events from before their item existed", 7)
    assert load_tables(shop(tmp_path, items), seed=1).events.height == 40


def test_a_table_that_is_wrong_stops_whatever_is_tolerated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.user_id"):
        load(tmp_path, one(stars=""), user_id="customer", tolerate=1)
