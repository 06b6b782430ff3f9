"""Reading a source file so that every fault can be named by its true line.

CSV goes through Python's csv module and not through polars, which fills short rows silently, stops at the first
broken one and does not say where a row began. Cells stay text here; ``columns.py`` gives them types. A row that is
broken keeps its place (its id may still be the target of other rows) but is not checked further.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars import selectors

from tritonrank.data.faults import Faults

ROWS_PER_CHUNK = 100_000  # rows held as Python objects at a time


@dataclass(frozen=True)
class SourceTable:
    """The rows of one file."""

    path: Path
    frame: pl.DataFrame
    """the file's columns; all String when the file is CSV"""
    lines: pl.Series
    """Int64; per row the line it starts on (CSV, the header is line 1) or its number from 1 (Parquet)"""
    sound: pl.Series
    """Boolean; False where the row itself is broken and has been reported"""
    place: str
    """how a line is named, with one ``{}``"""
    complete: bool = True
    """False where rows are missing because they were no CSV; ids that are not here may then exist all the same"""

    @property
    def readable(self) -> bool:
        """Whether the file gave any column at all; if not, that is reported already."""
        return self.frame.width > 0


def read_source(path: Path, faults: Faults) -> SourceTable:
    """Read a ``.csv`` or ``.parquet`` file; what is wrong with it goes to ``faults``.

    A file that cannot be read gives a table without columns.
    """
    if not path.is_file():
        faults.add(path, "missing", "no such file; expected a table here, as the recipe's data section says")
        return _nothing(path)
    try:
        match path.suffix.lower():
            case ".csv":
                return _read_csv(path, faults)
            case ".parquet":
                return _read_parquet(path, faults)
            case suffix:
                faults.add(path, "format", f"unknown file type {suffix or '(none)'!r}; expected .parquet or .csv")
    except OSError as error:
        faults.add(path, "access", f"cannot be read ({error.strerror}); expected a readable file")
    return _nothing(path)


def check_rows(table: SourceTable, faults: Faults) -> None:
    """Report a file that was read but has no rows."""
    if table.readable and table.frame.is_empty():
        faults.add(table.path, "empty", "has columns but no rows; expected at least one row")


def _read_parquet(path: Path, faults: Faults) -> SourceTable:
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        faults.add(path, "format", f"cannot be read as Parquet ({reason}); expected an undamaged Parquet file")
        return _nothing(path)
    frame = frame.cast({selectors.categorical() | selectors.enum(): pl.String})
    lines = pl.Series("line", range(1, frame.height + 1), dtype=pl.Int64)
    return SourceTable(path, frame, lines, pl.repeat(True, frame.height, eager=True), ": row {}")


def _read_csv(path: Path, faults: Faults) -> SourceTable:
    text, broken_lines = _decode(path, faults)
    rows = _rows(path, text, faults)
    _, _, header = next(rows, (1, 1, []))
    if not header:
        faults.add(path, "empty", "has no header line; expected one with the column names")
        return _nothing(path)
    if twice := sorted({name for name in header if header.count(name) > 1}):
        faults.add(path, "header", f"column {', '.join(twice)} occurs twice; expected each name once", ":1")
        return _nothing(path)

    chunks, lines, sound, chunk = [], [], [], []
    complete = True
    for first_line, last_line, row in rows:
        if not row:
            complete = False
            continue
        whole = len(row) == len(header)
        if not whole:
            expected = f"expected {len(header)} ({', '.join(header)})"
            faults.add(path, "fields", f"{len(row)} field(s); {expected}", f":{first_line}")
            row = (row + [""] * len(header))[: len(header)]
        sound.append(whole and not (broken_lines and broken_lines.intersection(range(first_line, last_line + 1))))
        lines.append(first_line)
        chunk.append(row)
        if len(chunk) == ROWS_PER_CHUNK:
            chunks.append(_frame(chunk, header))
            chunk = []
    frame = pl.concat([*chunks, _frame(chunk, header)])
    line_numbers, soundness = pl.Series(lines, dtype=pl.Int64), pl.Series(sound, dtype=pl.Boolean)
    return SourceTable(path, frame, line_numbers, soundness, ":{}", complete)


def _rows(path: Path, text: str, faults: Faults) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, cells) of every row that is not blank; a row that is no CSV has no cells."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        first_line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            expected = "every quote closed, and doubled within a cell"
            faults.add(path, "csv", f"not a CSV row ({error}); expected {expected}", f":{first_line}")
            yield first_line, reader.line_num, []
            continue
        if row:
            yield first_line, reader.line_num, row


def _decode(path: Path, faults: Faults) -> tuple[str, set[int]]:
    """The text of a file and the lines whose UTF-8 is broken; their broken bytes become U+FFFD."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig"), set()
    except UnicodeDecodeError:
        pass
    broken = set()
    offset = 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            broken.add(number)
            what = f"broken UTF-8 at byte offset {offset + error.start} (0x{line[error.start]:02X})"
            faults.add(path, "utf-8", f"{what}; expected UTF-8 throughout", f":{number}")
        offset += len(line) + 1
    return content.decode("utf-8-sig", errors="replace"), broken


def _frame(rows: list[list[str]], header: list[str]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    series = [pl.Series(name, cells, dtype=pl.String) for name, cells in zip(header, columns, strict=True)]
    return pl.DataFrame(series)


def _nothing(path: Path) -> SourceTable:
    return SourceTable(path, pl.DataFrame(), pl.Series(dtype=pl.Int64), pl.Series(dtype=pl.Boolean), ":{}")
