"""One item that many new users like, and little else: a click farm. These users are left out.

An item that is suddenly liked may be a good one, or in the news. Then people who were there before like it as well, and
those who are new look at other items too. A farm's accounts are new, and do what they were made for. So an item with
far more likes than it usually has is suspect when far more of those who like it are new than of those who like other
items, and most of these like nothing else.
"""

import polars as pl
from scipy.stats import binom
from tritonrank_recommend.log.layout import digest_of

from tritonrank.learn.guards.baseline import Baseline
from tritonrank.learn.guards.day import Day

DIGITS = 16
"""Of the hash of a user's id: enough to tell a billion users apart, and erased with the same hash as a tombstone."""
LEAST_USERS = 10
"""That are new and like an item: fewer move no ranker."""
SINGLE_MINDED = 0.5
"""Share of an item's new likers that like at most one other item, from which they are no shoppers."""


def users_of(events: pl.DataFrame, end: float) -> pl.DataFrame:
    """Who acted: ``user_id``, ``user``, the first digits of its hash, and ``seen``, the end of the night."""
    ids = events["user_id"].unique().sort()
    digests = pl.Series("user", [digest_of(one)[:DIGITS] for one in ids.to_list()], dtype=pl.String)
    return pl.DataFrame({"user_id": ids, "user": digests, "seen": pl.Series([end] * len(ids), dtype=pl.Float64)})


def find_farms(
    day: Day, events: pl.DataFrame, users: pl.DataFrame, baseline: Baseline, item_factor: float, false_alarms: float
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items that new users promote.

    Args:
        day: says what a like is.
        events: with ROW, without what was left out before.
        users: as ``users_of`` gives them.
        baseline: without nights nobody is known, and nothing is found.
        item_factor: as in ``GuardSettings``.
        false_alarms: chance that any item of a sound day is taken for a farm's.

    Returns:
        ``item_id``, ``likers`` and ``new`` users among them, ``rise`` over the usual share of likes; and ``item_id``
        and ``user_id`` of the accounts that were made for it.
    """
    likes = events.filter(day.is_like()).select("user_id", "item_id")
    if not baseline.nights or likes.is_empty():
        return pl.DataFrame(), pl.DataFrame(schema={"item_id": pl.String, "user_id": pl.String})
    is_new = users.join(baseline.users.select("user"), on="user", how="anti").select("user_id", is_new=pl.lit(True))
    likers = likes.select("user_id", "item_id").unique().join(is_new, on="user_id", how="left")
    likers = likers.with_columns(
        pl.col("is_new").fill_null(False), (pl.len().over("user_id") <= 2).alias("is_single_minded")
    )
    usual = baseline.items.select("item_id", (pl.col("likes") / pl.col("likes").sum()).alias("usual"))
    by_item = (
        likers.group_by("item_id")
        .agg(
            pl.len().alias("likers"),
            pl.col("is_new").sum().cast(pl.Int64).alias("new"),
            (pl.col("is_new") & pl.col("is_single_minded")).sum().cast(pl.Int64).alias("single_minded"),
        )
        .join(usual, on="item_id", how="left")
        .with_columns((pl.col("likers") / likers.height).alias("share"))
        .sort("item_id")
    )
    # What is not known yet, or was hardly ever liked, counts as the item in the middle.
    middle = float(usual["usual"].median() or 0.0)  # type: ignore[arg-type]  # of numbers
    by_item = by_item.with_columns(
        (pl.col("share") / pl.max_horizontal(pl.col("usual").fill_null(middle), middle)).alias("rise")
    )
    suspects = by_item.filter(
        (pl.col("new") >= LEAST_USERS)
        & (pl.col("rise") >= item_factor)
        & (pl.col("single_minded") >= SINGLE_MINDED * pl.col("new"))
    )
    # Of the others, so that a farm does not make new users usual.
    elsewhere = likers.join(suspects, on="item_id", how="anti")
    new_share = (float(elsewhere["is_new"].sum()) + 1) / (elsewhere.height + 2)
    chance = binom.sf(suspects["new"].to_numpy() - 1, suspects["likers"].to_numpy(), new_share)
    farms = suspects.filter(pl.Series(chance < false_alarms / max(by_item.height, 1)))
    made = likers.filter(pl.col("is_new") & pl.col("is_single_minded")).join(farms, on="item_id", how="semi")
    return farms.select("item_id", "likers", "new", "rise"), made.select("item_id", "user_id").sort(
        "item_id", "user_id"
    )
