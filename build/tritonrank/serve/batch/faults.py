"""Rows that could not be ranked, counted by kind: one kind is one line, whatever its number."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tritonrank.artifacts import write_whole

EXAMPLES_SHOWN = 3
LONGEST_KIND = 200
MOST_KINDS = 100


class RowFaults:
    """Counts and the first places of each kind of fault."""

    def __init__(self, found: Mapping[str, tuple[int, Iterable[str]]] | None = None) -> None:
        self._found = {kind: (count, list(places)) for kind, (count, places) in (found or {}).items()}

    @classmethod
    def read(cls, path: Path) -> "RowFaults":
        return cls(json.loads(path.read_text(encoding="utf-8")))

    @property
    def total(self) -> int:
        return sum(count for count, _ in self._found.values())

    @property
    def lines(self) -> list[str]:
        """One per kind, the most frequent first."""
        ordered = sorted(self._found.items(), key=lambda one: -one[1][0])
        return [f"{count:,} row(s): {kind} ({', '.join(places)})" for kind, (count, places) in ordered]

    @property
    def plain(self) -> dict[str, tuple[int, list[str]]]:
        """Kind -> count and places."""
        return self._found

    def add(self, message: str, place: str) -> None:
        """Note a row; what differs in its numbers alone is one kind."""
        self._add(re.sub(r"\d+", "N", message)[:LONGEST_KIND], 1, [place])

    def add_all(self, others: "RowFaults") -> None:
        for kind, (count, places) in others.plain.items():
            self._add(kind, count, places)

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps(self._found))

    def _add(self, kind: str, more: int, places: list[str]) -> None:
        if kind not in self._found and len(self._found) >= MOST_KINDS:
            kind = "other faults"
        count, known = self._found.get(kind, (0, []))
        self._found[kind] = count + more, [*known, *places][:EXAMPLES_SHOWN]
