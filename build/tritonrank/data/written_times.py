"""Columns of times as unix seconds: dates as people and databases write them, numbers that can mean one time only."""

from dataclasses import dataclass

import polars as pl

from tritonrank.system.dates import (
    FIRST_DATED_SECOND,
    FIRST_SECOND,
    LAST_DATED_SECOND,
    iso_seconds,
    latest_second,
)

COMPACT_FORMS = ("%Y%m%d", "%Y%m%d%H%M%S")
"""Numbers that are read as dates where all of a column are."""
UNITS = (1_000, 1_000_000, 1_000_000_000)
"""Parts of a second: numbers are milli-, micro- or nanoseconds where all of a column are times as such."""
FORMS: tuple[str | int, ...] = (*COMPACT_FORMS, *UNITS)
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


@dataclass(frozen=True)
class TimeFacts:
    """Of a column of numbers: how many are times in which form. Each number is a time in one form at the most."""

    given: int = 0
    plausible: int = 0
    """as unix seconds"""
    in_form: tuple[int, ...] = (0,) * len(FORMS)
    """as each of FORMS"""
    few: frozenset[float] = frozenset()
    """different numbers, as many as are there up to ENOUGH_TO_TELL"""
    smallest: float = float("inf")
    largest: float = -float("inf")
    short_years: bool = True
    """whether all are times with a two-digit year; not looked at where not all are plausible"""

    @classmethod
    def of(cls, values: pl.Series) -> "TimeFacts":
        """The facts of Float64 numbers."""
        given, latest = values.drop_nulls(), latest_second()
        if given.is_empty():
            return cls()
        plausible = int(given.is_between(FIRST_SECOND, latest).sum())
        in_form = [0] * len(FORMS)
        short_years = False
        days = given.unique()
        if plausible < len(given):  # what is plausible is in no other form
            in_form = [int(_in_form(given, form).is_between(FIRST_SECOND, latest).sum()) for form in FORMS]
        else:
            short_years = _compact(days, SHORT_YEAR).null_count() == 0
        few = frozenset(days.head(ENOUGH_TO_TELL).to_list())
        smallest, largest = float(given.min()), float(given.max())  # type: ignore[arg-type]  # numbers here
        return cls(len(given), plausible, tuple(in_form), few, smallest, largest, short_years)

    def __add__(self, other: "TimeFacts") -> "TimeFacts":
        return TimeFacts(
            self.given + other.given,
            self.plausible + other.plausible,
            tuple(one + another for one, another in zip(self.in_form, other.in_form, strict=True)),
            frozenset(sorted(self.few | other.few)[:ENOUGH_TO_TELL]),
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
            self.short_years and other.short_years,
        )

    @property
    def have_short_years(self) -> bool:
        """Whether unix seconds are times with a two-digit year rather, so that nobody knows what they mean."""
        different = len(self.few) >= ENOUGH_TO_TELL and self.largest - self.smallest >= 86_400
        return different and self.short_years

    @property
    def form(self) -> "str | int | None":
        """Of FORMS the one that all are in; None: unix seconds."""
        if self.plausible == self.given:
            return None
        return next((form for form, count in zip(FORMS, self.in_form, strict=True) if count == self.given), None)

    @property
    def settled(self) -> object:
        """What of them decides how numbers are read."""
        return self.form, self.plausible == self.given and self.have_short_years


def seconds_of_numbers(values: pl.Series, latest: int, facts: TimeFacts) -> pl.Series:
    """Int64 unix seconds of Float64 numbers; null where a number may mean something else.

    Args:
        values: of a column.
        latest: the last second that an event may have.
        facts: of all of the column.
    """
    if facts.form is not None:
        return _in_form(values, facts.form)
    if facts.plausible == facts.given and facts.have_short_years:
        return pl.repeat(None, len(values), dtype=pl.Int64, eager=True)
    plausible = values.is_between(FIRST_SECOND, latest).fill_null(False)
    return values.set(~plausible, None).floor().cast(pl.Int64, strict=False)


def _in_form(values: pl.Series, form: str | int) -> pl.Series:
    return _compact(values, form) if isinstance(form, str) else (values / form).floor().cast(pl.Int64, strict=False)


def _compact(values: pl.Series, form: str) -> pl.Series:
    """Unix seconds of numbers that are dates without separators; null where one is none."""
    whole = values.set(~(values.is_finite() & (values == values.floor())).fill_null(False), None)
    digits = whole.cast(pl.Int64, strict=False).cast(pl.String)
    places = sum({"Y": 4}.get(field, 2) for field in form[1::2])
    digits = digits.set((digits.str.len_bytes() != places).fill_null(True), None)
    return digits.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("s")
