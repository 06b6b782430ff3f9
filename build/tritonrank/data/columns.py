"""Giving the columns of a source file their types, and saying which cells do not fit.

Each function takes a column by name and returns it converted. Cells that do not fit are reported and become null;
so does the whole column when it is missing. That is safe because nobody looks at the result before
``Faults.raise_any``.
"""

import difflib
from collections.abc import Callable

import polars as pl

from tritonrank.data.faults import SHOWN_PER_KIND, Faults
from tritonrank.data.source import SourceTable
from tritonrank.system.dates import (
    FIRST_DATED_SECOND,
    FIRST_SECOND,
    LAST_DATED_SECOND,
    day_of,
    iso_seconds,
    latest_second,
    unread_number,
)

COMPACT_FORMS = ("%Y%m%d", "%Y%m%d%H%M%S")
"""Numbers that are read as dates where all of a column are."""
SHORT_YEAR = "%y%m%d%H%M"
"""2009131200 for 2020-09-13 12:00: as unix seconds such numbers are plausible, too."""
ENOUGH_TO_TELL = 10
"""Different numbers; each of them is a valid short-year time by chance once in 200 times."""
SHOWN_VALUES = 10

ROLE_WORDS = {
    "user_id": ("user", "customer", "client", "visitor", "member", "account", "person", "buyer", "session", "uid"),
    "item_id": ("item", "sku", "product", "article", "asin", "movie", "book", "document", "doc", "offer"),
    "timestamp": ("time", "date", "day", "created", "ordered", "when", "ts", "at"),
    "query": ("search", "term", "keyword", "phrase"),
    "label": ("rating", "stars", "click", "purchase", "event", "score"),
}
"""What people call the column of a setting of ``data``."""


def identifiers(table: SourceTable, name: str, faults: Faults, setting: str = "") -> pl.Series:
    """A column of ids as String: text or whole numbers, never empty.

    Here and below, ``setting`` is the key of the recipe that names the column, for the message when it is missing.
    """
    column = _column(table, name, faults, setting)
    if not (column.dtype == pl.String or column.dtype.is_integer() or column.dtype == pl.Null):
        return _mistyped(table, column, faults, "text or whole numbers", pl.String)
    ids = column.cast(pl.String)
    _report(table, ids, ids.is_null() | (ids == ""), "an id", faults, setting)
    padded = (ids != ids.str.strip_chars()).fill_null(False)
    _report(table, ids, padded & (ids != ""), "an id without blanks around it", faults, setting)
    return ids


def texts(table: SourceTable, name: str, faults: Faults, setting: str = "") -> pl.Series:
    """A column as String; null becomes the empty text, lists are joined with commas, as the server joins them."""
    column = _column(table, name, faults, setting)
    inner = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else column.dtype
    if inner.is_nested() or inner in (pl.Binary, pl.Object):
        expected = "text, numbers, booleans, dates, or lists of these"
        return _mistyped(table, column, faults, expected, pl.String)
    if isinstance(column.dtype, pl.List | pl.Array):
        cells = column.cast(pl.List(inner)).list.eval(pl.element().cast(pl.String))
        return cells.list.join(", ", ignore_nulls=True).fill_null("")
    return column.cast(pl.String).fill_null("")


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
        return _mistyped(table, column, faults, "numbers", pl.Float64)
    values = _as_numbers(column)
    if column.dtype == pl.String and values.null_count() == len(values) and (column != "").any():
        _report_words(table, column, faults, setting)
        return values
    expected = "a number" if low == -float("inf") else f"a number from {low:g} to {high:g}"
    wrong = ~(values.is_finite() & values.is_between(low, high)).fill_null(False)
    _report(table, column, wrong, expected, faults, setting)
    return values


def timestamps(table: SourceTable, name: str, faults: Faults, setting: str = "") -> pl.Series:
    """A column as Int64 unix seconds, from dates or from numbers that can mean nothing else.

    Dates without a time zone are UTC. Numbers are unix seconds of 1995 or later, up to a day after this machine's
    clock; or all of them are dates like 20200913, or all are times like 20200913120000.
    """
    column = _column(table, name, faults, setting)
    latest = latest_second()
    expected = (
        f"an ISO date such as 2020-09-13T12:00:00Z, 20200913, or unix seconds from {day_of(FIRST_SECOND)} to "
        f"{day_of(latest)}"
    )
    if column.dtype in (pl.Date, pl.Datetime):
        zone = column.dtype.time_zone if isinstance(column.dtype, pl.Datetime) else None
        seconds = _dated(column.cast(pl.Datetime("us", zone)).dt.epoch("s"))
        expected = "a time from 1971 to 9999 (those of 1970 are numbers that were taken for seconds)"
    elif column.dtype == pl.String:
        as_numbers = _as_numbers(column)
        dates = column.set(as_numbers.is_not_null(), None).map_elements(iso_seconds, return_dtype=pl.Int64)
        seconds = _numbered(as_numbers, latest).zip_with(as_numbers.is_not_null(), _dated(dates))
    elif column.dtype in (pl.Float32, pl.Float16):
        return _mistyped(table, column, faults, "Float64 or Int64, because this type rounds times to minutes", pl.Int64)
    elif column.dtype.is_numeric() or column.dtype == pl.Null:
        seconds = _numbered(_as_numbers(column), latest)
    else:
        return _mistyped(table, column, faults, "unix seconds, ISO dates or a date type", pl.Int64)
    _report(table, column, seconds.is_null(), expected, faults, setting, lambda value: _as_written(value, latest))
    return seconds


