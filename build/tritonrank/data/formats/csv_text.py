"""A text table cut by commas, semicolons, tabs or pipes, read so that every fault can be named by its true line.

A sound file is read at once by ``sound_csv.py``. Any other goes row by row through Python's csv module, which says
where a row began and what is wrong with it. Cells stay text; ``columns.py`` gives them types. A row that is broken
keeps its place (its id may still be the target of other rows) but is not checked further.
"""

import codecs
import csv
import io
import mmap
import re
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from tritonrank.data.faults import Faults
from tritonrank.data.formats.cells import Cells
from tritonrank.data.formats.encodings import guess_encoding, marked_encoding
from tritonrank.data.formats.files import is_packed, read_unpacked
from tritonrank.data.formats.separators import find_separator
from tritonrank.data.formats.sound_csv import check_sound, read_sound
from tritonrank.system.database_url import AnyLocation

ROWS_PER_CHUNK = 100_000  # rows held as Python objects at a time
LOOKED_AT_BYTES = 1 << 20  # for the separator
PLACE = ":{}"
TOLD_SEPARATOR = re.compile(r"sep=([,;\t|])\r?\n")
"""A first line that Excel writes and reads."""

csv.field_size_limit(1 << 30)  # a description may be longer than the 131,072 characters that the module allows


def read_csv(path: AnyLocation, file: Path, faults: Faults, columns: Collection[str] | None) -> Cells | None:
    """Read a table; what is wrong with it goes to ``faults``.

    Args:
        path: what faults are listed under.
        file: the table, or a part of it.
        faults: takes what is wrong.
        columns: those that are needed; default: all.

    Returns:
        None where nothing can be read.

    Raises:
        OSError: the file cannot be read.
    """
    content, encoding, note = _utf8(file)
    if encoding is None:
        return _read_carefully(path, file, *_repaired(path, file, content, faults), faults, columns)
    notes = (note,) if note else ()
    start = bytes(content[:LOOKED_AT_BYTES]).decode("utf-8-sig", errors="ignore")
    if TOLD_SEPARATOR.match(start):
        return _read_carefully(path, file, bytes(content).decode("utf-8-sig"), frozenset(), faults, columns, notes)
    separator = find_separator(start)
    header = _header_of(start, separator)
    if header and len(set(header)) == len(header):
        mark = len(codecs.BOM_UTF8) if content[:3] == codecs.BOM_UTF8 else 0
        found = check_sound(np.frombuffer(content, dtype=np.uint8)[mark:], separator, len(header))
        chosen = [name for name in header if columns is None or name in columns] or header[:1]
        source: Path | bytes = content if isinstance(content, bytes) else file
        frame = read_sound(source, separator, found, header, chosen) if found else None
        if found and frame is not None:
            lines = _next_line if found.is_row_per_line else _line_finder(file, encoding, separator)
            return Cells(frame, header, lines, PLACE, decimal_comma=separator != ",", notes=notes)
    return _read_carefully(path, file, bytes(content).decode("utf-8-sig"), frozenset(), faults, columns, notes)


def _next_line(position: int) -> int:
    return position + 2


def _line_finder(file: Path, encoding: str, separator: str) -> Callable[[int], int]:
    """Where rows begin in a file whose cells hold line ends; it is read again when the first fault asks."""

    @cache
    def first_lines() -> list[int]:
        text = read_unpacked(file).decode(encoding)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        lines, before = [], 0
        for row in reader:
            if row:
                lines.append(before + 1)
            before = reader.line_num
        return lines

    return lambda position: first_lines()[position + 1]


def _utf8(file: Path) -> tuple[bytes | mmap.mmap, str | None, str]:
    """The content as UTF-8, the encoding that the file has, and what to say of it; None for UTF-8 that is damaged."""
    if is_packed(file):
        content: bytes | mmap.mmap = read_unpacked(file)
    else:
        with file.open("rb") as opened:
            is_empty = not file.stat().st_size
            content = b"" if is_empty else mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    encoding = marked_encoding(content[:4_096])
    if encoding in (None, "utf-8-sig"):
        if _is_utf8(content):
            return content, "utf-8-sig", ""
        encoding = None if encoding else guess_encoding(bytes(content))
        if encoding is None:
            return content, None, ""
        note = f"{file.name} is not UTF-8; it is read as {encoding}, guessed from its text"
    else:
        note = f"{file.name} is read as {encoding}, which its first bytes say"
    try:
        return bytes(content).decode(encoding).encode(), encoding, note
    except UnicodeDecodeError:
        return content, None, ""


