"""A time is read as what it can only mean, or refused: never as another time."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tritonrank.data import columns, tables
from tritonrank.data.loading import load_tables
from tritonrank.data.splits import TEST, mark_splits
from tritonrank.errors import DataError
from tritonrank.recipe import ExampleSettings, TablesData

NOW = 1_800_000_000  # 2027-01-15
NOON = int(datetime(2020, 9, 13, 12, tzinfo=UTC).timestamp())
DAYS = [int(datetime(2020, 9, day, tzinfo=UTC).timestamp()) for day in (13, 14)]
SECONDS = [1_600_000_000, 1_600_000_001]


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "latest_second", lambda: NOW)
    monkeypatch.setattr(tables, "latest_second", lambda: NOW)


def tables_with(folder: Path, times: pl.Series, suffix: str = "parquet") -> TablesData:
    """Tables whose events have these times."""
    count = len(times)
    items = pl.DataFrame({"item_id": ["a"], "title": ["lamp"]})
    events = pl.DataFrame({"user_id": ["u"] * count, "item_id": ["a"] * count, "timestamp": times})
    paths = {}
    for name, frame in (("items", items), ("events", events)):
        paths[name] = folder / f"{name}.{suffix}"
        frame.write_csv(paths[name]) if suffix == "csv" else frame.write_parquet(paths[name])
    return TablesData(source="tables", text_fields=["title"], tolerate=0, **paths)


def read(folder: Path, times: pl.Series, suffix: str = "parquet") -> list[int]:
    return load_tables(tables_with(folder, times, suffix), seed=1).events["timestamp"].to_list()


def refusal(folder: Path, times: pl.Series, suffix: str = "parquet") -> str:
    with pytest.raises(DataError) as caught:
        load_tables(tables_with(folder, times, suffix), seed=1)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([20200913, 20200914], DAYS),
        ([20200913120000, 20200913120001], [NOON, NOON + 1]),
        (SECONDS, SECONDS),
        ([second * 1_000 + 999 for second in SECONDS], SECONDS),
        ([second * 1_000_000 for second in SECONDS], SECONDS),
        ([second * 1_000_000_000 for second in SECONDS], SECONDS),
        ([788_918_400, NOW], [788_918_400, NOW]),
    ],
)
@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt64, pl.Float64, pl.Decimal(20, 0), pl.String])
def test_numbers_that_can_mean_one_time_are_read(
    tmp_path: Path, values: list[int], seconds: list[int], dtype: Any
) -> None:
    assert read(tmp_path, pl.Series(values).cast(dtype)) == seconds


@pytest.mark.parametrize(
    "written", [["20200913", "20200914"], ["20200913.0", " 20200914 "], ["2.0200913e7", "20200914"]]
)
def test_compact_dates_in_text_are_read(tmp_path: Path, written: list[str]) -> None:
    assert read(tmp_path, pl.Series(written), "csv") == DAYS


def test_compact_dates_of_small_columns_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, pl.Series([20200913, 20200914], dtype=pl.Int32)) == DAYS


def test_compact_dates_mix_with_written_ones(tmp_path: Path) -> None:
    assert read(tmp_path, pl.Series(["20200913", "2020-09-14"])) == DAYS


@pytest.mark.parametrize(
    "written",
    [
        "2020-09-13 12:00:00 UTC",
        "2020-09-13T12:00:00.123456789Z",
        "2020-09-13 14:00:00+02",
        "2020-09-13T14:00:00+0200",
        "2020-09-13T06:30:00.5-05:30",
        "20200913T120000Z",
        " 2020-09-13T12:00 ",
    ],
)
def test_zones_and_fractions_are_read_however_they_are_written(tmp_path: Path, written: str) -> None:
    assert read(tmp_path, pl.Series([written, "2020-09-13T12:00:01"]), "csv") == [NOON, NOON + 1]


MEANT = {
    "not all are dates": ([20200913, 20200931], 1, "1970-08-22"),
    "dates and seconds": ([20200913, 1_600_000_000], 1, "2020-09-13"),
    "dates and times": ([20200913, 20200913120000], 1, "2020-09-13"),
    "a date with a fraction": ([20200913.5, 20200914.0], 1, "1970-08-22"),
    "a date to come": ([20300101, 20300102], 1, "1970-08-23"),
    "a date before shops": ([18991230, 18991231], 1, "1970-08-08"),
    "date and hour": ([2020091312, 2020091313], 1, "write 2020-09-13t12:00:00"),
    "date, hour, minute": ([202009131200, 202009131201], 1, "write 2020-09-13t12:00:00"),
    "month": ([202009, 202010], 1, "write 2020-09-01"),
    "day of the year": ([2020257, 2020258], 1, "write 2020-09-13"),
    "year": ([2020, 2021], 1, "write 2020-01-01"),
    "spreadsheet": ([44087, 44088], 1, "write 2020-09-13"),
    "days since 1970": ([18518, 18519], 1, "write 2020-09-13"),
    "milliseconds and seconds": ([1_600_000_000_000, 1_600_000_001], 1, "divide by 1,000"),
    "microseconds and milliseconds": ([1_600_000_000_000_000, 1_600_000_000_000], 1, "divide by 1,000,000"),
    "nanoseconds and a gap": ([1_600_000_000_000_000_000, None], 2, "empty"),
    "seconds since 2001": ([621_692_800, 621_692_801], 1, "1989-09-13"),
    "hours since 1970": ([444_444, 444_445], 1, "1970-01-06"),
    "counted from 0": ([0, 1], 1, "1970-01-01"),
    "negative": ([-5, 1_600_000_000], 1, "-5"),
    "to come": ([1_600_000_000, NOW + 1], 2, "2027-01-15"),
    "infinite": ([float("inf"), 1_600_000_000.0], 1, "inf"),
    "not a number": ([1_600_000_000.0, float("nan")], 2, "nan"),
    "missing": ([1_600_000_000, None], 2, "empty"),
    "missing among dates": ([20200913, None], 2, "empty"),
}


@pytest.mark.parametrize(("values", "row", "said"), MEANT.values(), ids=MEANT)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_numbers_are_refused_and_their_meaning_is_said(
    tmp_path: Path, suffix: str, values: list[Any], row: int, said: str
) -> None:
    message = refusal(tmp_path, pl.Series(values), suffix)
    place = f"events.csv:{row + 1}: " if suffix == "csv" else f"events.parquet: row {row}: "
    line = next(line for line in message.splitlines() if place in line)
    line = line.lower()
    assert said in line
    assert "iso date" in line


def test_dates_with_a_gap_are_refused_for_the_gap_alone(tmp_path: Path) -> None:
    message = refusal(tmp_path, pl.Series([20200913, None]))
    assert "1 fault(s)" in message


@pytest.mark.parametrize(
    "written",
    [
        "2020-09",
        "13.09.2020",
        "09/13/2020",
        "2020/09/13",
        "2020-9-3",
        "2020-02-30",
        "20200913112:30",  # Python reads a digit as the separator of date and time
        "2020-09-13x10:00",
        "Sep 13, 2020",
        "1600000000s",
        "1,600,000,000",
        "1970-01-19T12:26:40",
        "0001-01-01",
        "null",
    ],
)
def test_other_words_are_refused(tmp_path: Path, written: str) -> None:
    message = refusal(tmp_path, pl.Series(["2020-09-13", written]), "csv")
    assert "1 fault(s)" in message
    assert "events.csv:3: timestamp is" in message
    assert "ISO date" in message


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([20200913, 1], dtype=pl.Int64).cast(pl.Datetime("ns")),  # pandas.to_datetime of such numbers
        pl.Series([1_600_000_000, 1], dtype=pl.Int64).cast(pl.Datetime("ms")),
        pl.Series([1_600_000_000_000, 1], dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
        pl.Series([20200913 * 10**6, 1], dtype=pl.Int64).cast(pl.Datetime("us")),  # Spark's cast of an int
        pl.Series([date(1970, 1, 1), date(1960, 1, 1)]),
    ],
)
def test_times_of_a_date_column_that_were_made_of_other_numbers_are_refused(tmp_path: Path, times: pl.Series) -> None:
    message = refusal(tmp_path, times)
    assert "2 fault(s)" in message
    assert "1970" in message


def test_short_floats_cannot_hold_times(tmp_path: Path) -> None:
    assert "Float32" in refusal(tmp_path, pl.Series([20200913, 20200914], dtype=pl.Float32))


def short_years(count: int) -> list[int]:
    moments = [datetime(2010 + number % 7, 1 + number % 12, 1 + number % 28, number % 24, 5) for number in range(count)]
    return [int(moment.strftime("%y%m%d%H%M")) for moment in moments]


def test_times_with_short_years_are_refused_though_they_are_plausible_seconds(tmp_path: Path) -> None:
    values = short_years(40)
    assert all(788_918_400 <= value <= NOW for value in values)
    message = refusal(tmp_path, pl.Series(values))
    assert "yymmddhhmm" in message


@pytest.mark.parametrize("step", [1, 61, 3_600, 86_400, 100_003])
def test_true_seconds_are_not_taken_for_times_with_short_years(tmp_path: Path, step: int) -> None:
    values = [1_701_020_304 + number * step for number in range(60)]
    assert read(tmp_path, pl.Series(values)) == values


def test_decimals_and_fractions_are_rounded_down(tmp_path: Path) -> None:
    assert read(tmp_path, pl.Series([Decimal("1600000000.9"), Decimal("1600000001.1")])) == SECONDS


def on_days(days: Sequence[int]) -> pl.Series:
    return pl.Series([20200900 + day for day in days])


def test_a_cutoff_and_compact_dates_fit_together(tmp_path: Path) -> None:
    events = load_tables(tables_with(tmp_path, on_days([10, 12, 16, 20])), seed=1).events
    marked = mark_splits(events, ExampleSettings.model_validate({"cutoff": 20200916}))
    assert marked.filter(pl.col("split") == TEST)["timestamp"].to_list() == [
        int(datetime(2020, 9, 16, tzinfo=UTC).timestamp())
    ]
