"""Reading a source file so that every fault can be named by its true line.

CSV goes through Python's csv module and not through polars, which fills short rows silently, stops at the first
broken one and does not say where a row began. Cells stay text here; ``columns.py`` gives them types. A row that is
broken keeps its place (its id may still be the target of other rows) but is not checked further.
"""

import csv
import difflib
import io
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
from polars import selectors

from tritonrank.data.faults import Faults
from tritonrank.data.formats.databases import read_database
from tritonrank.data.parts import Part, find_parts, foreign_table, has_wildcard
from tritonrank.errors import DataError
from tritonrank.system.database_url import DatabaseUrl, Location

ROWS_PER_CHUNK = 100_000  # rows held as Python objects at a time
SEPARATORS = {";": "semicolon", "\t": "tab", "|": "pipe"}
FORMATS = "expected .parquet or .csv"


@dataclass(frozen=True)
class SourceTable:
    """The rows of one file, or of all parts of a folder one after the other."""

    path: Location
    frame: pl.DataFrame
    """the columns asked for that are there; all String when the file is CSV"""
    lines: pl.Series
    """Int64; per row the line it starts on (CSV, the header is line 1) or its number from 1 (Parquet), in its file"""
    sound: pl.Series
    """Boolean; False where the row itself is broken and has been reported"""
    place: str
    """how a line is named, with one ``{}``"""
    complete: bool = True
    """False where rows are missing because they were no CSV; ids that are not here may then exist all the same"""
    header: list[str] = field(default_factory=list)
    """the names of all columns, also of those that were not asked for"""
    files: tuple[Path, ...] = ()
    """the parts in the order of their rows; empty for a single file"""
    first_rows: tuple[int, ...] = ()
    """per part the number of its first row"""

    @property
    def readable(self) -> bool:
        """Whether the file gave any column at all; if not, that is reported already."""
        return bool(self.header)

    @property
    def header_place(self) -> str:
        """Where the column names are: line 1 of a CSV file."""
        return ":1" if self.place == ":{}" and not self.files else ""

    def place_of(self, position: int) -> tuple[Location, str]:
        """The file and the place in it of a row."""
        place = self.place.format(self.lines[position])
        return (self.files[bisect_right(self.first_rows, position) - 1] if self.files else self.path), place


def read_source(path: Location, faults: Faults, columns: Collection[str] | None = None) -> SourceTable:
    """Read a table; what is wrong with it goes to ``faults``.

    Args:
        path: a ``.csv`` or ``.parquet`` file, a folder of such files, or a pattern such as ``events-*.parquet``. Parts
            come in the order of their names. Folders called ``day=2020-01-01`` add a column ``day``.
        faults: takes what is wrong.
        columns: those that are needed; default: all. Parts may differ in the others.

    Returns:
        The rows; without columns where nothing could be read.
    """
    if isinstance(path, DatabaseUrl):
        return _read_database(path, faults, columns)
    try:
        parts = find_parts(path)
    except OSError as error:
        faults.add(path, "access", f"cannot be read ({error.strerror}); expected a readable file or folder")
        return _nothing(path)
    if path.is_dir() and (writer := foreign_table(path)):
        message = f"is {writer}, whose files alone do not say which rows hold; write the table as plain Parquet"
        faults.add(path, "format", message)
        return _nothing(path)
    if not parts:
        faults.add(path, "missing", _why_missing(path))
        return _nothing(path)
    if len(parts) == 1 and parts[0].file == path:
        return _read_part(path, parts[0], faults, columns)
    tables = [_read_part(path, part, faults, columns) for part in parts]
    return _joined(path, [part.file for part in parts], tables, faults, columns)


def _read_database(url: DatabaseUrl, faults: Faults, columns: Collection[str] | None) -> SourceTable:
    try:
        cells = read_database(url, columns)
    except DataError as error:
        faults.add(url, "database", str(error).removeprefix(f"{url}: "))
        return _nothing(url)
    lines = pl.Series("line", range(1, cells.frame.height + 1), dtype=pl.Int64)
    sound = pl.repeat(True, cells.frame.height, dtype=pl.Boolean, eager=True)
    return SourceTable(url, cells.frame, lines, sound, cells.place, header=cells.header)