def check_unique(table: SourceTable, ids: pl.Series, faults: Faults) -> None:
    """Report every id that occurred on an earlier line."""
    again = ~ids.is_first_distinct() & ids.is_not_null() & (ids != "")
    _report(table, ids, again, "each id once; this one occurred before", faults)


def known(table: SourceTable, ids: pl.Series, catalogue: pl.Series, items: SourceTable) -> pl.Series:
    """[rows] False where an id is not one of the catalogue's; True where the items file lost rows, reported already."""
    if catalogue.drop_nulls().is_empty() or not items.complete or ids.name not in table.frame.columns:
        return pl.repeat(True, len(ids), dtype=pl.Boolean, eager=True)
    return ids.is_in(catalogue.drop_nulls().implode()).fill_null(True) | (ids == "").fill_null(True)


def check_known(table: SourceTable, ids: pl.Series, catalogue: pl.Series, items: SourceTable, faults: Faults) -> None:
    """Report ids that the items file does not have."""
    _report(table, ids, ~known(table, ids, catalogue, items), f"an item id of {items.path.name}", faults)


def _column(table: SourceTable, name: str, faults: Faults, setting: str) -> pl.Series:
    if name in table.frame.columns:
        return table.frame[name]
    if table.readable:
        message = f"no column {name!r}"
        if setting:
            message += f", which {setting} names"
        if near := _nearest(name, table.header, setting):
            message += f"; did you mean {' or '.join(map(repr, near))}?"
        message += f"{'' if message.endswith('?') else ';'} the columns are: {', '.join(table.header)}"
        if setting:
            message += f". Set {setting} to one of them"
        faults.add(table.path, f"column {name}", message, table.header_place)
    return pl.Series(name, [None] * table.frame.height, dtype=pl.Null)


def _nearest(name: str, header: list[str], setting: str) -> list[str]:
    """Up to two columns that may be meant: spelt alike, or called as people call the like."""
    by_fold = {column.strip().casefold(): column for column in header}
    spelt = difflib.get_close_matches(name.strip().casefold(), by_fold, n=2, cutoff=0.75)
    role = ROLE_WORDS.get(setting.rpartition(".")[2], ())
    named = [
        column
        for word in role
        for fold, column in by_fold.items()
        if (fold.startswith(word) or fold.endswith(word)) and (len(word) > 2 or word in fold.split("_"))
    ]
    return list(dict.fromkeys([*(by_fold[fold] for fold in spelt), *named]))[:2]


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
    table: SourceTable, column: pl.Series, faults: Faults, expected: str, dtype: type[pl.DataType]
) -> pl.Series:
    faults.add(table.path, f"type {column.name}", f"column {column.name!r} holds {column.dtype}; expected {expected}")
    return pl.Series(column.name, [None] * len(column), dtype=dtype)


def _report(
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
    wrong &= table.sound
    cells = []
    for position in wrong.arg_true().head(SHOWN_PER_KIND):
        value = column[position]
        found = "empty" if value is None or value == "" else repr(value) if isinstance(value, str) else str(value)
        hint = f" ({explain(value)})" if explain(value) else ""
        message = f"{column.name} is {found}; expected {expected}{hint}"
        cells.append((*table.place_of(position), message, f"{found}{hint}"))
    if cells:
        named = f"{column.name} ({setting})" if setting else column.name
        faults.add_cells(table.path, f"whose {named} is not {expected}", wrong, cells)


def _as_numbers(column: pl.Series) -> pl.Series:
    cells = column.str.strip_chars() if column.dtype == pl.String else column
    return cells.cast(pl.Float64, strict=False)


def _dated(seconds: pl.Series) -> pl.Series:
    """Seconds of written dates; null where no event can have been."""
    return seconds.set(~seconds.is_between(FIRST_DATED_SECOND, LAST_DATED_SECOND).fill_null(False), None)


def _numbered(values: pl.Series, latest: int) -> pl.Series:
    """Int64 unix seconds of numbers; null where a number may mean something else."""
    given = values.drop_nulls()
    plausible = values.is_between(FIRST_SECOND, latest).fill_null(False)
    seconds = values.set(~plausible, None).floor().cast(pl.Int64, strict=False)
    if plausible.sum() == len(given):
        return seconds.clear(len(seconds)) if _has_short_years(given) else seconds
    for form in COMPACT_FORMS:
        dates = _compact(values, form)
        if dates.is_between(FIRST_SECOND, latest).sum() == len(given):
            return dates
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


def _as_written(value: object, latest: int) -> str:
    try:
        number = float(value)  # type: ignore[arg-type]  # tried
    except (TypeError, ValueError, OverflowError):
        return ""
    return unread_number(number, latest) if number - number == 0 else ""
