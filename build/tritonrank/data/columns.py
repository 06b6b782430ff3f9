"""Giving the columns of a source file their types, and saying which cells do not fit.

Each function takes a column by name and returns it converted. Cells that do not fit are reported and become null;
so does the whole column when it is missing. That is safe because nobody looks at the result before
``Faults.raise_any``.
"""

from collections.abc import Callable

import polars as pl
from tritonrank_runtime.field_text import number_text

from tritonrank.data.faults import SHOWN_PER_KIND, Faults
from tritonrank.data.ids import EXPECTED, ids_as_text
from tritonrank.data.meanings import meant_by
from tritonrank.data.source import SourceTable
from tritonrank.data.whole_columns import FactsT, IdFacts, NumberFacts, TextFacts
from tritonrank.data.written_times import TimeFacts, dated, seconds_of_numbers, seconds_of_text
from tritonrank.system.dates import FIRST_SECOND, day_of, latest_second, unread_number

SHOWN_VALUES = 10
DECIMAL_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+$"


def identifiers(table: SourceTable, name: str, faults: Faults, setting: str = "") -> pl.Series:
    """A column of ids as String: text or whole numbers, never empty (``ids.py``).

    Here and below, ``setting`` is the key of the recipe that names the column, for the message when it is missing.
    """
    column = _column(table, name, faults, setting)
    ids = ids_as_text(column, _facts(table, IdFacts, name, column))
    if ids is None:
        return _mistyped(table, column, faults, EXPECTED, pl.String, setting)
    is_empty = column.is_null() | (ids == "").fill_null(False)
    report(table, ids, is_empty, "an id", faults, setting)
    report(table, column, ids.is_null() & ~is_empty, EXPECTED, faults, setting)
    return ids


def texts(table: SourceTable, name: str, faults: Faults, setting: str = "") -> pl.Series:
    """A column as String, as the server makes text of a field's value; null becomes the empty text."""
    column = _column(table, name, faults, setting)
    inner = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else column.dtype
    if inner.is_nested() or inner in (pl.Binary, pl.Object):
        expected = "text, numbers, booleans, dates, or lists of these"
        return _mistyped(table, column, faults, expected, pl.String, setting)
    if isinstance(column.dtype, pl.List | pl.Array) and inner.is_float():
        lists = [
            [number_text(part) for part in row or () if part is not None and part == part] for row in column.to_list()
        ]
        return pl.Series(name, [", ".join(row) for row in lists], dtype=pl.String)
    if isinstance(column.dtype, pl.List | pl.Array):
        cells = column.cast(pl.List(inner)).list.eval(pl.element().cast(pl.String))
        return cells.list.join(", ", ignore_nulls=True).fill_null("")
    if column.dtype.is_float() or column.dtype.is_decimal() or _facts(table, TextFacts, name, column).are_floats:
        # By way of text, because a Float32 of 0.1 is 0.10000000149 as a Float64.
        values = column.cast(pl.String).cast(pl.Float64, strict=False)
        different = values.drop_nulls().unique()
        written = pl.Series([number_text(value) for value in different], dtype=pl.String)
        return values.replace_strict(different, written, default="", return_dtype=pl.String)
    return column.cast(pl.String).fill_null("")


def _facts(table: SourceTable, kind: type[FactsT], name: str, column: pl.Series) -> FactsT:
    """What the whole of a column tells: here it is whole, unless the table is a part of another."""
    return kind.of(column) if table.whole is None else table.whole.of(kind, name, column)


def numbers(
    table: SourceTable,
    name: str,
    faults: Faults,
    setting: str = "",
    low: float = -float("inf"),
    high: float = float("inf"),
) -> pl.Series:
    """A column as Float64, finite and from ``low`` to ``high``."""
    column = _column(table, name, faults, setting)
    if not (column.dtype in (pl.String, pl.Boolean, pl.Null) or column.dtype.is_numeric()):
        return _mistyped(table, column, faults, "numbers", pl.Float64, setting)
    values = _as_numbers(column, decimal_comma=table.decimal_comma)
    has_numbers = _facts(table, NumberFacts, name, values).some
    if column.dtype == pl.String and not has_numbers and (column != "").any():
        _report_words(table, column, faults, setting)
        return values
    expected = "a number" if low == -float("inf") else f"a number from {low:g} to {high:g}"
    wrong = ~(values.is_finite() & values.is_between(low, high)).fill_null(False)
    report(table, column, wrong, expected, faults, setting)
    return values