def check_rows(table: SourceTable, faults: Faults) -> None:
    """Report a file that was read but has no rows."""
    if table.readable and table.frame.is_empty():
        faults.add(table.path, "empty", "has columns but no rows; expected at least one row")


def _why_missing(path: Path) -> str:
    if has_wildcard(path):
        return f"no file matches; looked in {path.parent.absolute()}"
    if path.is_dir():
        return "no table in this folder; expected parts that end in .parquet or .csv"
    message = "no such file or folder; expected a table here, as the recipe's data section says"
    if not path.is_absolute():
        message += f". Looked for {path.absolute()}: the relative paths of a recipe begin at its folder"
    siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.75)
    return message + (f". There is {path.with_name(near[0])}" if near else "")


def _read_part(path: Path, part: Part, faults: Faults, columns: Collection[str] | None) -> SourceTable:
    file = part.file
    try:
        if not file.stat().st_size and file != path:
            faults.add(path, "empty", "is empty (0 bytes): it was not written to its end; write it again", file=file)
            return _nothing(path)
        match _format_of(file):
            case "csv":
                table = _read_csv(path, file, faults)
            case "parquet":
                table = _read_parquet(path, part, faults, columns)
            case _ if file == path:
                faults.add(path, "format", f"unknown file type {file.suffix or '(none)'!r}; {FORMATS}")
                return _nothing(path)
            case _:
                message = f"is neither Parquet nor CSV; {FORMATS} parts alone. Name them with a pattern: "
                faults.add(path, "format", f"{message}{path / '*.parquet'}", file=file)
                return _nothing(path)
    except OSError as error:
        faults.add(path, "access", f"cannot be read ({error.strerror}); expected a readable file", file=file)
        return _nothing(path)
    return _with_partition(table, part) if table.readable else table


def _format_of(file: Path) -> str:
    """``csv``, ``parquet`` or nothing; Athena and Hive write Parquet without an ending."""
    suffix = file.suffix.lower()
    if suffix in {".csv", ".parquet"}:
        return suffix[1:]
    with file.open("rb") as opened:
        return "parquet" if not suffix and opened.read(4) == b"PAR1" else ""


def _with_partition(table: SourceTable, part: Part) -> SourceTable:
    added = {name: value for name, value in part.partition.items() if name not in table.header}
    if not added:
        return table
    values = [pl.lit(value, dtype=pl.String).alias(name) for name, value in added.items()]
    return replace(table, frame=table.frame.with_columns(values), header=[*table.header, *added])


