"""Which positives become examples.

Judged users are drawn by lot, each with a number of its own made from the seed and the user's id, so that asking for
more users keeps the ones there were. Training takes every user's newest positive, then everybody's second-newest,
and so on, until there are enough.
"""

import polars as pl

from tritonrank.data.negatives import stable_hash
from tritonrank.data.splits import CHOSEN, TEST, TRAIN, VALIDATION
from tritonrank.errors import DataError
from tritonrank.recipe import ExampleSettings


def choose_positives(
    events: pl.DataFrame, settings: ExampleSettings, seed: int
) -> tuple[dict[str, pl.DataFrame], dict[str, dict[str, int]]]:
    """Choose by seed.

    Args:
        events: as ``mark_splits`` returns them.
        settings: how many training examples, validation users and test users are wanted, at the most.
        seed: draws the users.

    Returns:
        Per split (train, validation, test) the rows of ``events`` that become examples; and per judged split how many
        users fell away, by reason.

    Raises:
        DataError: a split would be empty.
    """
    positives = events.filter(CHOSEN)
    chosen = {TRAIN: _choose_training(positives, settings.training_examples, seed)}
    skipped = {}
    for split, wanted in ((VALIDATION, settings.validation_users), (TEST, settings.test_users)):
        held_out = positives.filter(pl.col("split") == split)
        eligible = held_out.filter(pl.col("others_before") > 0)
        chosen[split] = eligible.sort(_lottery(eligible["user_id"], seed, split), maintain_order=True).head(wanted)
        skipped[split] = {
            "no held-out positive": events["user_id"].n_unique() - held_out.height,
            "no earlier positive of another item": held_out.height - eligible.height,
            "not drawn": eligible.height - chosen[split].height,
            "asked for but not there": wanted - chosen[split].height,
        }
    for split, frame in chosen.items():
        if frame.is_empty():
            raise DataError(
                f"no {split} example can be made from {events.height} events of {events['user_id'].n_unique()} users. "
                + (
                    "A judged user needs a positive before examples.cutoff and one after it; choose another date"
                    if settings.cutoff
                    else "A judged user needs three positives or more; check the labels, or lower the value from "
                    "which an event is positive (data.positive_rating, data.positive_label), or give more event types "
                    "a weight (data.label)"
                )
            )
    return chosen, skipped


def _choose_training(positives: pl.DataFrame, wanted: int, seed: int) -> pl.DataFrame:
    """In rounds over the users, newest positive first, so that nobody with a long history dominates."""
    usable = positives.filter(
        (pl.col("split") == TRAIN) & ((pl.col("others_before") > 0) | (pl.col("query") != ""))
    ).with_columns(pl.col("position").rank("ordinal", descending=True).over("user_id").alias("round"))
    turn = _lottery(usable["user_id"], seed, TRAIN)
    return usable.with_columns(turn).sort("round", turn.name).head(wanted)


def _lottery(user_ids: pl.Series, seed: int, purpose: str) -> pl.Series:
    """A random number per user that does not depend on which other users there are."""
    users = user_ids.unique()
    numbers = pl.Series([stable_hash(seed, f"{purpose}:{user}") for user in users], dtype=pl.UInt64)
    return user_ids.replace_strict(users, numbers, return_dtype=pl.UInt64).alias("lottery")
