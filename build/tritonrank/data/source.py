"""Reading a table so that every fault can be named by its true line: a file, a folder of parts, or a database's.

What reads one file is in ``formats/``; here the parts of a folder become one table, and what does not fit is a fault.
"""

import difflib
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import polars as pl

from tritonrank.data.faults import Faults
from tritonrank.data.formats.cells import Cells, row_number
from tritonrank.data.formats.csv_text import read_csv
from tritonrank.data.formats.databases import plain, read_database
from tritonrank.data.formats.files import READABLE, kind_of
from tritonrank.data.formats.json_lines import read_json_lines
from tritonrank.data.parts import Part, foreign_table, has_wildcard, parts_at
from tritonrank.data.whole_columns import WholeColumns
from tritonrank.errors import DataError
from tritonrank.system.database_url import AnyLocation, DatabaseUrl, FileLocation

KIND_NAMES = {"csv": "CSV", "json lines": "JSON lines", "parquet": "Parquet", "database": "rows of a database"}


class _PartRows(NamedTuple):
    """How the rows of one file are named."""

    file: AnyLocation
    first_row: int
    line_of: Callable[[int], int]
    place: str


@dataclass(frozen=True)
class SourceTable:
    """The rows of one file, of all parts of a folder one after the other, or of a table in a database."""

    path: AnyLocation
    frame: pl.DataFrame
    """the columns asked for that are there; all String when the file is CSV"""
    sound: pl.Series
    """Boolean; False where the row itself is broken and has been reported"""
    kind: str = ""
    """``csv``, ``json lines``, ``parquet`` or ``database``"""
    complete: bool = True
    """False where rows are missing because they were no CSV; ids that are not here may then exist all the same"""
    header: list[str] = field(default_factory=list)
    """the names of all columns, also of those that were not asked for"""
    decimal_comma: bool = False
    """whether 5,5 is a number"""
    notes: tuple[str, ...] = ()
    """what was guessed and has to be said, a line each"""
    parts: tuple[_PartRows, ...] = ()
    """in the order of their rows"""
    whole: WholeColumns | None = None
    """what the columns of the table are like of which this is a part; None: it is the table"""

    @property
    def readable(self) -> bool:
        """Whether the file gave any column at all; if not, that is reported already."""
        return bool(self.header)

    @property
    def header_place(self) -> str:
        """Where the column names are: line 1 of a CSV file."""
        return ":1" if self.kind == "csv" and len(self.parts) == 1 and self.parts[0].file == self.path else ""

    def place_of(self, position: int) -> tuple[AnyLocation, str]:
        """The file and the place in it of a row."""
        number = bisect_right(self.parts, position, key=lambda part: part.first_row) - 1
        part = self.parts[number]
        return part.file, part.place.format(part.line_of(position - part.first_row))


def read_source(path: AnyLocation, faults: Faults, columns: Collection[str] | None = None) -> SourceTable:
    """Read a table; what is wrong with it goes to ``faults``.

    Args:
        path: a file of text cells, JSON lines or Parquet; a folder of such files, or a pattern such as
            ``events-*.parquet``; or a table in a database. Parts come in the order of their names. Folders called
            ``day=2020-01-01`` add a column ``day``.
        faults: takes what is wrong.
        columns: those that are needed; default: all. Parts may differ in the others.

    Returns:
        The rows; without columns where nothing could be read.
    """
    if isinstance(path, DatabaseUrl):
        return _read_database(path, faults, columns)
    parts = parts_of(path, faults)
    if not parts:
        return nothing(path)
    if len(parts) == 1 and parts[0].location == path:
        return read_part(path, parts[0], faults, columns)
    tables = [read_part(path, part, faults, columns) for part in parts]
    return joined(path, [part.location for part in parts], tables, faults, columns)


def parts_of(path: FileLocation, faults: Faults) -> list[Part]:
    """The files of a table in the order of their names; none where that is a fault, which goes to ``faults``."""
    try:
        parts = parts_at(path)
    except OSError as error:
        faults.add(path, "access", f"cannot be read ({error.strerror}); expected a readable file or folder")
        return []
    if isinstance(path, Path) and path.is_dir() and (writer := foreign_table(path)):
        message = f"is {writer}, whose files alone do not say which rows hold; write the table as plain Parquet"
        faults.add(path, "format", message)
        return []
    if not parts:
        faults.add(path, "missing", _why_missing(path) if isinstance(path, Path) else f"nothing is there; {READABLE}")
    return parts


