"""What was shown together: the best negatives there are, and how much their place had to do with the clicks.

Of an impression every item that was shown and not chosen is a negative that the user saw, or could have seen. Clicks
are rarer further down because fewer people look there, not because the items are worse; ``Propensities`` estimates by
how much, and a positive from far down weighs more in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tritonrank.data.splits import SHOWN_TOGETHER, TRAIN

LARGEST_WEIGHT = 10.0
"""Of a positive, by its position: beyond it a few clicks from the last page would outweigh all others (clipped as in
Joachims, Swaminathan & Schnabel 2017)."""
ROUNDS = 30


@dataclass(frozen=True)
class Shown:
    """An item in an impression, over all of its rows there."""

    item_id: str
    gain: float
    position: int | None
    """where the events say"""


def shown_with(events: pl.DataFrame, chosen: pl.DataFrame) -> dict[tuple[str, str], list[Shown]]:
    """The impressions of some events: by user and impression what was shown, in the order of the events.

    Args:
        events: all, as ``mark_splits`` returns them, with the column impression, and shown_at where it is known.
        chosen: rows of them.
    """
    wanted = chosen.select(SHOWN_TOGETHER).drop_nulls().unique()
    rows = events.join(wanted, on=SHOWN_TOGETHER, how="semi", maintain_order="left")
    place = pl.col("shown_at").min() if "shown_at" in events.columns else pl.lit(None, dtype=pl.Int64).alias("shown_at")
    items = rows.group_by(*SHOWN_TOGETHER, "item_id", maintain_order=True).agg(pl.col("gain").max(), place)
    found: dict[tuple[str, str], list[Shown]] = {}
    for user, impression, item, gain, position in items.iter_rows():
        found.setdefault((user, impression), []).append(Shown(item, gain, position))
    return found


def shown_and_clicked(events: pl.DataFrame) -> pl.DataFrame:
    """How often each item was shown at each position of events that may be learnt from, and chosen there.

    Args:
        events: as ``mark_splits`` returns them, with the columns impression and shown_at.

    Returns:
        item_id, shown_at, shown: Int64, clicks: Int64; the counts of some users and of others add up.
    """
    shown = events.filter((pl.col("split") == TRAIN) & pl.col("shown_at").is_not_null())
    shown = shown.group_by(*SHOWN_TOGETHER, "item_id").agg(
        (pl.col("label").max() > 0).cast(pl.Int64).alias("clicks"), pl.col("shown_at").min()
    )
    return shown.group_by("item_id", "shown_at").agg(pl.len().cast(pl.Int64).alias("shown"), pl.col("clicks").sum())


class Propensities:
    """How likely people look at a position, from the events that may be learnt from.

    The position-based model (Richardson, Dominowska & Ragno 2007): P(click on item i at position k) = p_k r_i. Both are
    fitted in turns to the clicks c and the times n that i was shown at k, p_k = sum_i c_ik / sum_i n_ik r_i and
    r_i = sum_k c_ik / sum_k n_ik p_k (the fixed point of the Poisson likelihood), so that a position is not called good
    for having had the good items. The largest p is 1.

    Args:
        counts: as ``shown_and_clicked`` counts, of all users.
    """

    def __init__(self, counts: pl.DataFrame) -> None:
        counts = counts.sort("item_id", "shown_at")
        positions = counts["shown_at"].unique().sort()
        place = positions.search_sorted(counts["shown_at"]).to_numpy()
        item = counts["item_id"].rank("dense").to_numpy().astype(np.int64) - 1
        shown, clicks = (counts[name].to_numpy().astype(np.float64) for name in ("shown", "clicks"))
        looked = _looked(place, item, shown, clicks, len(positions))
        self.by_position: Mapping[int, float] = dict(zip(positions.to_list(), looked.tolist(), strict=True))

    @classmethod
    def of_curve(cls, looked: Sequence[float]) -> "Propensities":
        """Those that are known: [positions] how likely each is looked at, from 0."""
        made = cls(
            pl.DataFrame(schema={"item_id": pl.String, "shown_at": pl.Int64, "shown": pl.Int64, "clicks": pl.Int64})
        )
        made.by_position = dict(enumerate(looked))
        return made

    def weight(self, position: int | None) -> float:
        """Of a positive at a position: 1/p, at most LARGEST_WEIGHT; 1 where its position is not known."""
        looked = 1.0 if position is None else self.by_position.get(position, 0.0)
        return 1 / max(looked, 1 / LARGEST_WEIGHT)


def _looked(
    place: NDArray[np.int64],
    item: NDArray[np.int64],
    shown: NDArray[np.float64],
    clicks: NDArray[np.float64],
    places: int,
) -> NDArray[np.float64]:
    """[places] p_k of pairs of a place and an item, each with n_ik and c_ik."""
    items = int(item.max(initial=-1)) + 1
    clicks_at = np.bincount(place, clicks, places)
    clicks_of = np.bincount(item, clicks, items)
    looked = np.ones(places)
    for _ in range(ROUNDS):
        liked = clicks_of / np.bincount(item, shown * looked[place], items)
        expected = np.bincount(place, shown * liked[item], places)
        looked = np.divide(clicks_at, expected, out=np.zeros(places), where=expected > 0)
        looked /= max(looked.max(initial=0.0), np.finfo(float).tiny)
    return looked
