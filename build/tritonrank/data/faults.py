"""Faults of input files, collected over all files and raised once.

A fault is one line, ``file:line: what is wrong; expected what``. A column that is wrong throughout would bury the
other faults, so of each kind only the first few are shown and the rest are counted.
"""

from tritonrank.errors import DataError
from tritonrank.system.database_url import Location

SHOWN_PER_KIND = 10


class Faults:
    """Collects faults; ``raise_any`` turns them into one DataError."""

    def __init__(self) -> None:
        self._found: dict[tuple[Location, str], list[str]] = {}
        self._hidden: dict[tuple[Location, str], int] = {}

    def add(self, path: Location, kind: str, message: str, place: str = "", file: Location | None = None) -> None:
        """Note one fault.

        Args:
            path: the file, the folder of a table in many files, or the address in a database.
            kind: faults of one file and kind are listed together.
            message: what is wrong and what was expected.
            place: ``":12"`` for line 12, ``": row 12"`` where a file has no lines, empty for the whole file.
            file: which one, in a table of many files.
        """
        shown = self._found.setdefault((path, kind), [])
        if len(shown) < SHOWN_PER_KIND:
            shown.append(f"{file or path}{place}: {message}")
        else:
            self.hide(path, kind, 1)

    def hide(self, path: Location, kind: str, count: int) -> None:
        """Count faults of a kind without listing them."""
        self._hidden[path, kind] = self._hidden.get((path, kind), 0) + count

    def raise_any(self) -> None:
        """Do nothing when all is well.

        Raises:
            DataError: there are faults; they are grouped by file and kind.
        """
        if not self._found:
            return
        total = sum(map(len, self._found.values())) + sum(self._hidden.values())
        files = list(dict.fromkeys(path for path, _ in self._found))
        lines = []
        for file in files:
            for (path, kind), shown in self._found.items():
                if path == file:
                    lines += shown
                    if hidden := self._hidden.get((path, kind)):
                        lines.append(f"{path}: ... and {hidden} more of this kind")
        names = ", ".join(file.name for file in files)
        raise DataError(f"{total} fault(s) in the input data ({names}):\n" + "\n".join(f"  {line}" for line in lines))
