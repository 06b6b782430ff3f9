"""One JSON object a line. Nested objects become the JSON text that says the same, lists stay lists."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tritonrank.data.faults import Faults
from tritonrank.data.formats.cells import Cells
from tritonrank.data.formats.databases import plain
from tritonrank.data.formats.encodings import marked_encoding
from tritonrank.data.formats.files import read_unpacked
from tritonrank.system.database_url import AnyLocation

PLACE = ":{}"


def read_json_lines(path: AnyLocation, file: Path, faults: Faults, columns: Collection[str] | None) -> Cells | None:
    """Read a table; what is wrong with it goes to ``faults``.

    Polars reads sound files. Where it cannot, each line is looked at: one that is no object is a fault, and a column
    of several types becomes text.

    Raises:
        OSError: the file cannot be read.
    """
    content = read_unpacked(file)
    if encoding := marked_encoding(content[:4_096]):
        content = content.decode(encoding, errors="replace").encode()
    if not content.strip():
        faults.add(path, "empty", "has no line; expected a JSON object on each", file=file)
        return None
    lines = content.rstrip(b"\r\n").count(b"\n") + 1
    try:
        frame = plain(pl.read_ndjson(content, infer_schema_length=None))
    except pl.exceptions.PolarsError:
        return _read_carefully(path, file, content, faults, columns)
    header = frame.columns
    chosen = [name for name in header if columns is None or name in columns] or header[:1]
    if frame.height == lines:
        return Cells(frame.select(chosen), header, lambda position: position + 1, PLACE)
    filled = np.flatnonzero([bool(line.strip()) for line in content.split(b"\n")]) + 1
    return Cells(frame.select(chosen), header, lambda position: int(filled[position]), PLACE)


def _read_carefully(
    path: AnyLocation, file: Path, content: bytes, faults: Faults, columns: Collection[str] | None
) -> Cells | None:
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    complete = True
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row, reason = None, str(error)
        else:
            reason = f"it is a {type(row).__name__}"
        if isinstance(row, dict):
            rows.append(row)
            places.append(number)
        else:
            complete = False
            message = f"not a JSON object ({reason}); expected one a line"
            faults.add(path, "json", message, PLACE.format(number), file, rows=1)
    header = list(dict.fromkeys(name for row in rows for name in row))
    if not header:
        return None
    chosen = [name for name in header if columns is None or name in columns] or header[:1]
    frame = pl.DataFrame([_column(name, [row.get(name) for row in rows]) for name in chosen])
    return Cells(frame, header, lambda position: places[position], PLACE, complete=complete)


def _column(name: str, values: list[Any]) -> pl.Series:
    """A column of one type, or of text where there are several."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int, float} or (len(kinds) == 1 and not kinds & {dict, list}):
        try:
            return pl.Series(name, values, strict=float not in kinds)
        except (OverflowError, TypeError, pl.exceptions.PolarsError):
            pass
    return pl.Series(name, [_as_text(value) for value in values], dtype=pl.String)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
