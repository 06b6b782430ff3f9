"""Reading a CSV file fast, where every row is sound; what is not sound goes to the careful reader beside it.

Polars reads fast but fills short rows without a word. So the bytes are checked first, with numpy and in blocks: a table
of k columns is sound when every k-th separator or line end outside quotes is a line end and no other is, and quotes
stand where a cell begins and ends. One pass finds that out at several hundred MB a second.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

BLOCK_BYTES = 8 << 20
LINE_ENDS = re.compile(rb"(\r?\n)*")
NEWLINE, RETURN, QUOTE, NUL = b'\n\r"\0'


class _Block(NamedTuple):
    end: int
    """where the next block begins: after the last row end of this one"""
    rows: int
    newlines: int
    """also those inside cells"""
    has_quotes: bool


class SoundRows(NamedTuple):
    """What the check found."""

    rows: int
    """without the header"""
    has_quotes: bool
    is_row_per_line: bool
    """whether no cell holds a line end"""


def check_sound(
    content: NDArray[np.uint8], separator: str, columns: int, *, has_quotes: bool = True
) -> SoundRows | None:
    """Whether all rows of a table are whole.

    Args:
        content: UInt8, the whole file, which is UTF-8 without a byte order mark.
        separator: of the cells.
        columns: as many as the header has; at least 2, because an empty line may be a cell where there is one.
        has_quotes: whether cells may be quoted; if not, a quote is a character like any other.

    Returns:
        None where a row is not, or where it takes a closer look to tell.
    """
    end = len(content)
    while end and content[end - 1] in (NEWLINE, RETURN):
        end -= 1
    if columns < 2 or not end or not LINE_ENDS.fullmatch(content[end:].tobytes()):
        return None
    start, rows, newlines, quoted = 0, 0, 0, False
    while start < end:
        block = _check_block(content, start, end, ord(separator), columns, has_quotes)
        if block is None:
            return None
        start = block.end
        rows += block.rows
        newlines += block.newlines
        quoted |= block.has_quotes
    return SoundRows(rows - 1, quoted, rows == newlines)


def _check_block(
    content: NDArray[np.uint8], start: int, end: int, separator: int, columns: int, has_quotes: bool
) -> _Block | None:
    block = content[start : min(start + BLOCK_BYTES, end)]
    is_last = start + len(block) == end
    if is_last:
        block = np.append(block, np.uint8(NEWLINE))  # the end of the file ends its last row
    delimiters = np.flatnonzero((block == separator) | (block == NEWLINE))
    quotes = np.flatnonzero(block == QUOTE) if has_quotes else np.array([], dtype=np.int64)
    ends = block[delimiters] == NEWLINE
    if len(quotes):
        outside = np.searchsorted(quotes, delimiters) % 2 == 0
        newlines_within = delimiters[ends & ~outside]
        delimiters, ends = delimiters[outside], ends[outside]
    else:
        newlines_within = delimiters[:0]
    whole = len(ends) // columns * columns
    if not whole or ends[:whole].sum() * columns != whole or not ends[columns - 1 : whole : columns].all():
        return None
    length = int(delimiters[whole - 1]) + 1
    if is_last and length < len(block):
        return None
    block, quotes = block[:length], quotes[: np.searchsorted(quotes, length)]
    returns = np.flatnonzero(block == RETURN)
    if (block == NUL).any() or (block[np.minimum(returns + 1, length - 1)] != NEWLINE).any():
        return None
    if len(quotes) and not _quotes_fit(block, quotes, separator):
        return None
    rows = whole // columns
    newlines = rows + int((newlines_within < length).sum())
    return _Block(min(start + length, end), rows, newlines, bool(len(quotes)))


def _quotes_fit(block: NDArray[np.uint8], quotes: NDArray[np.int64], separator: int) -> bool:
    """Whether quotes open where a cell begins, close where it ends, and are doubled within it."""
    if len(quotes) % 2:
        return False
    opening, closing = quotes[::2], quotes[1::2]
    before = np.where(opening > 0, block[np.maximum(opening - 1, 0)], NEWLINE)
    after = block[closing + 1]  # a block ends with a line end
    opens = (before == separator) | (before == NEWLINE) | (before == QUOTE)
    closes = (after == separator) | (after == NEWLINE) | (after == RETURN) | (after == QUOTE)
    # A quote before an opening one has to be the closing one of the same cell: the two are a doubled quote.
    doubled = before[1:] == QUOTE
    return bool(opens.all() and closes.all() and (opening[1:][doubled] == closing[:-1][doubled] + 1).all())


def read_sound(
    source: Path | bytes, separator: str, found: SoundRows, header: Sequence[str], columns: Sequence[str]
) -> pl.DataFrame | None:
    """The columns of a sound table as String; an empty cell is the empty text.

    Args:
        source: the file, or its bytes.
        separator: of the cells.
        found: what ``check_sound`` says.
        header: all columns.
        columns: those that are needed.

    Returns:
        None where polars sees other rows than the check did.
    """
    numbers = [header.index(name) for name in columns]
    try:
        frame = pl.read_csv(
            source,
            separator=separator,
            quote_char='"' if found.has_quotes else None,
            columns=numbers,
            infer_schema=False,
            glob=False,
        )
    except pl.exceptions.PolarsError:
        return None
    if frame.height != found.rows or sorted(numbers) != numbers:
        return None
    return frame.rename(dict(zip(frame.columns, columns, strict=True))).with_columns(pl.all().fill_null(""))
