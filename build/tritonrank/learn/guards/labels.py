"""Do the likes of a day agree with what was known before? Where they turn against it, they may be the wrong way round.

Three chances, each a half where the likes are by lot, and below it where likes and dislikes changed places:

- order: that of two items of a page the liked one stood above the other, by the live ranker. Places are looked at from
  the top, which only helps it;
- liking: that it had been liked more often before, for the places at which it was shown;
- skips: that an item which a user likes had been liked rather than disliked before, more than one which they dislike.

A user's pages are averaged first and then the users, so that each counts once: who clicks on everything, or a thousand
times, moves the mean as little as anybody.
"""

import numpy as np
import polars as pl

from tritonrank.learn.guards.baseline import Measure
from tritonrank.learn.guards.day import Day

LEAST_USERS = 30
"""That a chance is averaged over: below it the standard error itself is not known."""


def shown_items(day: Day, events: pl.DataFrame, shown: pl.DataFrame) -> pl.DataFrame:
    """A row for each item of each page that somebody acted on.

    Args:
        day: says what a like is.
        events: of the day.
        shown: pages of the day.

    Returns:
        ``user_id``, ``page``, ``item_id``, ``place`` from 0 as the ranker had it, and ``is_liked``.
    """
    acted = events.filter(pl.col("page") != "").select("page", "user_id").unique(maintain_order=True)
    place = pl.coalesce("policy_positions", "positions").alias("place")
    lists = shown.filter(pl.col("page") != "").select("page", "item_ids", place).explode("item_ids", "place")
    # Further pages of a list have its token; what is shown again where somebody goes back, is there once.
    once = lists.rename({"item_ids": "item_id"}).unique(["page", "item_id"], keep="first", maintain_order=True)
    rows = once.join(acted, on="page", maintain_order="left")
    likes = events.filter(day.is_like() & (pl.col("page") != "")).select("user_id", "page", "item_id").unique()
    liked = rows.join(
        likes.with_columns(pl.lit(True).alias("is_liked")),
        on=["user_id", "page", "item_id"],
        how="left",
        maintain_order="left",
    )
    return liked.with_columns(pl.col("is_liked").fill_null(False)).drop_nulls(["item_id", "place"])


def agreement(day: Day, events: pl.DataFrame, rows: pl.DataFrame, known: pl.DataFrame) -> dict[str, Measure]:
    """The chances above; one is missing where too few users tell it.

    Args:
        day: says what likes and dislikes are.
        events: of the day.
        rows: of ``shown_items``.
        known: sums of items from before, as ``Baseline.items``.
    """
    liking = known.select("item_id", ((pl.col("liked") + 1) / (pl.col("expected") + 1)).alias("score"))
    scored = rows.join(liking, on="item_id", maintain_order="left")
    found = {
        "order": _mean(_chances(rows.with_columns((-pl.col("place")).cast(pl.Float64).alias("score")), "page")),
        "liking": _mean(_chances(scored, "page")),
        "skips": _mean(_chances(_told(day, events, known), "user_id")),
    }
    return {name: measure for name, measure in found.items() if measure is not None}


def tellers(rows: pl.DataFrame) -> int:
    """How many users liked something of a page and not all of it: those who tell the order."""
    return _chances(rows.with_columns(pl.lit(0.0).alias("score")), "page").height


def like_rate(rows: pl.DataFrame) -> Measure | None:
    """Logit of the share of shown items that are liked."""
    by_user = rows.group_by("user_id").agg(pl.col("is_liked").sum().cast(pl.Float64), pl.len().alias("shown"))
    liked, shown = by_user["is_liked"].to_numpy(), by_user["shown"].to_numpy().astype(float)
    if len(liked) < LEAST_USERS or not 0 < liked.sum() < shown.sum():
        return None
    share = liked.sum() / shown.sum()
    # Of a ratio of sums over users (linearized), and through the logit.
    error = np.sqrt(((liked - share * shown) ** 2).sum()) / shown.sum()
    return Measure(float(np.log(share / (1 - share))), float(error / (share * (1 - share))))


def dislike_rate(day: Day, events: pl.DataFrame) -> Measure | None:
    """Logit of the share of dislikes among likes and dislikes."""
    told = events.select("user_id", day.is_like().alias("like"), day.is_dislike().alias("dislike"))
    by_user = told.group_by("user_id").agg(pl.col("like", "dislike").sum().cast(pl.Float64))
    dislikes, both = by_user["dislike"].to_numpy(), (by_user["like"] + by_user["dislike"]).to_numpy()
    if (both > 0).sum() < LEAST_USERS or not 0 < dislikes.sum() < both.sum():
        return None
    share = dislikes.sum() / both.sum()
    error = np.sqrt(((dislikes - share * both) ** 2).sum()) / both.sum()
    return Measure(float(np.log(share / (1 - share))), float(error / (share * (1 - share))))


def item_sums(day: Day, events: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """What a day says of its items, as ``Baseline.items`` keeps it.

    The likes that a place alone would have brought are those that the items at this place got on average.
    """
    by_place = rows.with_columns(pl.col("is_liked").mean().over("place").alias("expected"))
    on_pages = by_place.group_by("item_id").agg(
        pl.col("is_liked").sum().cast(pl.Float64).alias("liked"), pl.col("expected").sum()
    )
    told = events.filter(pl.col("item_id") != "")
    of_events = told.group_by("item_id").agg(
        day.is_like().sum().cast(pl.Float64).alias("likes"), day.is_dislike().sum().cast(pl.Float64).alias("dislikes")
    )
    return of_events.join(on_pages, on="item_id", how="full", coalesce=True).fill_null(0.0)


def _told(day: Day, events: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """A row for each item that a user said something about, with how it had been spoken of before."""
    likes, dislikes = float(known["likes"].sum()), float(known["dislikes"].sum())
    usual = likes / (likes + dislikes) if likes else 0.0
    spoken = (pl.col("likes") + usual) / (pl.col("likes") + pl.col("dislikes") + 1)
    score = known.select("item_id", spoken.alias("score"))
    told = events.filter(day.is_like() | day.is_dislike())
    by_user = told.group_by("user_id", "item_id").agg(day.is_like().any().alias("is_liked"))
    return by_user.join(score, on="item_id").sort("user_id", "item_id")


def _chances(rows: pl.DataFrame, per: str) -> pl.DataFrame:
    """By user: how likely one of their liked items scores above another, list by list; equal scores count a half.

    The rank sum of Mann and Whitney (1947): of n items with l liked ones, whose ranks from the lowest sum to r, it is
    (r - l (l + 1) / 2) / (l (n - l)).
    """
    lists = ["user_id", per] if per != "user_id" else ["user_id"]
    rank = pl.col("score").rank("average").over(lists)
    by_list = (
        rows.with_columns(rank.alias("rank"))
        .group_by(lists)
        .agg(
            pl.len().cast(pl.Float64).alias("all"),
            pl.col("is_liked").sum().cast(pl.Float64).alias("liked"),
            pl.col("rank").filter(pl.col("is_liked")).sum().alias("ranks"),
        )
        .filter((pl.col("liked") > 0) & (pl.col("liked") < pl.col("all")))
    )
    liked, others = pl.col("liked"), pl.col("all") - pl.col("liked")
    chance = (pl.col("ranks") - liked * (liked + 1) / 2) / (liked * others)
    return by_list.group_by("user_id").agg(chance.mean().alias("chance"))


def _mean(chances: pl.DataFrame) -> Measure | None:
    """Over users, with its standard error."""
    values = chances["chance"].to_numpy()
    if len(values) < LEAST_USERS:
        return None
    return Measure(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))
