"""Giving the columns of a source file their types, and saying which cells do not fit.

Each function takes a column by name and returns it converted. Cells that do not fit are reported and become null;
so does the whole column when it is missing. That is safe because nobody looks at the result before
``Faults.raise_any``.
"""

from datetime import UTC, datetime

import polars as pl

from tritonrank.data.faults import SHOWN_PER_KIND, Faults
from tritonrank.data.source import SourceTable

LAST_SECOND = 253_402_300_799  # the end of the year 9999; milliseconds since 2001 are beyond it, so they are found


def identifiers(table: SourceTable, name: str, faults: Faults) -> pl.Series:
    """A column of ids as String: text or whole numbers, never empty."""
    column = _column(table, name, faults)
    if not (column.dtype == pl.String or column.dtype.is_integer() or column.dtype == pl.Null):
        return _mistyped(table, column, faults, "text or whole numbers", pl.String)
    ids = column.cast(pl.String)
    _report(table, ids, ids.is_null() | (ids == ""), "an id", faults)
    return ids


def texts(table: SourceTable, name: str, faults: Faults) -> pl.Series:
    """A column as String; null becomes the empty text."""
    column = _column(table, name, faults)
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        return _mistyped(table, column, faults, "text, numbers, booleans or dates", pl.String)
    return column.cast(pl.String).fill_null("")


def numbers(
    table: SourceTable, name: str, faults: Faults, low: float = -float("inf"), high: float = float("inf")
) -> pl.Series:
    """A column as Float64, finite and from ``low`` to ``high``."""
    column = _column(table, name, faults)
    if not (column.dtype in (pl.String, pl.Boolean, pl.Null) or column.dtype.is_numeric()):
        return _mistyped(table, column, faults, "numbers", pl.Float64)
    values = _as_numbers(column)
    expected = "a number" if low == -float("inf") else f"a number from {low:g} to {high:g}"
    _report(table, column, ~(values.is_finite() & values.is_between(low, high)).fill_null(False), expected, faults)
    return values


def timestamps(table: SourceTable, name: str, faults: Faults) -> pl.Series:
    """A column as Int64 unix seconds: numbers are seconds already, dates without a time zone are UTC."""
    column = _column(table, name, faults)
    if column.dtype in (pl.Date, pl.Datetime):
        zone = column.dtype.time_zone if isinstance(column.dtype, pl.Datetime) else None
        seconds = column.cast(pl.Datetime("us", zone)).dt.epoch("s")
    elif column.dtype == pl.String:
        as_numbers = _as_numbers(column)
        dates = column.set(as_numbers.is_not_null(), None).map_elements(_iso_seconds, return_dtype=pl.Int64)
        seconds = _whole_seconds(as_numbers).zip_with(as_numbers.is_not_null(), dates)
    elif column.dtype.is_numeric() or column.dtype == pl.Null:
        seconds = _whole_seconds(_as_numbers(column))
    else:
        return _mistyped(table, column, faults, "unix seconds, ISO dates or a date type", pl.Int64)
    expected = "unix seconds (not milliseconds) or an ISO date, from 1970 to 9999"
    _report(table, column, ~seconds.is_between(0, LAST_SECOND).fill_null(False), expected, faults)
    return seconds


def check_unique(table: SourceTable, ids: pl.Series, faults: Faults) -> None:
    """Report every id that occurred on an earlier line."""
    again = ~ids.is_first_distinct() & ids.is_not_null() & (ids != "")
    _report(table, ids, again, "each id once; this one occurred before", faults)


def check_known(table: SourceTable, ids: pl.Series, known: pl.Series, items: SourceTable, faults: Faults) -> None:
    """Report ids that the items file does not have; silent when that file lost rows, which is reported already."""
    if known.drop_nulls().is_empty() or not items.complete:
        return
    unknown = ~ids.is_in(known.drop_nulls().implode()).fill_null(True) & (ids != "")
    _report(table, ids, unknown, f"an item id of {items.path.name}", faults)


def _column(table: SourceTable, name: str, faults: Faults) -> pl.Series:
    if name in table.frame.columns:
        return table.frame[name]
    if table.readable:
        message = f"no column {name!r}; expected it among the columns: {', '.join(table.frame.columns)}"
        faults.add(table.path, f"column {name}", message, ":1" if table.place == ":{}" else "")
    return pl.Series(name, [None] * table.frame.height, dtype=pl.Null)


def _mistyped(
    table: SourceTable, column: pl.Series, faults: Faults, expected: str, dtype: type[pl.DataType]
) -> pl.Series:
    faults.add(table.path, f"type {column.name}", f"column {column.name!r} holds {column.dtype}; expected {expected}")
    return pl.Series(column.name, [None] * len(column), dtype=dtype)


def _report(table: SourceTable, column: pl.Series, wrong: pl.Series, expected: str, faults: Faults) -> None:
    if column.name not in table.frame.columns:
        return  # the missing column is the fault, not its cells
    positions = (wrong & table.sound).arg_true()
    kind = f"{column.name}: {expected}"
    for position in positions.head(SHOWN_PER_KIND):
        value = column[position]
        found = "empty" if value is None or value == "" else repr(value) if isinstance(value, str) else str(value)
        message = f"{column.name} is {found}; expected {expected}"
        faults.add(table.path, kind, message, table.place.format(table.lines[position]))
    faults.hide(table.path, kind, max(len(positions) - SHOWN_PER_KIND, 0))


def _as_numbers(column: pl.Series) -> pl.Series:
    cells = column.str.strip_chars() if column.dtype == pl.String else column
    return cells.cast(pl.Float64, strict=False)


def _whole_seconds(values: pl.Series) -> pl.Series:
    return values.set(~values.is_finite().fill_null(False), None).floor().cast(pl.Int64, strict=False)


def _iso_seconds(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
