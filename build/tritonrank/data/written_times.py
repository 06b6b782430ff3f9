"""Columns of times as unix seconds: dates as people and databases write them, numbers that can mean one time only."""

import polars as pl

from tritonrank.system.dates import FIRST_DATED_SECOND, FIRST_SECOND, LAST_DATED_SECOND, iso_seconds

COMPACT_FORMS = ("%Y%m%d", "%Y%m%d%H%M%S")
"""Numbers that are read as dates where all of a column are."""
UNITS = (1_000, 1_000_000, 1_000_000_000)
"""Parts of a second: numbers are milli-, micro- or nanoseconds where all of a column are times as such."""
SHORT_YEAR = "%y%m%d%H%M"
"""2009131200 for 2020-09-13 12:00: as unix seconds such numbers are plausible, too."""
ENOUGH_TO_TELL = 10
"""Different numbers; each of them is a valid short-year time by chance once in 200 times."""
USUAL_DATE = r"^\d{4}-\d\d-\d\d$"
USUAL_TIME = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|z|[+-]\d\d(:?\d\d)?)?$"
"""What polars reads at once; ``iso_seconds`` reads the rest, one by one."""


def seconds_of_text(cells: pl.Series) -> pl.Series:
    """Int64 unix seconds of ISO dates and times in text; null where a cell is none."""
    written = cells.str.strip_chars().str.replace(r" ?UTC$", "Z")  # as BigQuery and Postgres write it
    is_time = written.str.contains(USUAL_TIME).fill_null(False)
    times = written.set(~is_time, None)
    moments = times.str.slice(0, 19).str.replace("T", " ", literal=True)
    seconds = moments.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us").dt.epoch("s")
    seconds = seconds - _offset_seconds(times)
    dates = written.set(~written.str.contains(USUAL_DATE).fill_null(False), None)
    seconds = seconds.fill_null(dates.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.epoch("s"))
    rest = seconds.is_null() & written.is_not_null()
    if rest.any():
        found = written.set(~rest, None).map_elements(iso_seconds, return_dtype=pl.Int64)
        seconds = seconds.fill_null(found)
    return dated(seconds)


def _offset_seconds(times: pl.Series) -> pl.Series:
    zone = times.str.extract(r"\d\d:\d\d:\d\d(?:\.\d+)?([+-]\d\d(?::?\d\d)?)$", 1)
    hours = zone.str.slice(0, 3).cast(pl.Int64, strict=False)
    minutes = zone.str.slice(3).str.replace(":", "", literal=True).cast(pl.Int64, strict=False).fill_null(0)
    sign = pl.select(pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)).to_series()
    return (hours * 3600 + sign * minutes * 60).fill_null(0)


def dated(seconds: pl.Series) -> pl.Series:
    """Seconds of written dates; null where no event can have been."""
    return seconds.set(~seconds.is_between(FIRST_DATED_SECOND, LAST_DATED_SECOND).fill_null(False), None)


def seconds_of_numbers(values: pl.Series, latest: int) -> pl.Series:
    """Int64 unix seconds of Float64 numbers; null where a number may mean something else.

    Args:
        values: all of a column.
        latest: the last second that an event may have.
    """
    given = values.drop_nulls()
    plausible = values.is_between(FIRST_SECOND, latest).fill_null(False)
    seconds = values.set(~plausible, None).floor().cast(pl.Int64, strict=False)
    if plausible.sum() == len(given):
        return seconds.clear(len(seconds)) if _has_short_years(given) else seconds
    for form in COMPACT_FORMS:
        dates = _compact(values, form)
        if dates.is_between(FIRST_SECOND, latest).sum() == len(given):
            return dates
    for per_second in UNITS:
        scaled = values / per_second
        if scaled.is_between(FIRST_SECOND, latest).sum() == len(given):
            return scaled.floor().cast(pl.Int64, strict=False)
    return seconds


def _has_short_years(values: pl.Series) -> bool:
    days = values.unique()
    if len(days) < ENOUGH_TO_TELL or days.max() - days.min() < 86_400:  # type: ignore[operator]  # numbers here
        return False
    return _compact(days, SHORT_YEAR).null_count() == 0


def _compact(values: pl.Series, form: str) -> pl.Series:
    """Unix seconds of numbers that are dates without separators; null where one is none."""
    whole = values.set(~(values.is_finite() & (values == values.floor())).fill_null(False), None)
    digits = whole.cast(pl.Int64, strict=False).cast(pl.String)
    places = sum({"Y": 4}.get(field, 2) for field in form[1::2])
    digits = digits.set((digits.str.len_bytes() != places).fill_null(True), None)
    return digits.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("s")
