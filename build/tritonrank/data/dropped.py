"""What the data lost on the way to a dataset: one entry per kind of dirt, by a stated rule, with count and examples.

Every shop's tables have some of it, so that it is no fault; too much of one kind is (``data.tolerate``), because then
it is no dirt but a column that means something else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from tritonrank.errors import DataError

EXAMPLES_SHOWN = 3
SOUGHT = 1_000
"""Rows among which different examples are looked for."""


@dataclass(frozen=True)
class Dropped:
    """Rows of one kind that are not in the dataset, or are there in another form."""

    kind: str
    """what was found, such as ``events of items that items.csv does not have``"""
    rule: str
    """what became of them, such as ``left out``"""
    count: int
    share: float
    """of the rows of their table, 0 to 1"""
    examples: tuple[str, ...]
    """at most 3"""

    @classmethod
    def of(cls, kind: str, rule: str, count: int, rows: int, examples: Iterable[object]) -> "Dropped":
        """``count`` of ``rows`` rows; examples are shown as they are, the first three different ones."""
        shown = tuple(dict.fromkeys(map(str, examples)))[:EXAMPLES_SHOWN]
        return cls(kind, rule, count, count / rows if rows else 0.0, shown)

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        such = f" (such as {', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count:,} {self.kind} ({_percent(self.share)}): {self.rule}{such}"


def ids_of(kind: str, rule: str, ids: pl.Series, rows: int) -> list[Dropped]:
    """An entry for the rows with these ids, of a table of ``rows`` rows; none where there are none."""
    return [Dropped.of(kind, rule, len(ids), rows, ids.head(SOUGHT))] if len(ids) else []


def as_metrics(dropped: Sequence[Dropped]) -> list[dict[str, Any]]:
    """For the manifest of a dataset: ``metrics["dropped"]``."""
    return [asdict(one) | {"examples": list(one.examples)} for one in dropped]


def require_tolerable(dropped: Sequence[Dropped], tolerate: float) -> None:
    """Raise where a kind has more than its share.

    Raises:
        DataError: one line per kind that is beyond ``tolerate``.
    """
    if beyond := [one for one in dropped if one.share > tolerate]:
        raise DataError(
            "\n".join(
                [
                    f"{len(beyond)} kind(s) of rows are more than data.tolerate ({_percent(tolerate)}) allows:",
                    *(f"  {one}" for one in beyond),
                    "Mend the tables or the columns that the recipe names; if the rows may go, --set data.tolerate="
                    f"{min(1.0, max(one.share for one in beyond) + 0.01):.2f}",
                ]
            )
        )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or not share else "under 0.1%"
