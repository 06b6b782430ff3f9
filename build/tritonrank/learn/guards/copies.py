"""Events that came twice: under one id, within moments under another, or with a whole batch that was sent again.

The first of each is kept, so that a day that was sent twice is learnt as if it had been sent once.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import poisson

from tritonrank.learn.guards.day import ROW

SAME = ("user_id", "item_id", "type")
"""What events have in common that may be the same one."""
MOST_PAIRS = 20
"""Events of a user and type on one item that are paired with each other, the first ones: pairs grow with the square."""
AROUND = 50
"""Lags to either side that say how many pairs chance alone has at one."""
LEAST_USERS = 5
"""With one lag: fewer are people who come back by the clock."""


def same_id(events: pl.DataFrame) -> pl.Series:
    """Rows (of ROW) that have the id and the user of an earlier one."""
    named = events.filter(pl.col("event_id") != "")
    first = named.select(pl.struct("user_id", "event_id").is_first_distinct()).to_series()
    return named.filter(~first)[ROW]


def within_moments(events: pl.DataFrame, seconds: float) -> pl.Series:
    """Rows of a second event of one user and type on one item, at most ``seconds`` after the one before."""
    ordered = events.filter(pl.col("item_id") != "").sort("timestamp", ROW)
    gap = pl.col("timestamp") - pl.col("timestamp").shift(1).over(SAME)
    return ordered.filter((gap <= seconds).fill_null(False))[ROW]


def sent_again(events: pl.DataFrame, seconds: float, false_alarms: float) -> tuple[pl.Series, list[float]]:
    """Rows of batches that were sent a second time, under new ids and new times.

    Of single users the time between two events on one item may be anything. A batch that is sent again makes it the
    same for many of them: far more pairs than there are with the lags around it.

    Args:
        events: without copies within moments.
        seconds: width of a lag.
        false_alarms: chance that any lag of a sound day is taken for one.

    Returns:
        The later row of each such pair, and the lags, in seconds.
    """
    width = max(seconds, 1.0)
    rows = events.filter(pl.col("item_id") != "").sort("timestamp", ROW).select(*SAME, "timestamp", ROW)
    rows = rows.filter(pl.len().over(SAME) > 1).with_columns(pl.int_range(pl.len()).over(SAME).alias("turn"))
    rows = rows.filter(pl.col("turn") < MOST_PAIRS)
    pairs = rows.join(rows, on=SAME, suffix="_later").filter(pl.col("turn_later") > pl.col("turn"))
    lag = pl.col("timestamp_later") - pl.col("timestamp")
    pairs = pairs.with_columns((lag / width).floor().cast(pl.Int64).alias("lag")).filter(lag > seconds)
    if pairs.is_empty():
        return pl.Series(ROW, [], dtype=rows[ROW].dtype), []
    counted = pairs.group_by("lag").agg(pl.len().alias("pairs"), pl.col("user_id").n_unique().alias("users"))
    by_lag = np.zeros(int(pairs["lag"].max()) + 2)  # type: ignore[arg-type]  # whole numbers
    by_lag[counted["lag"].to_numpy()] = counted["pairs"].to_numpy()
    beyond = _beyond_chance(by_lag, false_alarms / counted.height)
    many = counted.filter(pl.col("users") >= LEAST_USERS)["lag"]
    found = [int(one) for one in np.flatnonzero(beyond) if one in set(many.to_list())]
    # A lag on the border of two widths is in both.
    near = {place for one in found for place in (one - 1, one, one + 1) if by_lag[max(place, 0)] > 0}
    again = pairs.filter(pl.col("lag").is_in(sorted(near)))
    return again["row_later"].unique().alias(ROW), [one * width for one in found]


def _beyond_chance(by_lag: NDArray[np.float64], error: float) -> NDArray[np.bool_]:
    """[lags] whether more pairs have a lag than those around it let chance have, with this error each."""
    padded = np.concatenate([np.zeros(AROUND), by_lag, np.zeros(AROUND)])
    sums = np.convolve(padded, np.ones(2 * AROUND + 1), mode="valid")
    nearest = np.convolve(np.concatenate([[0.0], by_lag, [0.0]]), np.ones(3), mode="valid")
    around = (sums - nearest) / (2 * AROUND - 2)
    # One pair more than there are: no lag is impossible because none was seen beside it.
    return np.asarray(poisson.sf(by_lag - 1, around + 1 / (2 * AROUND - 2)) < error)
