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


@dataclass(frozen=True)
class Loss:
    """Rows of one kind that a part of a table lost; those of all parts add up."""

    kind: str
    rule: str
    count: int
    ids: tuple[str, ...]
    """of the first SOUGHT rows"""

    @classmethod
    def of(cls, kind: str, rule: str, ids: pl.Series) -> "Loss":
        """The rows with these ids."""
        return cls(kind, rule, len(ids), tuple(ids.head(SOUGHT).to_list()))

    def in_all(self, rows: int) -> list[Dropped]:
        """An entry where there are any, of a table of ``rows`` rows."""
        return [Dropped.of(self.kind, self.rule, self.count, rows, self.ids)] if self.count else []


def add_up(losses: Iterable[Sequence[Loss]]) -> list[Loss]:
    """The losses of the parts of a table, in the order of the parts, as those of the table."""
    found: dict[str, Loss] = {}
    for loss in (loss for of_part in losses for loss in of_part):
        before = found.get(loss.kind, Loss(loss.kind, loss.rule, 0, ()))
        ids = before.ids if len(before.ids) >= SOUGHT else (*before.ids, *loss.ids)[:SOUGHT]
        found[loss.kind] = Loss(loss.kind, loss.rule, before.count + loss.count, ids)
    return list(found.values())


def ids_of(kind: str, rule: str, ids: pl.Series, rows: int) -> list[Dropped]:
    """An entry for the rows with these ids, of a table of ``rows`` rows; none where there are none."""
    return Loss.of(kind, rule, ids).in_all(rows)


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
