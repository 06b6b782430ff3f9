"""What only the whole of a column tells: whether all its ids are whole numbers, which unit all its times have.

A table that is read in parts, on many machines, is looked at part by part: the facts of parts add up to those of the
whole, and the parts are then converted as the whole would be.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import polars as pl

from tritonrank.data.written_times import TimeFacts

POINTED = r"^-?\d+\.0+$"
WHOLE = r"^-?\d+(\.0+)?$"
WRITTEN_NUMBER = r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$"
LOOKED_AT = 1_000
"""Rows that tell text from numbers before all are looked at."""


class Facts(Protocol):
    """Of a column of one kind."""

    @classmethod
    def of(cls, column: pl.Series) -> Self:
        """What a column, or a part of one, tells."""
        ...

    def __add__(self, other: Self, /) -> Self:
        """What two parts tell together."""
        ...

    @property
    def settled(self) -> object:
        """What of them decides how cells are read."""
        ...


FactsT = TypeVar("FactsT", bound=Facts)


@dataclass(frozen=True)
class IdFacts:
    """Of ids: 12.0 is 12 where every id is a whole number; A1.0 and 1.5 say that the points mean something."""

    whole_numbers: bool

    @classmethod
    def of(cls, column: pl.Series) -> "IdFacts":
        if column.dtype != pl.String:
            return cls(True)
        ids = column.str.strip_chars()
        given = ids.filter((ids != "").fill_null(False))
        return cls(all(bool(some.str.contains(WHOLE).all()) for some in (given.head(LOOKED_AT), given)))

    def __add__(self, other: "IdFacts") -> "IdFacts":
        return IdFacts(self.whole_numbers and other.whole_numbers)

    @property
    def settled(self) -> object:
        return self


@dataclass(frozen=True)
class TextFacts:
    """Of texts: numbers alone, some of them with a fraction, are how CSV writes a column of floats."""

    numbers: bool
    fractions: bool

    @classmethod
    def of(cls, column: pl.Series) -> "TextFacts":
        if column.dtype != pl.String:
            return cls(numbers=True, fractions=False)
        given = column.filter((column != "").fill_null(False))
        numbers = _are_numbers(given.head(LOOKED_AT)) and _are_numbers(given)
        return cls(numbers, numbers and bool(given.str.contains("[.eE]").any()))

    def __add__(self, other: "TextFacts") -> "TextFacts":
        return TextFacts(self.numbers and other.numbers, self.fractions or other.fractions)

    @property
    def are_floats(self) -> bool:
        return self.numbers and self.fractions

    @property
    def settled(self) -> object:
        return self.are_floats


def _are_numbers(cells: pl.Series) -> bool:
    return bool(cells.str.contains(WRITTEN_NUMBER).all())


@dataclass(frozen=True)
class NumberFacts:
    """Of the numbers that came of a column: one without any holds words."""

    some: bool

    @classmethod
    def of(cls, column: pl.Series) -> "NumberFacts":
        return cls(column.null_count() < len(column))

    def __add__(self, other: "NumberFacts") -> "NumberFacts":
        return NumberFacts(self.some or other.some)

    @property
    def settled(self) -> object:
        return self


@dataclass
class WholeColumns:
    """Facts of the columns of a table of which a part is here: asked for before they are known, they are collected.

    What was collected from all parts and added up is known when the parts are converted.
    """

    known: dict[tuple[type, str], Any] = field(default_factory=dict)

    def of(self, kind: type[FactsT], name: str, column: pl.Series) -> FactsT:
        """The facts of a column, the part's own ones where nobody knows better."""
        if (kind, name) not in self.known:
            self.known[kind, name] = kind.of(column)
        found: FactsT = self.known[kind, name]
        return found

    def __add__(self, other: "WholeColumns") -> "WholeColumns":
        """The facts of two parts."""
        both = {key: self.known[key] + other.known[key] for key in self.known.keys() & other.known.keys()}
        return WholeColumns(self.known | other.known | both)

    def reads_alike(self, part: "WholeColumns") -> bool:
        """Whether a part that was read by its own facts was read as the whole is."""
        return all(facts.settled == self.known[key].settled for key, facts in part.known.items())


__all__ = ["POINTED", "Facts", "FactsT", "IdFacts", "NumberFacts", "TextFacts", "TimeFacts", "WholeColumns"]