def _read_database(url: DatabaseUrl, faults: Faults, columns: Collection[str] | None) -> SourceTable:
    try:
        cells = read_database(url, columns)
    except DataError as error:
        faults.add(url, "database", str(error).removeprefix(f"{url}: "))
        return nothing(url)
    return as_table(url, cells, "database")


def check_rows(table: SourceTable, faults: Faults) -> None:
    """Report a file that was read but has no rows."""
    if table.readable and table.frame.is_empty():
        faults.add(table.path, "empty", "has columns but no rows; expected at least one row")


def _why_missing(path: Path) -> str:
    if has_wildcard(path):
        return f"no file matches; looked in {path.parent.absolute()}"
    if path.is_dir():
        return f"no table in this folder; {READABLE}"
    message = "no such file or folder; expected a table here, as the recipe's data section says"
    if not path.is_absolute():
        message += f". Looked for {path.absolute()}: the relative paths of a recipe begin at its folder"
    siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.75)
    return message + (f". There is {path.with_name(near[0])}" if near else "")


def read_part(
    path: AnyLocation, part: Part, faults: Faults, columns: Collection[str] | None, rows: tuple[int, int] | None = None
) -> SourceTable:
    """One file of a table; ``rows``: of Parquet, from which row on how many are read.

    Raises:
        StoreError: an object store does not answer, or refuses.
    """
    if part.url is None:
        return _read_file(path, part, faults, columns, rows)
    from tritonrank.data.formats.objects import copied

    told = Faults()
    with copied(part.url) as copy:
        read = _read_file(path, replace(part, file=copy), told, columns, rows)
        faults.take(told.about(str(copy), str(part.url)))
    return read


def _read_file(
    path: AnyLocation, part: Part, faults: Faults, columns: Collection[str] | None, rows: tuple[int, int] | None
) -> SourceTable:
    file = part.file
    try:
        if not file.stat().st_size and file != path:
            faults.add(path, "empty", "is empty (0 bytes): it was not written to its end; write it again", file=file)
            return nothing(path)
        kind = kind_of(file)
        match kind:
            case "csv":
                cells = read_csv(path, file, faults, columns)
            case "json lines":
                cells = read_json_lines(path, file, faults, columns)
            case "parquet":
                cells = _read_parquet(path, file, faults, columns, rows)
            case _ if file == path:
                faults.add(path, "format", f"unknown file type {file.suffix or '(none)'!r}; {READABLE}")
                return nothing(path)
            case _:
                message = f"is no table; {READABLE}. Name the parts that are with a pattern: {path}/*.parquet"
                faults.add(path, "format", message, file=file)
                return nothing(path)
    except OSError as error:
        faults.add(path, "access", f"cannot be read ({error.strerror}); expected a readable file", file=file)
        return nothing(path)
    return _with_partition(as_table(path, cells, kind), part) if cells else nothing(path)


def as_table(path: AnyLocation, cells: Cells, kind: str) -> SourceTable:
    """The table of one file or database; ``kind`` as SourceTable has it."""
    sound = pl.repeat(True, cells.frame.height, dtype=pl.Boolean, eager=True) if cells.sound is None else cells.sound
    return SourceTable(
        path=path,
        frame=cells.frame,
        sound=sound,
        kind=kind,
        complete=cells.complete,
        header=cells.header,
        decimal_comma=cells.decimal_comma,
        notes=cells.notes,
        parts=(_PartRows(path, 0, cells.line_of, cells.place),),
    )


def _with_partition(table: SourceTable, part: Part) -> SourceTable:
    added = {name: value for name, value in part.partition.items() if name not in table.header}
    if not added:
        return table
    values = [pl.lit(value, dtype=pl.String).alias(name) for name, value in added.items()]
    return replace(table, frame=table.frame.with_columns(values), header=[*table.header, *added])