def _joined(
    path: Path, files: Sequence[Path], tables: Sequence[SourceTable], faults: Faults, columns: Collection[str] | None
) -> SourceTable:
    """The parts as one table; a part that does not fit the others is a fault."""
    read = [(file, table) for file, table in zip(files, tables, strict=True) if table.readable]
    complete = len(read) == len(files) and all(table.complete for table in tables)
    if len({table.place for _, table in read}) > 1:
        faults.add(path, "format", "holds both CSV and Parquet; expected one of them")
        return _nothing(path)
    if not read:
        return _nothing(path)
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
        return replace(_nothing(path), complete=False)
    rows = [table.frame.select(pl.col(name).cast(dtype) for name, dtype in types.items()) for _, table in frames]
    heights = [frame.height for frame in rows]
    return SourceTable(
        path,
        pl.concat(rows),
        pl.concat([table.lines for _, table in frames]),
        pl.concat([table.sound for _, table in frames]),
        frames[0][1].place,
        complete,
        header,
        tuple(file for file, _ in frames),
        tuple(sum(heights[:number]) for number in range(len(heights))),
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
    if all(dtype.is_float() for dtype in distinct):
        return pl.Float64()
    zones = {dtype.time_zone for dtype in distinct if isinstance(dtype, pl.Datetime)}
    if all(isinstance(dtype, pl.Datetime) for dtype in distinct) and len(zones) == 1:
        return pl.Datetime("us", zones.pop())
    return None


def _read_parquet(path: Path, part: Part, faults: Faults, columns: Collection[str] | None) -> SourceTable:
    try:
        with part.file.open("rb") as opened:  # polars takes [ in a file's name for a pattern
            header = list(pl.read_parquet_schema(opened))
        chosen = [name for name in header if columns is None or name in columns]
        # Without partitions of its own: the folders above are read by _with_partition, for all kinds of parts alike.
        frame = pl.read_parquet(part.file, columns=chosen or header[:1], glob=False, hive_partitioning=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        message = f"cannot be read as Parquet ({reason}); expected an undamaged Parquet file"
        faults.add(path, "format", message, file=part.file)
        return _nothing(path)
    frame = frame.cast({selectors.categorical() | selectors.enum(): pl.String}).select(chosen or header[:1])
    lines = pl.Series("line", range(1, frame.height + 1), dtype=pl.Int64)
    sound = pl.repeat(True, frame.height, dtype=pl.Boolean, eager=True)
    return SourceTable(path, frame, lines, sound, ": row {}", header=header)


def _read_csv(path: Path, file: Path, faults: Faults) -> SourceTable:
    text, broken_lines = _decode(path, file, faults)
    rows = _rows(path, file, text, faults)
    _, _, header = next(rows, (1, 1, []))
    if not header:
        faults.add(path, "empty", "has no header line; expected one with the column names", file=file)
        return _nothing(path)
    if separator := _other_separator(header, text):
        message = f"the separator seems to be {SEPARATORS[separator]} ({separator!r}); expected commas"
        faults.add(path, "separator", f"{message}. Write the file again with commas, or as Parquet", ":1", file)
        return _nothing(path)
    if twice := sorted({name for name in header if header.count(name) > 1}):
        message = f"column {', '.join(twice)} occurs twice; expected each name once"
        faults.add(path, "header", message, ":1", file)
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
            faults.add(path, "fields", f"{len(row)} field(s); {expected}", f":{first_line}", file, rows=1)
            row = (row + [""] * len(header))[: len(header)]
        sound.append(whole and not (broken_lines and broken_lines.intersection(range(first_line, last_line + 1))))
        lines.append(first_line)
        chunk.append(row)
        if len(chunk) == ROWS_PER_CHUNK:
            chunks.append(_frame(chunk, header))
            chunk = []
    frame = pl.concat([*chunks, _frame(chunk, header)])
    line_numbers, soundness = pl.Series(lines, dtype=pl.Int64), pl.Series(sound, dtype=pl.Boolean)
    return SourceTable(path, frame, line_numbers, soundness, ":{}", complete, header)


def _other_separator(header: list[str], text: str) -> str | None:
    """What the header line is cut by if not by commas, which then gives fewer columns."""
    line = text.lstrip("\ufeff").split("\n", 1)[0]
    counts = {separator: len(next(csv.reader([line], delimiter=separator), [])) for separator in SEPARATORS}
    likely = max(counts, key=lambda separator: counts[separator])
    return likely if counts[likely] > len(header) else None


def _rows(path: Path, file: Path, text: str, faults: Faults) -> Iterator[tuple[int, int, list[str]]]:
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
            message = f"not a CSV row ({error}); expected {expected}"
            lost = reader.line_num + 1 - first_line  # a quote that never closes swallows all that come after
            faults.add(path, "csv", message, f":{first_line}", file, rows=lost)
            yield first_line, reader.line_num, []
            continue
        if row:
            yield first_line, reader.line_num, row


def _decode(path: Path, file: Path, faults: Faults) -> tuple[str, set[int]]:
    """The text of a file and the lines whose UTF-8 is broken; their broken bytes become U+FFFD."""
    content = file.read_bytes()
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
            faults.add(path, "utf-8", f"{what}; expected UTF-8 throughout", f":{number}", file, rows=1)
        offset += len(line) + 1
    return content.decode("utf-8-sig", errors="replace"), broken


def _frame(rows: list[list[str]], header: list[str]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    series = [pl.Series(name, cells, dtype=pl.String) for name, cells in zip(header, columns, strict=True)]
    return pl.DataFrame(series)


def _nothing(path: Location) -> SourceTable:
    return SourceTable(path, pl.DataFrame(), pl.Series(dtype=pl.Int64), pl.Series(dtype=pl.Boolean), ":{}")
