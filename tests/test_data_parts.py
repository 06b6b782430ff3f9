"""A table in many files is the table in one, in an order that names decide; a part that does not fit is named."""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.loading import load_tables, source_fingerprints
from tritonrank.errors import DataError
from tritonrank.pipeline import prepare
from tritonrank.recipe import Recipe, TablesData

START = 1_600_000_000
ITEMS = pl.DataFrame({"item_id": ["a", "b"], "title": ["lamp", "desk"]})


def some_events(first: int, count: int = 2) -> pl.DataFrame:
    """Rows that say which they are: ``first`` and the ones after it."""
    numbers = range(first, first + count)
    return pl.DataFrame(
        {
            "user_id": [f"u{number}" for number in numbers],
            "item_id": ["a"] * count,
            "timestamp": [START + number for number in numbers],
        }
    )


def tables(folder: Path, events: Path | None = None, **changes: Any) -> TablesData:
    ITEMS.write_parquet(folder / "items.parquet")
    paths = {"items": folder / "items.parquet", "events": events or folder / "events"}
    return TablesData(source="tables", text_fields=["title"], tolerate=0, **(paths | changes))


def users(settings: TablesData) -> list[str]:
    return load_tables(settings, seed=1).events["user_id"].to_list()


def refusal(settings: TablesData) -> str:
    with pytest.raises(DataError) as caught:
        load_tables(settings, seed=1)
    return str(caught.value)


def spark(folder: Path) -> list[str]:
    """What Spark leaves: markers, checksums, an empty part, parts whose order on disk says nothing."""
    folder.mkdir(parents=True)
    some_events(3).write_parquet(folder / "part-00002-c000.snappy.parquet")
    some_events(1).write_parquet(folder / "part-00001-c000.snappy.parquet")
    some_events(0, 0).write_parquet(folder / "part-00000-c000.snappy.parquet")
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-00001-c000.snappy.parquet.crc", "_metadata", "_common_metadata"):
        (folder / name).write_bytes(b"")
    (folder / "_temporary").mkdir()
    some_events(9).write_parquet(folder / "_temporary" / "part-00009.parquet")
    return ["u1", "u2", "u3", "u4"]


def by_day(folder: Path) -> list[str]:
    for number, day in enumerate(["2020-01-02", "2020-01-01", "__HIVE_DEFAULT_PARTITION__"]):
        (folder / f"day={day}" / "hour=1").mkdir(parents=True)
        some_events(number, 1).write_parquet(folder / f"day={day}" / "hour=1" / "part-0.parquet")
    return ["u1", "u0", "u2"]


def athena(folder: Path) -> list[str]:
    folder.mkdir()
    some_events(1).write_parquet(folder / "part.parquet")
    (folder / "part.parquet").rename(folder / "20200913_120000_bucket-00000")
    return ["u1", "u2"]


def comma_separated(folder: Path) -> list[str]:
    folder.mkdir()
    for number in (1, 0):
        some_events(2 * number).write_csv(folder / f"part-{number}.csv")
    return ["u0", "u1", "u2", "u3"]


@pytest.mark.parametrize("write", [spark, by_day, athena, comma_separated])
def test_a_folder_of_parts_is_read_in_the_order_of_names(tmp_path: Path, write: Callable[[Path], list[str]]) -> None:
    expected = write(tmp_path / "events")
    assert users(tables(tmp_path)) == expected


def test_a_single_part_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    ITEMS.write_parquet(tmp_path / "items" / "part-0.parquet")
    spark(tmp_path / "events")
    settings = tables(tmp_path, items=tmp_path / "items")
    assert load_tables(settings, seed=1).items["item_id"].to_list() == ["a", "b"]


