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
CHOSEN = pl.col("choices") == 1
"""Of the positives of one impression the last alone: they are one list, learnt or judged as one."""
SHOWN_TOGETHER = ["user_id", "impression"]


def mark_splits(events: pl.DataFrame, settings: ExampleSettings) -> pl.DataFrame:
    """Put events in order of user and time and say what each is for.

    Args:
        events: the events table of a source.
        settings: ``cutoff`` is used.

    Returns:
        The events sorted by (user_id, timestamp, row), with the columns
        split: train, validation, test, or "" for events that nobody may use (they lie between or after held-out ones,
        or were shown together with one);
        choices: Int8, 1 where an event may become an example: a positive, of an impression's positives the last;
        position: UInt32, the event's number within its user, from 0;
        positives_before: Int64, the user's positives before this event, or before its impression began;
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
        pl.col("label").alias("choices"),
    )
    has_impressions = "impression" in events.columns
    if has_impressions:
        ordered = _by_impression(ordered)
    choices = pl.col("choices").cast(pl.Int64)
    ordered = ordered.with_columns((choices.cum_sum().over("user_id") - choices).alias("choices_before"))
    split = _by_user() if settings.cutoff is None else _by_date(_seconds_of(settings.cutoff))
    ordered = ordered.with_columns(
        split.alias("split"), (pl.col("positives_before") - pl.col("same_before")).alias("others_before")
    ).drop("same_before", "choices_before")
    return _with_their_impression(ordered) if has_impressions else ordered


def _by_impression(ordered: pl.DataFrame) -> pl.DataFrame:
    """One choice per impression, before which nothing of the impression counts."""
    label = pl.col("label").cast(pl.Int64)
    together = pl.col("impression").is_not_null()
    later = label.sum().over(SHOWN_TOGETHER) - label.cum_sum().over(SHOWN_TOGETHER)
    same_since = label.cum_sum().over(*SHOWN_TOGETHER, "item_id") - label
    return ordered.with_columns(
        pl.when(together & (later > 0)).then(0).otherwise(pl.col("label")).cast(pl.Int8).alias("choices"),
        pl.when(together)
        .then(pl.col("positives_before").min().over(SHOWN_TOGETHER))
        .otherwise(pl.col("positives_before"))
        .alias("positives_before"),
        pl.when(together)
        .then(pl.col("same_before") - same_since)
        .otherwise(pl.col("same_before"))
        .alias("same_before"),
    )


def _with_their_impression(marked: pl.DataFrame) -> pl.DataFrame:
    """What was shown together with a held-out choice is no more learnt from than the choice is."""
    held_out = (CHOSEN & pl.col("split").is_in([VALIDATION, TEST])).any().over(SHOWN_TOGETHER)
    beside = pl.col("impression").is_not_null() & held_out & ~CHOSEN
    return marked.with_columns(pl.when(beside).then(pl.lit(UNUSED)).otherwise(pl.col("split")).alias("split"))


def _by_user() -> pl.Expr:
    choices = pl.col("choices").cast(pl.Int64).sum().over("user_id")
    choices_after = choices - pl.col("choices_before") - pl.col("choices")
    return (
        # With two choices the validation would have no history and the test nothing learnt before it.
        pl.when(choices < 3)
        .then(pl.lit(TRAIN))
        .when(choices_after >= 2)
        .then(pl.lit(TRAIN))
        .when(CHOSEN & (choices_after == 1))
        .then(pl.lit(VALIDATION))
        .when(CHOSEN & (choices_after == 0))
        .then(pl.lit(TEST))
        .otherwise(pl.lit(UNUSED))
    )


def _by_date(cutoff: int) -> pl.Expr:
    early = pl.col("timestamp") < cutoff
    early_choices = (CHOSEN & early).cast(pl.Int64).sum().over("user_id")
    early_after = early_choices - pl.col("choices_before") - pl.col("choices")
    return (
        pl.when(~early & CHOSEN & (pl.col("choices_before") == early_choices))
        .then(pl.lit(TEST))
        .when(~early)
        .then(pl.lit(UNUSED))
        # One choice before the date is the history of the test, and the only thing to learn from.
        .when(early_choices < 2)
        .then(pl.lit(TRAIN))
        .when(early_after >= 1)
        .then(pl.lit(TRAIN))
        .when(CHOSEN)
        .then(pl.lit(VALIDATION))
        .otherwise(pl.lit(UNUSED))
    )


def _seconds_of(cutoff: str) -> int:
    seconds = iso_seconds(cutoff)
    if seconds is None:
        raise RecipeError(f"examples.cutoff: {cutoff!r} is no ISO date such as 2015-06-30")
    return seconds
