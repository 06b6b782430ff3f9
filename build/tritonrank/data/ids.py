"""Ids as text, so that 12, 12.0 and "12" are one item whatever type a table keeps it in.

Whole numbers lose the ``.0`` that pandas gives to integers with a gap; text loses the blanks that databases pad it
with. Leading zeros stay: 007 is not 7.
"""

import polars as pl

from tritonrank.data.whole_columns import POINTED, IdFacts

EXACT_FLOATS = 2**53
"""Whole numbers up to here are exact in Float64; two ids beyond may be one number."""
EXPECTED = "text or whole numbers"


def ids_as_text(column: pl.Series, facts: IdFacts) -> pl.Series | None:
    """A column of ids as String; cells that are no ids are null. None where the type holds none at all.

    Args:
        column: of the table.
        facts: of the whole column, where this is a part of it.
    """
    dtype = column.dtype
    if dtype == pl.String:
        return _without_points(column.str.strip_chars(), facts)
    if dtype.is_integer() or dtype == pl.Null:
        return column.cast(pl.String)
    if dtype.is_float():
        is_whole = (column.is_finite() & (column == column.floor()) & (column.abs() <= EXACT_FLOATS)).fill_null(False)
        return column.set(~is_whole, None).cast(pl.Int64).cast(pl.String)
    if dtype.is_decimal():
        written = column.cast(pl.String).str.replace(r"\.0+$", "")
        return written.set(written.str.contains(".", literal=True).fill_null(False), None)
    if dtype == pl.Binary:
        return column.cast(pl.String, strict=False).str.strip_chars()
    return None


def _without_points(ids: pl.Series, facts: IdFacts) -> pl.Series:
    """12.0 as 12, where every id of the column is a whole number."""
    if not facts.whole_numbers or not ids.str.contains(POINTED).any():
        return ids
    return ids.str.replace(r"\.0+$", "")


def with_alike(ids: pl.Series, catalogue: pl.Series) -> pl.Series:
    """Ids that a catalogue does not have, each with one of it that is the same but for case and zeros."""
    alike = dict(zip(folded(catalogue).to_list(), catalogue.to_list(), strict=True))
    pairs = zip(ids.to_list(), folded(ids).to_list(), strict=True)
    return pl.Series(
        [f"{one} (there is {alike[fold]})" if fold in alike else one for one, fold in pairs], dtype=pl.String
    )


def folded(ids: pl.Series) -> pl.Series:
    """Ids without what is easily lost on the way: case and leading zeros."""
    return ids.str.to_lowercase().str.replace(r"^0+(.)", "$1")
