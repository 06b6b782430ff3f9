"""Which events may be learnt from and which are held out for judging.

Every user's events are put in order of (timestamp, row of the source). Per user, the last positive is the test, the
second-last is the validation, and only what lies before the validation positive is training. With a global cut-off
date the test is the first positive from that date on, and the validation is the last positive before it. Either way
nothing that happened at or after a user's validation positive is ever learnt from for that user.
"""

import polars as pl

from tritonrank.errors import RecipeError
from tritonrank.recipe import ExampleSettings
from tritonrank.system.dates import iso_seconds

TRAIN, VALIDATION, TEST, UNUSED = "train", "validation", "test", ""

LIKED = pl.col("label") == 1


def mark_splits(events: pl.DataFrame, settings: ExampleSettings) -> pl.DataFrame:
    """Put events in order of user and time and say what each is for.

    Args:
        events: the events table of a source.
        settings: ``cutoff`` is used.

    Returns:
        The events sorted by (user_id, timestamp, row), with the columns
        split: train, validation, test, or "" for events that nobody may use (they lie between or after held-out ones);
        position: UInt32, the event's number within its user, from 0;
        positives_before: Int64, the user's positives before this event;
        others_before: Int64, those of them that are about another item, which is what a history is made of.

    Raises:
        RecipeError: the cut-off is not an ISO date.
    """
    ordered = events.with_row_index("row").sort("user_id", "timestamp", "row").drop("row")
    label = pl.col("label").cast(pl.Int64)
    ordered = ordered.with_columns(
        pl.int_range(pl.len(), dtype=pl.UInt32).over("user_id").alias("position"),
        (label.cum_sum().over("user_id") - label).alias("positives_before"),
        (label.cum_sum().over("user_id", "item_id") - label).alias("same_before"),
    )
    split = _by_user() if settings.cutoff is None else _by_date(_seconds_of(settings.cutoff))
    return ordered.with_columns(
        split.alias("split"), (pl.col("positives_before") - pl.col("same_before")).alias("others_before")
    ).drop("same_before")


def _by_user() -> pl.Expr:
    positives = pl.col("label").cast(pl.Int64).sum().over("user_id")
    positives_after = positives - pl.col("positives_before") - pl.col("label")
    return (
        # With two positives the validation would have no history and the test nothing learnt before it.
        pl.when(positives < 3)
        .then(pl.lit(TRAIN))
        .when(positives_after >= 2)
        .then(pl.lit(TRAIN))
        .when(LIKED & (positives_after == 1))
        .then(pl.lit(VALIDATION))
        .when(LIKED & (positives_after == 0))
        .then(pl.lit(TEST))
        .otherwise(pl.lit(UNUSED))
    )


def _by_date(cutoff: int) -> pl.Expr:
    early = pl.col("timestamp") < cutoff
    early_positives = (LIKED & early).cast(pl.Int64).sum().over("user_id")
    early_after = early_positives - pl.col("positives_before") - pl.col("label")
    return (
        pl.when(~early & LIKED & (pl.col("positives_before") == early_positives))
        .then(pl.lit(TEST))
        .when(~early)
        .then(pl.lit(UNUSED))
        # One positive before the date is the history of the test, and the only thing to learn from.
        .when(early_positives < 2)
        .then(pl.lit(TRAIN))
        .when(early_after >= 1)
        .then(pl.lit(TRAIN))
        .when(LIKED)
        .then(pl.lit(VALIDATION))
        .otherwise(pl.lit(UNUSED))
    )


def _seconds_of(cutoff: str) -> int:
    seconds = iso_seconds(cutoff)
    if seconds is None:
        raise RecipeError(f"examples.cutoff: {cutoff!r} is no ISO date such as 2015-06-30")
    return seconds
