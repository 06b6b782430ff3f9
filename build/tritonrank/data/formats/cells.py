"""What reading one file or one database table gives."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Cells:
    """Columns as they were written, and how to name a row."""

    frame: pl.DataFrame
    """the columns asked for that are there; all String where the file is text"""
    header: list[str]
    """the names of all columns"""
    line_of: Callable[[int], int]
    """the line on which a row starts (text; the header is line 1), or its number from 1"""
    place: str = ": row {}"
    """how a line is named, with one ``{}``"""
    sound: pl.Series | None = None
    """Boolean; False where the row itself is broken and has been reported; None: all are whole"""
    complete: bool = True
    """False where rows are missing because they could not be read at all"""
    decimal_comma: bool = False
    """whether 5,5 is a number here, as it is where cells are not cut by commas"""
    notes: tuple[str, ...] = ()
    """what was guessed and has to be said, a line each"""


def row_number(position: int) -> int:
    """How rows are named where a file has no lines."""
    return position + 1