def _is_utf8(content: bytes | mmap.mmap) -> bool:
    """Whether all is UTF-8; in blocks, because the text is not needed."""
    start, size = 0, len(content)
    while start < size:
        block = content[start : start + (32 << 20)]
        cut = len(block) if start + len(block) == size else block.rfind(b"\n") + 1 or len(block)
        if not block.isascii():
            try:
                block[:cut].decode("utf-8")
            except UnicodeDecodeError:
                return False
        start += cut
    return True


def _header_of(start: str, separator: str) -> list[str]:
    rows = csv.reader(io.StringIO(start, newline=""), delimiter=separator)
    return [name.strip() for name in next((row for row in rows if row), [])]


def _repaired(path: AnyLocation, file: Path, content: bytes | mmap.mmap, faults: Faults) -> tuple[str, frozenset[int]]:
    """The text of a damaged file, and its damaged lines; their broken bytes become U+FFFD."""
    whole = bytes(content)
    encoding = marked_encoding(whole[:4_096]) or "utf-8"
    if encoding not in ("utf-8", "utf-8-sig"):
        faults.add(path, encoding, f"broken {encoding}; expected it throughout, as its first bytes say", file=file)
        return whole.decode(encoding, errors="replace"), frozenset()
    broken = set()
    offset = 0
    for number, line in enumerate(whole.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            broken.add(number)
            what = f"broken UTF-8 at byte offset {offset + error.start} (0x{line[error.start]:02X})"
            faults.add(path, "utf-8", f"{what}; expected UTF-8 throughout", PLACE.format(number), file, rows=1)
        offset += len(line) + 1
    return whole.decode("utf-8-sig", errors="replace"), frozenset(broken)


def _read_carefully(
    path: AnyLocation,
    file: Path,
    text: str,
    broken_lines: frozenset[int],
    faults: Faults,
    columns: Collection[str] | None,
    notes: tuple[str, ...] = (),
) -> Cells | None:
    told = TOLD_SEPARATOR.match(text)
    separator = told[1] if told else find_separator(text[:LOOKED_AT_BYTES])
    rows = _rows(path, file, text, separator, faults)
    if told:
        next(rows)
    _, _, names = next(rows, (1, 1, []))
    header = [name.strip() for name in names]
    if not header:
        faults.add(path, "empty", "has no header line; expected one with the column names", file=file)
        return None
    if twice := sorted({name for name in header if header.count(name) > 1}):
        message = f"column {', '.join(twice)} occurs twice; expected each name once"
        faults.add(path, "header", message, ":1", file)
        return None
    chosen = [number for number, name in enumerate(header) if columns is None or name in columns] or [0]
    chunks, lines, sound, chunk = [], [], [], []
    complete = True
    for first_line, last_line, row in rows:
        if not row:
            complete = False
            continue
        whole = len(row) == len(header)
        if not whole:
            expected = f"expected {len(header)} ({', '.join(header)})"
            faults.add(path, "fields", f"{len(row)} field(s); {expected}", PLACE.format(first_line), file, rows=1)
            row = (row + [""] * len(header))[: len(header)]
        sound.append(whole and not (broken_lines and broken_lines.intersection(range(first_line, last_line + 1))))
        lines.append(first_line)
        chunk.append([row[number] for number in chosen])
        if len(chunk) == ROWS_PER_CHUNK:
            chunks.append(_frame(chunk, [header[number] for number in chosen]))
            chunk = []
    frame = pl.concat([*chunks, _frame(chunk, [header[number] for number in chosen])])
    line_numbers = np.array(lines, dtype=np.int64)
    return Cells(
        frame,
        header,
        lambda position: int(line_numbers[position]),
        PLACE,
        pl.Series(sound, dtype=pl.Boolean),
        complete,
        separator != ",",
        notes,
    )


def _rows(
    path: AnyLocation, file: Path, text: str, separator: str, faults: Faults
) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, cells) of every row that is not blank; a row that is no CSV has no cells."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
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
            faults.add(path, "csv", message, PLACE.format(first_line), file, rows=lost)
            yield first_line, reader.line_num, []
            continue
        if row:
            yield first_line, reader.line_num, row


def _frame(rows: list[list[str]], header: list[str]) -> pl.DataFrame:
    cells = zip(*rows, strict=True) if rows else ([] for _ in header)
    return pl.DataFrame([pl.Series(name, values, dtype=pl.String) for name, values in zip(header, cells, strict=True)])