def numbers_or_none(table: SourceTable, name: str, faults: Faults, setting: str = "") -> pl.Series:
    """A column as Float64 from 0 on, null where a cell is empty."""
    cells = texts(table, name, faults, setting).str.strip_chars()
    values = _as_numbers(cells)
    wrong = (cells != "") & ~(values.is_finite() & (values >= 0)).fill_null(False)
    report(table, cells, wrong, "a number from 0 on, or empty", faults, setting)
    return values.set(wrong, None)


def plain_values(table: SourceTable, name: str, faults: Faults, setting: str = "") -> pl.Series:
    """A column as it is, for filters: numbers stay numbers, those that a text table writes too; lists stay lists of
    texts; all else is text. Null where nothing is said."""
    column = _column(table, name, faults, setting)
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        return column.fill_nan(None) if column.dtype.is_float() else column
    if isinstance(column.dtype, pl.List | pl.Array) and not column.dtype.inner.is_nested():
        return column.cast(pl.List(pl.String))
    cells = texts(table, name, faults, setting).str.strip_chars()
    cells = cells.set(cells == "", None)
    values = _as_numbers(cells, decimal_comma=table.decimal_comma)
    if cells.str.contains(r"^[+-]?0\d").any():  # a code such as 007
        return cells
    return cells if values.null_count() > cells.null_count() or values.null_count() == len(cells) else values


def timestamps(table: SourceTable, name: str, faults: Faults, setting: str = "") -> pl.Series:
    """A column as Int64 unix seconds, from dates or from numbers that can mean nothing else.

    Dates without a time zone are UTC. Numbers are unix seconds of 1995 or later, up to a day after this machine's
    clock; or all of them are such times in milli-, micro- or nanoseconds; or all are dates like 20200913, or times like
    20200913120000.
    """
    column = _column(table, name, faults, setting)
    latest = latest_second()
    expected = (
        f"an ISO date such as 2020-09-13T12:00:00Z, 20200913, or unix seconds from {day_of(FIRST_SECOND)} to "
        f"{day_of(latest)}"
    )
    if column.dtype in (pl.Date, pl.Datetime):
        zone = column.dtype.time_zone if isinstance(column.dtype, pl.Datetime) else None
        seconds = dated(column.cast(pl.Datetime("us", zone)).dt.epoch("s"))
        expected = "a time from 1971 to 9999 (those of 1970 are numbers that were taken for seconds)"
    elif column.dtype == pl.String:
        as_numbers = _as_numbers(column)
        is_number = as_numbers.is_not_null()
        seconds = seconds_of_numbers(as_numbers, latest, _facts(table, TimeFacts, name, as_numbers))
        if not is_number.all():
            seconds = seconds.zip_with(is_number, seconds_of_text(column.set(is_number, None)))
    elif column.dtype in (pl.Float32, pl.Float16):
        expected = "Float64 or Int64, because this type rounds times to minutes"
        return _mistyped(table, column, faults, expected, pl.Int64, setting)
    elif column.dtype.is_numeric() or column.dtype == pl.Null:
        as_numbers = _as_numbers(column)
        seconds = seconds_of_numbers(as_numbers, latest, _facts(table, TimeFacts, name, as_numbers))
    else:
        return _mistyped(table, column, faults, "unix seconds, ISO dates or a date type", pl.Int64, setting)
    report(table, column, seconds.is_null(), expected, faults, setting, lambda value: _as_written(value, latest))
    return seconds


def check_unique(table: SourceTable, ids: pl.Series, faults: Faults) -> None:
    """Report every id that occurred on an earlier line."""
    again = ~ids.is_first_distinct() & ids.is_not_null() & (ids != "")
    report(table, ids, again, "each id once; this one occurred before", faults)


def known(table: SourceTable, ids: pl.Series, catalogue: pl.Series, items: SourceTable) -> pl.Series:
    """[rows] False where an id is not one of the catalogue's; True where the items file lost rows, reported already."""
    if catalogue.drop_nulls().is_empty() or not items.complete or ids.name not in table.frame.columns:
        return pl.repeat(True, len(ids), dtype=pl.Boolean, eager=True)
    return ids.is_in(catalogue.drop_nulls().implode()).fill_null(True) | (ids == "").fill_null(True)


