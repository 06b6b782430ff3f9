"""Users that are no people: their events are left out; of those that only do very much, what is beyond a bound.

A busy user is one at the 95th percentile of events, on accepted nights where there are enough and else today: up to 5%
of the users may be bots without moving it. What one user says counts up to ``user_factor`` times that. Who did twice as
much, or acts as only programs do, is left out. The signs of a program, each by itself enough:

- even: four of five gaps between events are the same, give or take 5%. Of gaps by chance one in thirty would be;
- hurried: half of the gaps are under half a second;
- likes all: four of five items that were shown, of 50 or more;
- never sleeps: events in all but two of the hours of a day or more.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from tritonrank.data.event_log import KNOWN_AT
from tritonrank.learn.guards.baseline import Baseline, Measure
from tritonrank.learn.guards.day import ROW, SECONDS_PER_HOUR, Day

BUSY = "busy user"
"""Measure: logarithm of the events of a user at BUSY_QUANTILE; beside it ``hours``, how long the day was."""
BUSY_QUANTILE = 0.95
LEAST_CAP = 20
"""Events that anybody may do: in a day of few events the 95th percentile is 1 or 2."""
LEAST_EVENTS = 30
"""Of a user before their gaps and hours say anything."""
EVEN_GAPS, EVEN_WITHIN = 0.8, 0.05
HURRIED_SECONDS = 0.5
LIKED_SHARE, LEAST_SHOWN = 0.8, 50
WAKEFUL_HOURS, HOURS_PER_DAY = 22, 24


@dataclass(frozen=True)
class Suspects:
    """Users of a day that stand out.

    Attributes:
        left_out: ``user_id``, ``events`` and ``sign``, in words, of those who are left out.
        capped: ``user_id`` of those that did more than counts, and ``since`` when what they do is left out.
        cap: events of one user that count at the most.
        busy: measures for the baseline.
    """

    left_out: pl.DataFrame
    capped: pl.DataFrame
    cap: int
    busy: dict[str, Measure]


def find_bots(day: Day, events: pl.DataFrame, baseline: Baseline, user_factor: float, least_nights: int) -> Suspects:
    """Look through the users of a day.

    Args:
        day: its pages and hours.
        events: of the day, without copies; with ROW.
        baseline: of accepted nights.
        user_factor: as in ``GuardSettings``.
        least_nights: alike.
    """
    counts = events.group_by("user_id").agg(pl.len().alias("events")).sort("user_id")
    today = float(np.quantile(counts["events"].to_numpy(), BUSY_QUANTILE)) if counts.height else 1.0
    busy = {BUSY: Measure(float(np.log(max(today, 1.0)))), "hours": Measure(day.hours)}
    cap = max(LEAST_CAP, round(user_factor * _usual_busy(today, day.hours, baseline, least_nights)))
    signs = (
        counts.filter(pl.col("events") >= min(LEAST_EVENTS, 2 * cap))
        .join(_gaps(events), on="user_id", how="left", maintain_order="left")
        .join(_hours(events), on="user_id", how="left", maintain_order="left")
        .join(_liked(day, events), on="user_id", how="left", maintain_order="left")
    )
    enough = pl.col("events") >= LEAST_EVENTS
    sign = (
        pl.when(enough & (pl.col("even") >= EVEN_GAPS))
        .then(pl.format("{}% of the gaps are the same", (100 * pl.col("even")).round().cast(pl.Int64)))
        .when(enough & (pl.col("gap") < HURRIED_SECONDS))
        .then(pl.lit(f"half of the gaps are under {HURRIED_SECONDS} s"))
        .when((pl.col("shown") >= LEAST_SHOWN) & (pl.col("liked") >= LIKED_SHARE))
        .then(pl.format("likes {}% of what is shown", (100 * pl.col("liked")).round().cast(pl.Int64)))
        .when(enough & (pl.col("hours") >= WAKEFUL_HOURS) & (day.hours >= HOURS_PER_DAY))
        .then(pl.format("acts in {} hours of the day", pl.col("hours")))
        .when(pl.col("events") > 2 * cap)
        .then(pl.format("{} events, where one user's count up to {}", pl.col("events"), pl.lit(cap)))
    )
    left_out = signs.select("user_id", "events", sign.alias("sign")).drop_nulls("sign").sort("events", descending=True)
    others = events.join(left_out, on="user_id", how="anti", maintain_order="left")
    turn = pl.int_range(pl.len()).over("user_id")
    beyond = others.sort(KNOWN_AT, ROW).filter(turn >= cap)
    # From that moment on, pages too: without their likes they would teach that nothing on them is liked.
    capped = beyond.group_by("user_id", maintain_order=True).agg(pl.col(KNOWN_AT).first().alias("since"))
    return Suspects(left_out, capped, cap, busy)


def _usual_busy(today: float, hours: float, baseline: Baseline, least_nights: int) -> float:
    """Events of a busy user in a day that is so long."""
    logarithm, usual_hours = baseline.median(BUSY), baseline.median("hours")
    if logarithm is None or usual_hours is None or len(baseline.nights) < least_nights:
        return today
    return float(np.exp(logarithm)) * max(1.0, hours / usual_hours)


def _gaps(events: pl.DataFrame) -> pl.DataFrame:
    """By user: the median gap between times of events, in seconds, and the share of gaps that are about as long."""
    times = events.select("user_id", "timestamp").unique().sort("user_id", "timestamp")
    gaps = times.with_columns(pl.col("timestamp").diff().over("user_id").alias("gap")).drop_nulls("gap")
    median = pl.col("gap").median().over("user_id")
    is_same = (pl.col("gap") - median).abs() <= EVEN_WITHIN * median
    # Few gaps say nothing: many events at one time are a batch.
    found = gaps.with_columns(is_same.alias("same")).filter(pl.len().over("user_id") >= LEAST_EVENTS // 2)
    return found.group_by("user_id").agg(pl.col("gap").median(), pl.col("same").mean().alias("even"))


def _hours(events: pl.DataFrame) -> pl.DataFrame:
    """By user: in how many hours of the clock there are events."""
    hour = (pl.col("timestamp") / SECONDS_PER_HOUR).floor().cast(pl.Int64) % HOURS_PER_DAY
    return events.group_by("user_id").agg(hour.n_unique().alias("hours"))


def _liked(day: Day, events: pl.DataFrame) -> pl.DataFrame:
    """By user: items that were shown on pages on which they acted, and the share of these that they liked."""
    acted = events.filter(pl.col("page") != "").select("user_id", "page").unique()
    shown = acted.join(day.shown.select("page", "item_ids"), on="page").explode("item_ids").unique()
    likes = events.filter(day.is_like()).select("user_id", "page", "item_id").unique()
    is_liked = shown.join(
        likes.with_columns(pl.lit(1.0).alias("is_liked")),
        left_on=["user_id", "page", "item_ids"],
        right_on=["user_id", "page", "item_id"],
        how="left",
    )
    return is_liked.group_by("user_id").agg(
        pl.len().alias("shown"), pl.col("is_liked").fill_null(0.0).mean().alias("liked")
    )
