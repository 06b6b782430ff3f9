"""What the events of a table are for a store: the types that a profile knows, and ratings on its scale.

A table says it with words for what users did, with numbers (ratings), or not at all. What was only shown is no event.
"""

from collections.abc import Mapping
from typing import get_args

import polars as pl
from tritonrank_recommend.events import EventType

from tritonrank.data.guess_events import BOUGHT, CLICKED, REGRETTED, VIEWED, WANTED, kind_of

TYPES: tuple[str, ...] = get_args(EventType)
OF_KIND: Mapping[str, str] = {
    VIEWED: "view",
    CLICKED: "click",
    WANTED: "cart",
    BOUGHT: "purchase",
    REGRETTED: "skip",
}
STARS = 5.0
"""Ratings on a longer scale are brought to this one."""
LOWEST = 0.5


def types_of_words(words: pl.Series) -> pl.Series:
    """Of each event its type, by the word for it; null for what was shown, and for words that nobody knows."""
    words = words.str.strip_chars()
    meant: dict[str, str | None] = {}
    for word in words.unique():
        plain = word.casefold()
        meant[word] = plain if plain in TYPES else OF_KIND.get(kind_of(word) or "")
    return words.replace_strict(list(meant), list(meant.values()), return_dtype=pl.String)


def types_of_numbers(numbers: pl.Series, default: str) -> tuple[pl.Series, pl.Series]:
    """Of each event its type and its value.

    Args:
        numbers: 0 and 1 say what was chosen among what was shown: 1 is of type ``default``, 0 is no event. Anything
            else is a rating; a scale that goes beyond 5 is brought to 5.
        default: a type.
    """
    nothing = pl.repeat(None, len(numbers), dtype=pl.Float64, eager=True)
    if numbers.drop_nulls().is_in([0.0, 1.0]).all():
        types = pl.Series([default]).new_from_index(0, len(numbers)).set((numbers != 1).fill_null(True), None)
        return types, nothing
    highest = float(numbers.max())  # type: ignore[arg-type]  # a number
    stars = (numbers * (STARS / highest if highest > STARS else 1.0)).clip(LOWEST, STARS)
    return pl.Series(["rating"]).new_from_index(0, len(numbers)), stars