def joined(
    path: AnyLocation,
    files: Sequence[FileLocation],
    tables: Sequence[SourceTable],
    faults: Faults,
    columns: Collection[str] | None,
) -> SourceTable:
    """The parts as one table; a part that does not fit the others is a fault."""
    read = [(file, table) for file, table in zip(files, tables, strict=True) if table.readable]
    complete = len(read) == len(files) and all(table.complete for table in tables)
    if len(kinds := sorted({KIND_NAMES[table.kind] for _, table in read})) > 1:
        faults.add(path, "format", f"holds both {' and '.join(kinds)}; expected one of them")
        return nothing(path)
    if not read:
        return nothing(path)
    header = list(dict.fromkeys(name for _, table in read for name in table.header))
    needed = [name for name in header if columns is None or name in columns]
    found_types = {name: _common_type([table.frame.schema.get(name) for _, table in read]) for name in needed}
    types = {name: dtype for name, dtype in found_types.items() if dtype is not None}
    first_types = {
        name: (file.name, dtype)
        for file, table in reversed(read)
        for name, dtype in table.frame.schema.items()
        if dtype != pl.Null
    }
    frames = []
    for file, table in read:
        fits = True
        for name in needed:
            found = table.frame.schema.get(name)
            if found is None:
                faults.add(path, "parts", f"no column {name!r}, which other parts have", table.header_place, file)
            elif name not in types and found not in (pl.Null, first_types[name][1]):
                expected = "expected {1} as in {0}".format(*first_types[name])
                faults.add(path, "parts", f"column {name!r} holds {found}; {expected}", file=file)
            fits &= found is not None
        if fits:
            frames.append((file, table))
        complete &= fits
    if not frames or len(types) < len(needed):
        return replace(nothing(path), complete=False)
    rows = [table.frame.select(pl.col(name).cast(dtype) for name, dtype in types.items()) for _, table in frames]
    heights = [frame.height for frame in rows]
    starts = accumulate(heights, initial=0)
    return SourceTable(
        path=path,
        frame=pl.concat(rows),
        sound=pl.concat([table.sound for _, table in frames]),
        kind=frames[0][1].kind,
        complete=complete,
        header=header,
        decimal_comma=any(table.decimal_comma for _, table in frames),
        notes=tuple(dict.fromkeys(note for _, table in frames for note in table.notes)),
        parts=tuple(
            _PartRows(file, start, table.parts[0].line_of, table.parts[0].place)
            for (file, table), start in zip(frames, starts, strict=False)
        ),
    )


def _common_type(types: Sequence[pl.DataType | None]) -> pl.DataType | None:
    """The type that all parts of a column fit into, or None."""
    distinct = {dtype for dtype in types if dtype is not None and dtype != pl.Null}
    if not distinct:
        return pl.Null()
    if len(distinct) == 1:
        return distinct.pop()
    if all(dtype.is_integer() for dtype in distinct):
        return pl.Int128() if distinct & {pl.UInt64(), pl.Int128()} else pl.Int64()
    if all(dtype.is_float() or dtype.is_integer() for dtype in distinct):  # pandas: integers with a gap are floats
        return pl.Float64()
    zones = {dtype.time_zone for dtype in distinct if isinstance(dtype, pl.Datetime)}
    if all(isinstance(dtype, pl.Datetime) for dtype in distinct) and len(zones) == 1:
        return pl.Datetime("us", zones.pop())
    return None


def _read_parquet(
    path: AnyLocation, file: Path, faults: Faults, columns: Collection[str] | None, rows: tuple[int, int] | None
) -> Cells | None:
    first, height = rows or (0, None)
    try:
        with file.open("rb") as opened:  # polars takes [ in a file's name for a pattern
            header = list(pl.read_parquet_schema(opened))
        chosen = [name for name in header if columns is None or name in columns] or header[:1]
        # Without partitions of its own: the folders above are read by _with_partition, for all kinds of parts alike.
        scan = pl.scan_parquet(file, glob=False, hive_partitioning=False).select(chosen)
        frame = (scan.slice(first, height) if rows else scan).collect()
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        message = f"cannot be read as Parquet ({reason}); expected an undamaged Parquet file"
        faults.add(path, "format", message, file=file)
        return None
    return Cells(plain(frame), header, lambda position: row_number(first + position))


def nothing(path: AnyLocation) -> SourceTable:
    """A table that could not be read."""
    return SourceTable(path, pl.DataFrame(), pl.Series(dtype=pl.Boolean))
