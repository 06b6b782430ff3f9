"""A quick look at a table: its columns, their types and its first rows, without reading a big file whole."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tritonrank.data.formats.csv_text import TOLD_SEPARATOR
from tritonrank.data.formats.databases import first_rows, plain
from tritonrank.data.formats.encodings import guess_encoding, marked_encoding
from tritonrank.data.formats.files import READABLE, is_packed, kind_of, open_unpacked
from tritonrank.data.formats.separators import SEPARATORS, find_separator
from tritonrank.data.parts import Part, find_parts
from tritonrank.errors import DataError
from tritonrank.system.database_url import DatabaseUrl

PEEKED_ROWS = 1_000
PEEKED_BYTES = 4_000_000


@dataclass(frozen=True)
class Glimpse:
    """The beginning of a table."""

    name: str
    """path or URL, as it may be shown: without a password"""
    kind: str
    """in words, such as ``CSV, separated by semicolons, cp1252``"""
    frame: pl.DataFrame
    """the first rows, all columns; text files give String, empty cells are ``""`` there"""
    types: dict[str, pl.DataType]
    """what the cells of the first rows would be by their looks; as stored where the table has types of its own"""
    rows: int | None
    """in the whole table; None where only reading it all would tell"""
    is_estimate: bool
    """whether ``rows`` follows from the size of the file"""


def peek(source: Path | DatabaseUrl, rows: int = PEEKED_ROWS) -> Glimpse:
    """Look at the beginning of a table.

    Args:
        source: a file, a folder of parts, a pattern, or a table in a database.
        rows: how many to show at the most.

    Raises:
        DataError: there is nothing, or it cannot be read.
    """
    if isinstance(source, DatabaseUrl):
        frame, total = first_rows(source, rows)
        kind = {"sqlite": "SQLite", "duckdb": "DuckDB", "postgresql": "Postgres"}[source.scheme]
        return Glimpse(str(source), kind, frame, dict(frame.schema), total, False)
    try:
        parts = find_parts(source)
        if not parts:
            raise DataError(f"{source}: no such file or folder; {READABLE}, or a database's URL")
        glimpse = _of_file(parts[0], rows)
        if len(parts) == 1:
            return Glimpse(str(source), glimpse.kind, glimpse.frame, glimpse.types, glimpse.rows, glimpse.is_estimate)
        return _of_parts(source, parts, glimpse, rows)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error})") from None


def _of_parts(source: Path, parts: Sequence[Part], first: Glimpse, rows: int) -> Glimpse:
    size = sum(part.file.stat().st_size for part in parts)
    own = parts[0].file.stat().st_size
    is_parquet = first.kind == "Parquet"
    counted = _parquet_rows([part.file for part in parts]) if is_parquet else None
    estimated = round(first.rows * size / own) if first.rows is not None and own else None
    frame = first.frame.with_columns(
        pl.lit(value, dtype=pl.String).alias(name)
        for name, value in parts[0].partition.items()
        if name not in first.frame.columns
    )
    types = dict(first.types) | {name: pl.String() for name in frame.columns if name not in first.types}
    total = counted if is_parquet else estimated
    return Glimpse(str(source), f"{first.kind} in {len(parts):,} parts", frame.head(rows), types, total, not is_parquet)


def _parquet_rows(files: Sequence[Path]) -> int:
    return sum(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item() for file in files)


def _of_file(part: Part, rows: int) -> Glimpse:
    file = part.file
    match kind_of(file):
        case "parquet":
            try:
                frame = pl.scan_parquet(file, glob=False, hive_partitioning=False).head(rows).collect()
                return Glimpse(str(file), "Parquet", plain(frame), dict(frame.schema), _parquet_rows([file]), False)
            except pl.exceptions.PolarsError as error:
                raise DataError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
        case "csv":
            return _of_csv(file, rows)
        case "json lines":
            return _of_json_lines(file, rows)
    raise DataError(f"{file}: unknown kind of file; {READABLE}, or a database's URL")


def read_start(file: Path) -> tuple[str, str, float]:
    """The text at the beginning of a file, its encoding, and which share of the file that is (of packed files: 0)."""
    with open_unpacked(file) as opened:
        content = opened.read(PEEKED_BYTES)
        is_whole = not opened.read(1)
    share = 1.0 if is_whole else 0.0 if is_packed(file) else len(content) / file.stat().st_size
    encoding = marked_encoding(content)
    if encoding is None:
        whole = content if is_whole else content[: content.rfind(b"\n") + 1] or content
        try:
            return whole.decode("utf-8"), "UTF-8", share * len(whole) / max(len(content), 1)
        except UnicodeDecodeError:
            encoding = guess_encoding(whole) or "utf-8"
    return content.decode(encoding, errors="replace"), encoding, share


def _of_csv(file: Path, rows: int) -> Glimpse:
    text, encoding, share = read_start(file)
    if not text.strip():
        raise DataError(f"{file}: is empty; expected a line with the column names")
    told = TOLD_SEPARATOR.match(text)
    text = text.removeprefix(told[0]) if told else text
    separator = told[1] if told else find_separator(text)
    frame = pl.read_csv(io.BytesIO(text.encode()), separator=separator, infer_schema=False, truncate_ragged_lines=True)
    header = next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row), [])
    if len(set(header)) == frame.width:
        frame.columns = [name.strip() for name in header]  # polars leaves doubled quotes in names as they are
    shown = frame.head(rows).with_columns(pl.all().fill_null(""))
    types = _types_of(shown, decimal_comma=False)
    if separator != ",":
        other = _types_of(shown, decimal_comma=True)
        types |= {name: other[name] for name, dtype in types.items() if dtype == pl.String}
    kind = f"CSV, separated by {SEPARATORS[separator]}, {encoding.removesuffix('-sig')}"
    total = round(frame.height / share) if share else None
    return Glimpse(str(file), kind, shown, types, total, share < 1)


def _types_of(cells: pl.DataFrame, *, decimal_comma: bool) -> dict[str, pl.DataType]:
    content = io.BytesIO(cells.write_csv(separator="|").encode())
    looked = pl.read_csv(
        content, separator="|", infer_schema_length=None, try_parse_dates=True, decimal_comma=decimal_comma
    )
    return dict(looked.schema)


def _of_json_lines(file: Path, rows: int) -> Glimpse:
    text, encoding, share = read_start(file)
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        frame = pl.read_ndjson("\n".join(lines[:rows]).encode(), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{file}: cannot be read as JSON lines ({str(error).splitlines()[0]})") from None
    total = round(len(lines) / share) if share else None
    return Glimpse(str(file), f"JSON lines, {encoding}", plain(frame), dict(frame.schema), total, share < 1)
