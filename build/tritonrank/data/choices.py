"""Which positives become examples.

Judged users are drawn by lot, each with a number of its own made from the seed and the user's id, so that asking for
more users keeps the ones there were. Training takes every user's newest positive, then everybody's second-newest,
and so on, until there are enough.
"""

from dataclasses import dataclass

import polars as pl

from tritonrank.data.dropped import Loss, add_up
from tritonrank.data.negatives import stable_hash
from tritonrank.data.splits import CHOSEN, LIKED, TEST, TRAIN, VALIDATION
from tritonrank.errors import DataError
from tritonrank.recipe import ExampleSettings

PLACE = ("round", "lottery", "user_id")
"""Columns that order the positives of a split: those that come first are taken."""


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
    chosen = {
        split: eligible(events, split, seed).sort(PLACE).head(wanted) for split, wanted in wanted_of(settings).items()
    }
    return chosen, users_skipped(Tally.of(events), settings)


def wanted_of(settings: ExampleSettings) -> dict[str, int]:
    """How many examples of each split are wanted, at the most."""
    return {TRAIN: settings.training_examples, VALIDATION: settings.validation_users, TEST: settings.test_users}


def eligible(events: pl.DataFrame, split: str, seed: int) -> pl.DataFrame:
    """The positives of a split that can become examples, with the columns of PLACE; users are looked at one by one.

    Of judged users each has one. Training goes in rounds over the users, newest positive first, so that nobody with a
    long history dominates.
    """
    usable = events.filter(usable_for(split))
    number = pl.col("position").rank("ordinal", descending=True).over("user_id")
    turn = number if split == TRAIN else pl.lit(0)
    return usable.with_columns(turn.cast(pl.Int64).alias("round"), lottery(usable["user_id"], seed, split))


def usable_for(split: str) -> pl.Expr:
    """Whether an event can become an example of a split."""
    has_context = pl.col("others_before") > 0
    return (
        CHOSEN
        & (pl.col("split") == split)
        & ((has_context | (pl.col("query") != "")) if split == TRAIN else has_context)
    )


def users_skipped(tally: "Tally", settings: ExampleSettings) -> dict[str, dict[str, int]]:
    """Per judged split how many users fell away, by reason.

    Raises:
        DataError: a split would be empty.
    """
    wanted = wanted_of(settings)
    for split in wanted:
        if not min(tally.eligible[split], wanted[split]):
            raise DataError(
                f"no {split} example can be made from {tally.events} events of {tally.users} users. "
                + (
                    "A judged user needs a positive before examples.cutoff and one after it; choose another date"
                    if settings.cutoff
                    else "A judged user needs three positives or more; check the labels, or lower the value from "
                    "which an event is positive (data.positive_rating, data.positive_label), or give more event types "
                    "a weight (data.label)"
                )
            )
    return {
        split: {
            "no held-out positive": tally.users - tally.held_out[split],
            "no earlier positive of another item": tally.held_out[split] - tally.eligible[split],
            "not drawn": max(0, tally.eligible[split] - wanted[split]),
            "asked for but not there": max(0, wanted[split] - tally.eligible[split]),
        }
        for split in (VALIDATION, TEST)
    }


@dataclass(frozen=True)
class Tally:
    """How much there is; what is counted of some users adds up to what is counted of all."""

    users: int
    events: int
    positive_events: int
    training_events: int
    held_out: dict[str, int]
    """by split"""
    eligible: dict[str, int]
    """by split, the positives that can become examples"""
    without_positive: Loss
    """users who liked nothing"""

    @classmethod
    def of(cls, events: pl.DataFrame) -> "Tally":
        """Count the events of all users or some, as ``mark_splits`` returns them."""
        users, with_positives = (frame["user_id"].unique() for frame in (events, events.filter(LIKED)))
        without = users.filter(~users.is_in(with_positives.implode())).sort()
        splits = (TRAIN, VALIDATION, TEST)
        return cls(
            len(users),
            events.height,
            events.filter(LIKED).height,
            events.filter(pl.col("split") == TRAIN).height,
            {split: events.filter(CHOSEN & (pl.col("split") == split)).height for split in splits},
            {split: events.filter(usable_for(split)).height for split in splits},
            # Not limited: a shop where most only look is a shop.
            Loss.of("users without a positive", "nothing is learnt or judged of them", without),
        )

    def __add__(self, other: "Tally") -> "Tally":
        """Of the users of both, whose ids are all after those of this one."""
        return Tally(
            self.users + other.users,
            self.events + other.events,
            self.positive_events + other.positive_events,
            self.training_events + other.training_events,
            {split: count + other.held_out[split] for split, count in self.held_out.items()},
            {split: count + other.eligible[split] for split, count in self.eligible.items()},
            add_up([[self.without_positive], [other.without_positive]])[0],
        )


def lottery(user_ids: pl.Series, seed: int, purpose: str) -> pl.Series:
    """A random number per user that does not depend on which other users there are."""
    users = user_ids.unique()
    numbers = pl.Series([stable_hash(seed, f"{purpose}:{user}") for user in users], dtype=pl.UInt64)
    return user_ids.replace_strict(users, numbers, return_dtype=pl.UInt64).alias("lottery")
