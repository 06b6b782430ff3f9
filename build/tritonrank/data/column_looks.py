"""What a column looks like by its first rows: ids, words, numbers, times. The evidence by which columns are guessed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from tritonrank.system.dates import FIRST_SECOND, day_of, iso_seconds, latest_second

ENOUGH = 0.95
"""Share of the cells that decides what a column holds; the rest is dirt."""
TRIED = 200
"""Cells that are read as dates one by one."""
EXAMPLES_SHOWN = 3
EXAMPLE_SHOWN = 40
"""Characters of a cell."""
UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
WHOLE_FRACTION = r"^(-?\d+)\.0+$"
FLAGS = frozenset({"true", "false", "yes", "no", "ja", "nein", "oui", "non", "y", "n", "t", "f"})
"""Cells of columns that say yes or no: no text."""
HTML = r"</?[a-zA-Z][a-zA-Z0-9]*(\s[^<>]*)?/?>|&(amp|nbsp|lt|gt|quot|#\d+);"


@dataclass(frozen=True)
class Looks:
    """One column's first rows."""

    name: str
    cells: pl.Series
    """String, without blanks around; null where a cell is empty"""

    @classmethod
    def of(cls, column: pl.Series) -> "Looks":
        """Of a column of any type."""
        if column.dtype.is_nested():
            inner = column.cast(pl.List(pl.String), strict=False) if isinstance(column.dtype, pl.List) else None
            text = inner.list.join(", ", ignore_nulls=True) if inner is not None else column.struct.json_encode()
        elif isinstance(column.dtype, pl.Datetime):
            text = column.dt.to_string("%Y-%m-%dT%H:%M:%S")
        else:
            text = column.cast(pl.String, strict=False)
        stripped = text.str.strip_chars()
        return cls(column.name, stripped.set((stripped == "").fill_null(False), None))

    @cached_property
    def given(self) -> pl.Series:
        """The cells that are not empty."""
        return self.cells.drop_nulls()

    @cached_property
    def ids(self) -> pl.Series:
        """Different cells as ids are compared: 12.0 is 12."""
        return self.given.str.replace(WHOLE_FRACTION, "$1").unique()

    @property
    def filled(self) -> float:
        """Share of the cells that are not empty."""
        return len(self.given) / len(self.cells) if len(self.cells) else 0.0

    @property
    def distinct_share(self) -> float:
        """Of the cells that are not empty, how many different ones."""
        return len(self.ids) / len(self.given) if len(self.given) else 0.0

    @cached_property
    def numbers(self) -> pl.Series | None:
        """Float64 without the cells that are none; None where the column holds something else."""
        values = self.given.str.replace(r"^(-?\d+),(\d+)$", "$1.$2").cast(pl.Float64, strict=False).drop_nulls()
        return values if len(values) and len(values) >= ENOUGH * len(self.given) else None

    @cached_property
    def is_whole(self) -> bool:
        """All of its numbers are whole."""
        return self.numbers is not None and bool((self.numbers == self.numbers.floor()).all())

    @cached_property
    def time(self) -> tuple[str, float, float] | None:
        """How a column of times is written, its first and its last second; None where it holds none."""
        if not len(self.given):
            return None
        if self.numbers is not None:
            latest = latest_second()
            for unit, per_second in UNITS.items():
                seconds = self.numbers / per_second
                known = seconds.filter(seconds.is_between(FIRST_SECOND, latest))
                if len(known) >= ENOUGH * len(seconds):
                    return f"unix {unit}", float(known.min()), float(known.max())  # type: ignore[arg-type]  # a number
            compact = self._written("%Y%m%d")
            return ("dates like 20200913", *compact) if compact else None
        tried = [iso_seconds(cell) for cell in self.given.head(TRIED).to_list()]
        dates = [second for second in tried if second is not None]
        return ("ISO dates", min(dates), max(dates)) if len(dates) >= ENOUGH * len(tried) else None

    @cached_property
    def seconds(self) -> pl.Series:
        """Int64 unix seconds of the cells of a column of times, in their places; null where a cell is none."""
        unit = self.time[0].removeprefix("unix ") if self.time else ""
        if unit in UNITS:
            return (self.cells.cast(pl.Float64, strict=False) / UNITS[unit]).floor().cast(pl.Int64, strict=False)
        return self.cells.map_elements(iso_seconds, return_dtype=pl.Int64)

    @property
    def period(self) -> str:
        """From which day to which, of a column of times."""
        return f"{day_of(self.time[1])} to {day_of(self.time[2])}" if self.time else ""

    def _written(self, form: str) -> tuple[float, float] | None:
        whole = self.given.str.replace(r"\.0+$", "")
        seconds = whole.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("s").drop_nulls()
        known = seconds.filter(seconds.is_between(FIRST_SECOND, latest_second()))
        return (float(known.min()), float(known.max())) if len(known) >= ENOUGH * len(whole) else None  # type: ignore[arg-type]  # a number

    @cached_property
    def is_flag(self) -> bool:
        """Its cells say yes or no."""
        return set(self.ids.str.to_lowercase()) <= FLAGS

    @cached_property
    def words_share(self) -> float:
        """Of the cells, those that have letters and are no code, address or structure."""
        if not len(self.given):
            return 0.0
        if self.is_flag:
            return 0.0
        letters = self.given.str.contains(r"\p{L}{2,}")
        other = self.given.str.contains(r"^(https?://|www\.|/|\{|\[)|^[0-9a-fA-F-]{16,}$")
        return float((letters & ~other).mean())  # type: ignore[arg-type]  # not empty

    @cached_property
    def characters(self) -> float:
        """Of the cells that are not empty, in the median."""
        return float(self.given.str.len_chars().median() or 0)  # type: ignore[arg-type]  # a number

    @cached_property
    def html_share(self) -> float:
        """Of the cells, those that hold HTML."""
        return float(self.given.str.contains(HTML).mean() or 0) if len(self.given) else 0.0  # type: ignore[arg-type]  # a number

    @property
    def is_code(self) -> bool:
        """It can identify something: no fractions, no long texts."""
        if self.numbers is not None:
            return self.is_whole
        return bool(len(self.given)) and self.characters <= 64 and float(self.given.str.count_matches(" ").mean()) < 2  # type: ignore[arg-type]  # a number

    @property
    def examples(self) -> tuple[str, ...]:
        """A few different cells."""
        cells = self.given.unique(maintain_order=True).head(EXAMPLES_SHOWN).to_list()
        return tuple(cell if len(cell) <= EXAMPLE_SHOWN else f"{cell[:EXAMPLE_SHOWN]}..." for cell in cells)


def looks_of(frame: pl.DataFrame) -> dict[str, Looks]:
    """By the columns' names, in their order."""
    return {column.name: Looks.of(column) for column in frame}


def overlap(of: Looks, among: Looks) -> float:
    """Which share of a column's different ids another column has."""
    return float(of.ids.is_in(among.ids.implode()).mean() or 0) if len(of.ids) else 0.0  # type: ignore[arg-type]  # a number


def overlap_without_zeros(of: Looks, among: Looks) -> float:
    """The same as if ids had no zeros in front; 0 where no id has one."""
    own, others = (looks.ids.cast(pl.String).str.strip_chars_start("0") for looks in (of, among))
    if not len(own) or ((own == of.ids.cast(pl.String)).all() and (others == among.ids.cast(pl.String)).all()):
        return 0.0
    return float(own.is_in(others.implode()).mean() or 0)  # type: ignore[arg-type]  # a number


def joined_examples(cells: Sequence[str]) -> str:
    """Cells for a table or a comment."""
    return ", ".join(re.sub(r"\s+", " ", cell) for cell in cells)