@pytest.mark.parametrize("pattern", ["events-*.parquet", "events-[0-9].parquet", "day=*", "**/part*.parquet"])
def test_a_pattern_is_read(tmp_path: Path, pattern: str) -> None:
    for number in (2, 1):
        some_events(number, 1).write_parquet(tmp_path / f"events-{number}.parquet")
        (tmp_path / f"day={number}").mkdir()
        some_events(number, 1).write_parquet(tmp_path / f"day={number}" / "part.parquet")
        (tmp_path / f"day={number}" / "_SUCCESS").touch()
    assert users(tables(tmp_path, tmp_path / pattern)) == ["u1", "u2"]


def test_a_relative_pattern_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_events(1).write_parquet(tmp_path / "events-1.parquet")
    monkeypatch.chdir(tmp_path)
    assert users(tables(tmp_path, Path("events-*"))) == ["u1", "u2"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    some_events(1).write_parquet(tmp_path / "events[1].parquet")
    some_events(5).write_parquet(tmp_path / "events1.parquet")
    assert users(tables(tmp_path, tmp_path / "events[1].parquet")) == ["u1", "u2"]


def test_partitions_are_columns(tmp_path: Path) -> None:
    events = tmp_path / "events"
    for day, name in (("2020-01-02", "kim%20b"), ("20200101", "lee")):
        (events / f"day={day}" / f"who={name}").mkdir(parents=True)
        some_events(1, 1).drop("timestamp", "user_id").write_parquet(
            events / f"day={day}" / f"who={name}" / "p.parquet"
        )
    read = load_tables(tables(tmp_path, user_id="who", timestamp="day"), seed=1).events
    assert dict(read.select("user_id", "timestamp").iter_rows()) == {
        "kim b": int(datetime.fromisoformat("2020-01-02T00:00:00Z").timestamp()),
        "lee": int(datetime.fromisoformat("2020-01-01T00:00:00Z").timestamp()),
    }


def test_a_partition_without_a_value_is_an_empty_cell(tmp_path: Path) -> None:
    by_day(tmp_path / "events")
    message = refusal(tables(tmp_path, timestamp="day"))
    assert "1 fault(s)" in message
    assert "day=__HIVE_DEFAULT_PARTITION__/hour=1/part-0.parquet: row 1: day is empty" in message


def test_parts_may_differ_in_what_is_not_needed_and_in_width(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    some_events(1).with_columns(pl.col("timestamp").cast(pl.Int32)).write_parquet(tmp_path / "events" / "a.parquet")
    some_events(3).with_columns(extra=pl.lit(1)).write_parquet(tmp_path / "events" / "b.parquet")
    reordered = some_events(5).select("timestamp", "item_id", pl.col("user_id").cast(pl.Categorical), extra=pl.lit("x"))
    reordered.write_parquet(tmp_path / "events" / "c.parquet")
    assert users(tables(tmp_path)) == [f"u{number}" for number in range(1, 7)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop("user_id"), "no column 'user_id'"),
        (lambda frame: frame.with_columns(timestamp=pl.lit("2020-01-01")), "column 'timestamp' holds String"),
        (lambda frame: frame.with_columns(user_id=pl.lit(1.5)), "column 'user_id' holds Float64"),
    ],
)
def test_a_part_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], said: str
) -> None:
    spark(tmp_path / "events")
    change(some_events(5)).write_parquet(tmp_path / "events" / "part-00007.parquet")
    message = refusal(tables(tmp_path))
    assert "1 fault(s)" in message
    assert f"{tmp_path}/events/part-00007.parquet: {said}" in message


def test_a_fault_is_named_with_its_file_and_row(tmp_path: Path) -> None:
    spark(tmp_path / "events")
    wrong = some_events(7).with_columns(timestamp=pl.Series([START, 2020]))
    wrong.write_parquet(tmp_path / "events" / "part-00005.parquet")
    assert f"{tmp_path}/events/part-00005.parquet: row 2: timestamp is 2020" in refusal(tables(tmp_path))
    comma_separated(tmp_path / "csv")
    (tmp_path / "csv" / "part-1.csv").write_text("user_id,item_id,timestamp\nu,a,1600000000\nu,a\n")
    message = refusal(tables(tmp_path, tmp_path / "csv"))
    assert "1 fault(s)" in message
    assert f"{tmp_path}/csv/part-1.csv:3: 2 field(s)" in message


