"""Ids are text, and one item is one item whatever type a table keeps its id in."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from small_tables import EVENTS, ITEMS, write_tables
from tritonrank.data.loading import load_tables
from tritonrank.errors import DataError
from tritonrank.recipe import DataSettings


def faults_of(settings: DataSettings) -> list[str]:
    """The fault lines of a load, each cut to begin with the file's name."""
    with pytest.raises(DataError) as caught:
        load_tables(settings, seed=1)
    return [line.strip().rsplit("/", 1)[-1] for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("written", [" 10", "10 ", "\u00a010"])
def test_blanks_around_an_id_are_no_part_of_it(tmp_path: Path, written: str) -> None:
    settings = write_tables(tmp_path, "csv", events=EVENTS.with_columns(who=pl.Series([written, "b"])))
    assert load_tables(settings, seed=1).events["user_id"].to_list() == ["10", "b"]


WAYS_TO_WRITE_IDS: dict[str, pl.Series] = {
    "integers": pl.Series([10, 11]),
    "small integers": pl.Series([10, 11], dtype=pl.UInt8),
    "floats": pl.Series([10.0, 11.0]),
    "short floats": pl.Series([10.0, 11.0], dtype=pl.Float32),
    "text": pl.Series(["10", "11"]),
    "text of floats": pl.Series(["10.0", "11"]),
    "padded text": pl.Series(["10    ", "11    "]),
    "categories": pl.Series(["10", "11"], dtype=pl.Categorical),
    "enums": pl.Series(["10", "11"], dtype=pl.Enum(["11", "10"])),
    "decimals": pl.Series([Decimal("10"), Decimal("11")], dtype=pl.Decimal(38, 0)),
    "decimals with places": pl.Series([Decimal("10.00"), Decimal("11.00")]),
    "binary": pl.Series([b"10", b"11"]),
}


@pytest.mark.parametrize("of_items", WAYS_TO_WRITE_IDS)
@pytest.mark.parametrize("of_events", ["text", "floats", "text of floats", "binary"])
def test_ids_meet_whatever_type_they_have(tmp_path: Path, of_items: str, of_events: str) -> None:
    items = ITEMS.with_columns(WAYS_TO_WRITE_IDS[of_items].alias("sku"))
    events = EVENTS.with_columns(WAYS_TO_WRITE_IDS[of_events].alias("sku"))
    tables = load_tables(write_tables(tmp_path, "parquet", items, events), seed=1)
    assert tables.items["item_id"].to_list() == tables.events["item_id"].to_list() == ["10", "11"]


def test_points_of_ids_that_are_no_numbers_stay(tmp_path: Path) -> None:
    for ids in (["1.0", "1.5"], ["1.0", "A"], ["v1.0", "v1.1"]):
        events = EVENTS.with_columns(who=pl.Series(ids))
        tables = load_tables(write_tables(tmp_path, "csv", events=events), seed=1)
        assert tables.events["user_id"].to_list() == ids


@pytest.mark.parametrize("values", [[True, False], [[1], [2]], [date(2024, 1, 1), date(2024, 1, 2)]])
def test_columns_that_can_hold_no_ids_are_named_with_their_setting(tmp_path: Path, values: list[object]) -> None:
    settings = write_tables(tmp_path, "parquet", events=EVENTS.with_columns(who=pl.Series(values)))
    (fault,) = faults_of(settings)
    assert fault.startswith("events.parquet: column 'who', which data.user_id names, holds")
    assert "who, sku, at" in fault


@pytest.mark.parametrize("values", [[10.5, 11.0], [float("nan"), 1.0], [2.0**60, 1.0], [Decimal("1.5"), Decimal(2)]])
def test_numbers_that_are_no_ids_are_named_by_their_row(tmp_path: Path, values: list[object]) -> None:
    settings = write_tables(tmp_path, "parquet", events=EVENTS.with_columns(who=pl.Series(values)))
    (fault,) = faults_of(settings)
    assert fault.startswith("events.parquet: row 1: who is ")
    assert "whole numbers" in fault


def test_ids_that_differ_in_leading_zeros_are_explained(tmp_path: Path) -> None:
    items = ITEMS.with_columns(sku=pl.Series(["0010", "0011"]))
    faults = faults_of(write_tables(tmp_path, "csv", items))
    assert "11 (there is 0011)" in faults[0]


def test_ids_are_taken_letter_by_letter(tmp_path: Path) -> None:
    ids = ["-0", "1e3", "007", "7"]
    items = pl.DataFrame({"sku": ids, "name": ids, "watts": ids})
    events = pl.DataFrame({"who": ids, "sku": ids, "at": [1_000_000_000] * 4, "search": ids, "stars": [1] * 4})
    tables = load_tables(write_tables(tmp_path, "csv", items, events), seed=1)
    assert tables.items["item_id"].to_list() == tables.events["user_id"].to_list() == ids
