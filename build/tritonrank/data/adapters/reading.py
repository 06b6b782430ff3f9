"""What adapters have in common: text files without quotes or header, and the two tables at the end."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from tritonrank.data import dirt
from tritonrank.data.faults import Faults
from tritonrank.data.formats.cells import Cells
from tritonrank.data.formats.encodings import WESTERN
from tritonrank.data.formats.files import read_unpacked
from tritonrank.data.formats.sound_csv import check_sound
from tritonrank.data.loading import Tables
from tritonrank.data.source import SourceTable, as_table
from tritonrank.system.dates import latest_second

INNER_SEPARATOR = "\x1f"
"""Stands for a separator of two characters, which polars does not know; no text has it."""
PACKED = ("", ".gz", ".zst")


def find_all(folder: Path, *names: str) -> list[Path]:
    """The files of these names, as they are or packed, in a folder or together in one below; none if one is absent."""
    if not folder.is_dir():
        return []
    for place in (folder, *sorted(one for one in folder.iterdir() if one.is_dir())):
        found = [find_one(place, name) for name in names]
        if all(found):
            return [file for file in found if file]
    return []


def find_one(folder: Path, name: str) -> Path | None:
    """A file of this name, as it is or packed."""
    return next((file for ending in PACKED if (file := folder / (name + ending)).is_file()), None)


def read_plain(
    file: Path, separator: str, names: Sequence[str], faults: Faults, *, header_lines: int = 0, may_lack: int = 0
) -> SourceTable:
    """A text file whose cells are never quoted, UTF-8 or Western; all columns are String.

    Args:
        file: the table.
        separator: of the cells, one or two characters.
        names: of the columns.
        faults: takes lines that do not have as many cells.
        header_lines: to leave out.
        may_lack: so many cells at the end of a line may be missing.
    """
    content = read_unpacked(file).replace(b"\r\n", b"\n").rstrip(b"\n")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        content = content.decode("latin-1" if b"\x81" in content else WESTERN, errors="replace").encode()
    if len(separator) > 1:
        content, separator = content.replace(separator.encode(), INNER_SEPARATOR.encode()), INNER_SEPARATOR
    for _ in range(header_lines):
        content = content.partition(b"\n")[2]
    lines = None
    if content and not check_sound(np.frombuffer(content, dtype=np.uint8), separator, len(names), has_quotes=False):
        content, lines = _sound_lines(file, content, separator, names, faults, header_lines, may_lack)
    frame = (
        pl.read_csv(
            content,
            has_header=False,
            new_columns=list(names),
            separator=separator,
            quote_char=None,
            infer_schema=False,
        ).with_columns(pl.all().fill_null(""))
        if content.strip()
        else pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    )

    def line_of(position: int) -> int:
        return position + 1 + header_lines if lines is None else lines[position]

    return as_table(file, Cells(frame, list(names), line_of, ":{}"), "csv")


def _sound_lines(
    file: Path,
    content: bytes,
    separator: str,
    names: Sequence[str],
    faults: Faults,
    header_lines: int,
    may_lack: int,
) -> tuple[bytes, list[int]]:
    """The lines that have all their cells, and their numbers; the others are faults."""
    kept, numbers = [], []
    for number, line in enumerate(content.split(b"\n"), start=1 + header_lines):
        lacking = len(names) - 1 - line.count(separator.encode())
        if 0 <= lacking <= may_lack and line.strip():
            kept.append(line + separator.encode() * lacking)
            numbers.append(number)
        elif line.strip():
            expected = f"{len(names) - lacking} field(s); expected {len(names)} ({', '.join(names)})"
            faults.add(file, "fields", expected, f":{number}", rows=1)
    return b"\n".join(kept), numbers


def as_tables(
    items: pl.DataFrame, events: pl.DataFrame, items_name: str, faults: Faults, notes: Sequence[str] = ()
) -> Tables:
    """The two tables of ``Tables``: each item once, events of items that are there, all that was left out counted.

    Args:
        items: item_id and text fields, all String.
        events: user_id, item_id, query (default: none), timestamp in unix seconds, gain, and impression
            where it is known what was shown together.
        items_name: the file of the items.
        faults: raises what is in it.
        notes: what was guessed.

    Raises:
        DataError: there are faults.
    """
    faults.raise_any()
    if "query" not in events.columns:
        events = events.with_columns(pl.lit("").alias("query"))
    log = events.select(
        "user_id",
        "item_id",
        "query",
        pl.col("timestamp").cast(pl.Int64),
        (pl.col("gain") > 0).cast(pl.Int8).alias("label"),
        pl.col("gain").cast(pl.Float32),
        *(["impression"] if "impression" in events.columns else []),
    )
    items, repeated = dirt.without_repeats(items.with_columns(pl.all().fill_null("")), items_name)
    log, strays = dirt.without_strays(log, items, items_name, latest_second())
    return Tables(items, log, (*repeated, *strays), tuple(notes))


def usable(table: SourceTable, faults: Faults) -> pl.Series:
    """[rows] True where a row is whole and each of its cells is a value; the others are counted by ``faults``."""
    return table.sound & ~faults.unusable(table.path, table.frame.height)
