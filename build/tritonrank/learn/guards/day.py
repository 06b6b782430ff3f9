"""A day of the log as the guards see it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import polars as pl

from tritonrank.data.event_log import LIKED_RATING
from tritonrank.recipe.data import EVENT_WEIGHTS

SECONDS_PER_HOUR = 3_600.0
ROW = "row"
"""Column with the number of an event in the day, from 0."""


@dataclass(frozen=True)
class Day:
    """New hours of the log, as a night takes them.

    Attributes:
        events, shown: rows of ``event_log.LogRows``, copies too.
        start, end: unix seconds, half open: the hours that are looked through, by ``KNOWN_AT``.
        items: ids that the item table has.
        gains: what each type of event is worth in training; above 0 it is a like.
    """

    events: pl.DataFrame
    shown: pl.DataFrame
    start: float
    end: float
    items: Collection[str]
    gains: Mapping[str, float] = field(default_factory=lambda: EVENT_WEIGHTS)

    @property
    def hours(self) -> float:
        """How long it is."""
        return (self.end - self.start) / SECONDS_PER_HOUR

    def is_like(self) -> pl.Expr:
        """Of a row of events: whether training takes it for a positive."""
        liked = pl.col("type").is_in([kind for kind, gain in self.gains.items() if gain > 0])
        return liked & ((pl.col("type") != "rating") | (pl.col("value") >= LIKED_RATING).fill_null(False))

    def is_dislike(self) -> pl.Expr:
        """Of a row of events: whether the user said that they do not like it."""
        low = (pl.col("type") == "rating") & (pl.col("value") < LIKED_RATING).fill_null(False)
        return (pl.col("type") == "skip") | low
