"""Faults of input files, collected over all files and raised once.

A fault is one line, ``file:line: what is wrong; expected what``. A column that is wrong throughout would bury the
other faults, so of each kind only the first few are shown and the rest are counted.

Some faults are of a table (a column that is missing), some of rows (a cell that is no time, a line with a quote that
never closes). Every shop has a few of the second kind: who can do without those rows takes ``dropped`` and
``unusable``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from tritonrank.data.dropped import EXAMPLES_SHOWN, Dropped
from tritonrank.errors import DataError
from tritonrank.system.database_url import AnyLocation

SHOWN_PER_KIND = EXAMPLES_SHOWN
UNREADABLE = {
    "fields": "with too many or too few fields",
    "csv": "that are no CSV",
    "utf-8": "with broken UTF-8",
    "json": "that are no JSON objects",
}
"""Kinds of faults of rows that were met while reading, and how their rows are called."""


@dataclass
class _Kind:
    """Faults of one file and kind."""

    lines: list[str] = field(default_factory=list)
    count: int = 0
    what: str = ""
    """of rows: how they are called, after "rows of items.csv"; empty: the fault is of the table"""
    rows: int = 0
    """that are lost"""
    examples: list[str] = field(default_factory=list)


class Faults:
    """Collects faults; ``raise_any`` turns them into one DataError."""

    def __init__(self) -> None:
        self._found: dict[tuple[AnyLocation, str], _Kind] = {}
        self._wrong_cells: dict[AnyLocation, pl.Series] = {}
        self._looked_for: dict[tuple[AnyLocation, str], None] = {}
        """kinds in the order in which they were looked for, found or not"""

    def add(
        self,
        path: AnyLocation,
        kind: str,
        message: str,
        place: str = "",
        file: AnyLocation | None = None,
        rows: int = 0,
    ) -> None:
        """Note one fault.

        Args:
            path: the file, the folder of a table in many files, or the address in a database.
            kind: faults of one file and kind are listed together.
            message: what is wrong and what was expected.
            place: ``":12"`` for line 12, ``": row 12"`` where a file has no lines, empty for the whole file.
            file: which one, in a table of many files.
            rows: how many rows are lost by it; 0: it is a fault of the table.
        """
        self.look_for(path, kind)
        found = self._found.setdefault((path, kind), _Kind())
        found.count += 1
        if len(found.lines) < SHOWN_PER_KIND:
            found.lines.append(f"{file or path}{place}: {message}")
        if rows:
            found.rows += rows
            found.what = UNREADABLE[kind]
            found.examples.append(f"{in_words(place)}: {message.partition(';')[0]}")
            del found.examples[EXAMPLES_SHOWN:]

    def look_for(self, path: AnyLocation, kind: str) -> None:
        """Note that a kind is looked for, which gives it its place among the others."""
        self._looked_for.setdefault((path, kind))

    def add_cells(
        self, path: AnyLocation, what: str, wrong: pl.Series, cells: Sequence[tuple[AnyLocation, str, str, str]]
    ) -> None:
        """Note the cells of a column that are no values of it.

        Args:
            path: of the table.
            what: how their rows are called, such as ``whose at is no time``.
            wrong: [rows] Boolean.
            cells: of the first few: file, place, the fault in words, the cell alone.
        """
        count = int(wrong.sum())
        lines = [f"{file}{place}: {message}" for file, place, message, _ in cells]
        examples = [f"{in_words(place)}: {value}" for _, place, _, value in cells]
        self._found[path, what] = _Kind(lines, count, what, count, examples)
        before = self._wrong_cells.get(path)
        self._wrong_cells[path] = wrong if before is None else before | wrong

    def unusable(self, path: AnyLocation, rows: int) -> pl.Series:
        """[rows] True where a cell of a row is no value of its column."""
        nothing = pl.repeat(False, rows, dtype=pl.Boolean, eager=True)
        return self._wrong_cells.get(path, nothing)

    def dropped(self, path: AnyLocation, name: str, rows: int) -> list[Dropped]:
        """The faults of rows of a table, which is called ``name`` and has so many rows; they are no faults any more."""
        kinds = [key for key, found in self._found.items() if key[0] == path and found.what]
        unread = sum(self._found[key].rows for key in kinds if key[1] in ("csv", "json"))
        kept = rows + unread  # they are not among the rows
        return [
            Dropped.of(f"rows of {name} {found.what}", "left out", found.rows, kept, found.examples)
            for found in (self._found.pop(key) for key in kinds)
        ]

    def forget_cells(self) -> None:
        """Keep the counts and the first few, and not which rows they are in."""
        self._wrong_cells.clear()

    def about(self, said: str, name: str) -> "Faults":
        """The same faults where a file was read under another name than people know it by."""
        for found in self._found.values():
            found.lines = [line.replace(said, name) for line in found.lines]
        return self

    def take(self, other: "Faults") -> None:
        """Take in the faults of a later part of the tables; a fault of the table is one however many parts have it."""
        for key, found in other._found.items():
            mine = self._found.setdefault(key, _Kind(what=found.what))
            if found.what:
                mine.count += found.count
                mine.rows += found.rows
                mine.lines = [*mine.lines, *found.lines][:SHOWN_PER_KIND]
                mine.examples = [*mine.examples, *found.examples][:EXAMPLES_SHOWN]
            else:
                mine.lines = list(dict.fromkeys([*mine.lines, *found.lines]))
                mine.count = len(mine.lines)
        self._looked_for |= {key: None for key in other._looked_for if key not in self._looked_for}
        self._found = {key: self._found[key] for key in self._looked_for if key in self._found}

    def raise_of_tables(self) -> None:
        """Raise all faults, but only where there are others than of rows."""
        if any(not found.what for found in self._found.values()):
            self.raise_any()

    def raise_any(self) -> None:
        """Do nothing when all is well.

        Raises:
            DataError: there are faults; they are grouped by file and kind.
        """
        if not self._found:
            return
        total = sum(found.count for found in self._found.values())
        files = list(dict.fromkeys(path for path, _ in self._found))
        lines = []
        for file in files:
            for (path, _), found in self._found.items():
                if path == file:
                    lines += found.lines
                    if hidden := found.count - len(found.lines):
                        lines.append(f"{path}: ... and {hidden:,} more of this kind")
        names = ", ".join(file.name for file in files)
        raise DataError(f"{total} fault(s) in the input data ({names}):\n" + "\n".join(f"  {line}" for line in lines))


def in_words(place: str) -> str:
    """``:12`` as line 12, ``: row 12`` as row 12."""
    return place.removeprefix(": ") if place.startswith(": ") else f"line {place.removeprefix(':')}"