BROKEN = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "cannot be read as Parquet"),
    "nothing in it": (lambda path: path.write_bytes(b""), "0 bytes"),
    "words": (lambda path: path.write_bytes(b"not a table"), "cannot be read as Parquet"),
}


@pytest.mark.parametrize(("damage", "said"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_part_is_named(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    spark(tmp_path / "events")
    damage(tmp_path / "events" / "part-00001-c000.snappy.parquet")
    message = refusal(tables(tmp_path))
    assert "1 fault(s)" in message
    assert f"{tmp_path}/events/part-00001-c000.snappy.parquet: " in message
    assert said in message


def test_strangers_among_the_parts_are_named(tmp_path: Path) -> None:
    spark(tmp_path / "events")
    (tmp_path / "events" / "notes.md").write_text("hello")
    assert "events/notes.md: is no table" in refusal(tables(tmp_path))
    (tmp_path / "events" / "notes.md").unlink()
    some_events(1).write_csv(tmp_path / "events" / "part-3.csv")
    assert "both CSV and Parquet" in refusal(tables(tmp_path))


@pytest.mark.parametrize("log", ["_delta_log", ".hoodie", "metadata"])
def test_tables_with_a_log_of_their_own_are_not_read_file_by_file(tmp_path: Path, log: str) -> None:
    """Their folders hold files of rows that were deleted since."""
    spark(tmp_path / "events")
    (tmp_path / "events" / log).mkdir()
    (tmp_path / "events" / log / "v1.metadata.json").write_text("{}")
    message = refusal(tables(tmp_path))
    assert "1 fault(s)" in message
    assert "plain Parquet" in message


def test_empty_folders_and_patterns_without_a_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "_SUCCESS").touch()
    assert f"{tmp_path}/events: no table in this folder" in refusal(tables(tmp_path))
    assert f"{tmp_path}/events-*.csv: no file matches" in refusal(tables(tmp_path, tmp_path / "events-*.csv"))
    spark(tmp_path / "spark")
    for part in (tmp_path / "spark").glob("*.parquet"):
        some_events(0, 0).write_parquet(part)
    assert "has columns but no rows" in refusal(tables(tmp_path, tmp_path / "spark"))


def test_the_stage_depends_on_every_part(tmp_path: Path) -> None:
    spark(tmp_path / "events")
    recipe = Recipe(name="a", data=tables(tmp_path))
    assert list(source_fingerprints(recipe.data) or ()) == [
        "items/items.parquet",
        *(f"events/part-{number:05d}-c000.snappy.parquet" for number in range(3)),
    ]
    keys = [prepare.stage(recipe, Workspace(tmp_path)).key()]
    os.utime(tmp_path / "events" / "_SUCCESS", (1, 1))
    assert prepare.stage(recipe, Workspace(tmp_path)).key() == keys[0]
    some_events(5).write_parquet(tmp_path / "events" / "part-00001-c000.snappy.parquet")
    keys.append(prepare.stage(recipe, Workspace(tmp_path)).key())
    some_events(5).write_parquet(tmp_path / "events" / "part-00009.parquet")
    keys.append(prepare.stage(recipe, Workspace(tmp_path)).key())
    (tmp_path / "events" / "part-00009.parquet").rename(tmp_path / "events" / "part-00000.parquet")
    keys.append(prepare.stage(recipe, Workspace(tmp_path)).key())
    assert len(set(keys)) == 4


def test_a_stage_of_an_empty_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    with pytest.raises(DataError, match="no table in this folder"):
        prepare.stage(Recipe(name="a", data=tables(tmp_path)), Workspace(tmp_path)).key()