def check_known(table: SourceTable, ids: pl.Series, catalogue: pl.Series, items: SourceTable, faults: Faults) -> None:
    """Report ids that the items file does not have."""
    unknown = ~known(table, ids, catalogue, items)
    report(table, ids, unknown, f"an item id of {items.path.name}", faults)


def _column(table: SourceTable, name: str, faults: Faults, setting: str) -> pl.Series:
    if name in table.frame.columns:
        return table.frame[name]
    if table.readable:
        message = f"no column {name!r}"
        if setting:
            message += f", which {setting} names"
        if near := meant_by(setting, name, table.header):
            message += f"; did you mean {' or '.join(map(repr, near))}?"
        message += f"{'' if message.endswith('?') else ';'} the columns are: {', '.join(table.header)}"
        if setting:
            message += f". Set {setting} to one of them"
        faults.add(table.path, f"column {name}", message, table.header_place)
    return pl.Series(name, [None] * table.frame.height, dtype=pl.Null)


def _report_words(table: SourceTable, column: pl.Series, faults: Faults, setting: str) -> None:
    """One fault for a column of words where numbers were expected: what the words are, and what to do."""
    counted = column.value_counts(sort=True).sort("count", column.name, descending=[True, False])
    shown = [f"{word!r} ({count:,})" for word, count in counted.head(SHOWN_VALUES).iter_rows()]
    more = f" and {counted.height - SHOWN_VALUES} more" if counted.height > SHOWN_VALUES else ""
    message = f"column {column.name!r} holds words: {', '.join(shown)}{more}; expected numbers"
    if setting == "data.label":
        message += (
            f". Give each a weight, 0 for what is no positive: data.label: {{column: {column.name}, "
            f"{counted[column.name][0]}: 0, ...: 1}}"
        )
    faults.add(table.path, f"column {column.name}", message)


def _mistyped(
    table: SourceTable, column: pl.Series, faults: Faults, expected: str, dtype: type[pl.DataType], setting: str
) -> pl.Series:
    mapped = f", which {setting} names," if setting else ""
    message = f"column {column.name!r}{mapped} holds {column.dtype}; expected {expected}"
    if setting:
        message += f". Convert it, or set {setting} to another of: {', '.join(table.header)}"
    faults.add(table.path, f"type {column.name}", message)
    return pl.Series(column.name, [None] * len(column), dtype=dtype)


def report(
    table: SourceTable,
    column: pl.Series,
    wrong: pl.Series,
    expected: str,
    faults: Faults,
    setting: str = "",
    explain: Callable[[object], str] = lambda _: "",
) -> None:
    """Report the cells where ``wrong`` holds; ``explain`` says of a cell's value what it may have been meant as."""
    if column.name not in table.frame.columns:
        return  # the missing column is the fault, not its cells
    named = f"{column.name} ({setting})" if setting else column.name
    what = f"whose {named} is not {expected}"
    faults.look_for(table.path, what)
    wrong &= table.sound
    cells = []
    for position in wrong.arg_true().head(SHOWN_PER_KIND):
        value = column[position]
        found = "empty" if value is None or value == "" else repr(value) if isinstance(value, str) else str(value)
        hint = f" ({explain(value)})" if explain(value) else ""
        message = f"{column.name} is {found}; expected {expected}{hint}"
        cells.append((*table.place_of(position), message, f"{found}{hint}"))
    if cells:
        faults.add_cells(table.path, what, wrong, cells)


def _as_numbers(column: pl.Series, *, decimal_comma: bool = False) -> pl.Series:
    if column.dtype != pl.String:
        return column.cast(pl.Float64, strict=False)
    cells = column.str.strip_chars()
    if decimal_comma and cells.str.contains(DECIMAL_COMMA).any():
        without_thousands = cells.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        cells = without_thousands.zip_with(cells.str.contains(DECIMAL_COMMA).fill_null(False), cells)
    return cells.cast(pl.Float64, strict=False)


def _as_written(value: object, latest: int) -> str:
    try:
        number = float(value)  # type: ignore[arg-type]  # tried
    except (TypeError, ValueError, OverflowError):
        return ""
    return unread_number(number, latest) if number - number == 0 else ""
