"""Who was shown, day by day, by the training log: the figures of the gateway's ``tritonrank_exposure_*`` over whole
days, so that a night's page shows whether what is learnt from lists makes the lists narrower.

A day's tenths of popularity are made of what was liked *before* that day, decayed as the catalogue does it, because a
list that makes an item popular would otherwise have shown a popular item.
"""

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_recommend.catalogue.standing import TENTHS
from tritonrank_recommend.exposure import DAY, NEW_ITEMS, NEW_SECONDS, gini, read_new_items
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import StoreError

from tritonrank.data.event_log import LIKED_RATING, read_rows
from tritonrank.report.plots.axes import Series

LIKED_TYPES = ("click", "cart", "purchase")
"""Events that say yes by themselves; of ratings their stars do."""
HALF_LIFE_DAYS = 30.0
"""Of popularity, as ``retrieval.half_life_days`` has it by default."""
FIGURES: dict[str, pl.DataType] = {
    "day": pl.Date(),
    "pages": pl.Int64(),
    "shown": pl.Int64(),
    "items": pl.Int64(),
    "deciles": pl.List(pl.Float64()),
    "added": pl.Float64(),
    "gini": pl.Float64(),
    "new_items": pl.Int64(),
    "new_items_shown": pl.Int64(),
    "first_impression_hours": pl.Float64(),
}


def exposure_of_log(log: Path, items: Collection[str] = (), store_url: str = "") -> pl.DataFrame:
    """``exposure_by_day`` of a gateway's training log.

    Args:
        log: its folder.
        items: ids that could be shown, such as those of the catalogue.
        store_url: where gateways keep when items came; "" says nothing of new items.

    Raises:
        DataError: there is no log, or a file of it is damaged; the message names it.
        StoreError: the store does not answer.
    """
    rows = read_rows(log, 0.0, math.inf)
    arrivals = arrivals_of(store_url) if store_url else None
    return exposure_by_day(
        rows.shown, liked_of(rows.events), pl.Series("item_id", list(items), dtype=pl.String), arrivals
    )


def liked_of(events: pl.DataFrame) -> pl.DataFrame:
    """The events of a log that say yes, each once.

    Args:
        events: as ``event_log.read_rows`` gives them.
    """
    is_liked = pl.col("type").is_in(LIKED_TYPES) | ((pl.col("type") == "rating") & (pl.col("value") >= LIKED_RATING))
    return events.filter(is_liked).unique(["user_id", "event_id"], maintain_order=True)


def arrivals_of(store_url: str) -> pl.DataFrame:
    """When items of the last 30 days came, as the gateways that share a store remember it.

    Returns:
        ``item_id`` and ``came``, unix seconds.

    Raises:
        StoreError: the store does not answer, or its record is none.
    """

    async def ask() -> bytes | None:
        store = open_store(store_url)
        try:
            return await store.get(NEW_ITEMS)
        finally:
            await store.close()

    record = asyncio.run(ask())
    try:
        new = read_new_items(record) if record else {}
    except msgspec.DecodeError as error:
        raise StoreError(f"{store_url}: the record of new items cannot be read ({error})") from error
    schema = {"item_id": pl.String(), "came": pl.Float64()}
    return pl.DataFrame([(item_id, item.came) for item_id, item in new.items()], schema=schema, orient="row")


def curves(figures: pl.DataFrame) -> list[Series]:
    """Lines over days, from the first one at 0: what the most popular tenth has of what is shown, and Gini."""
    first = figures["day"].min() if figures.height else None
    days = [float((day - first).days) for day in figures["day"]]
    top = [None if one is None else one[0] for one in figures["deciles"].to_list()]
    return [
        Series("shown of the most popular tenth", list(zip(days, top, strict=True)), 1, dots=True),
        Series("Gini of exposure", list(zip(days, figures["gini"].to_list(), strict=True)), 2, dots=True),
    ]


def exposure_by_day(
    shown: pl.DataFrame,
    liked: pl.DataFrame,
    items: pl.Series | None = None,
    arrivals: pl.DataFrame | None = None,
    *,
    half_life_days: float = HALF_LIFE_DAYS,
) -> pl.DataFrame:
    """The figures of each day (UTC) on which something was shown.

    Args:
        shown: pages, with ``shown_at`` (unix seconds) and ``item_ids``.
        liked: events that say yes, with ``item_id`` and ``timestamp`` (unix seconds).
        items: ids that could be shown; None knows those that the log names.
        arrivals: ``item_id`` and ``came`` (unix seconds) of items that came while the log was written, such as
            ``arrivals_of`` gives; None says nothing of new items.
        half_life_days: after which a liked item counts half.

    Returns:
        A row per day: ``day``; ``pages``; ``shown`` items, each as often as it was shown; ``items`` that could be
        shown; ``deciles``, the ten shares of what was shown, by popularity before that day, the most popular tenth
        first, null where nothing was liked before; ``added``, the share of items that came on that day; ``gini``;
        ``new_items`` that came within 30 days, ``new_items_shown`` of them by the end of the day, and
        ``first_impression_hours``, the median wait of those that were shown for the first time on it, null where there
        were none.
    """
    if not shown.height:
        return pl.DataFrame(schema=FIGURES)
    rows = shown.select("shown_at", pl.col("item_ids").alias("item_id")).explode("item_id").drop_nulls()
    universe = _Universe.of([items, rows["item_id"], liked["item_id"]], arrivals)
    at, place = rows["shown_at"].to_numpy(), universe.places(rows["item_id"])
    liked_at, liked_place = liked["timestamp"].cast(pl.Float64).to_numpy(), universe.places(liked["item_id"])
    pages = np.floor(shown["shown_at"].to_numpy() / DAY).astype(np.int64)
    first_shown = np.full(universe.size, np.inf)
    np.minimum.at(first_shown, place, at)
    figures = []
    for day in np.unique(pages).tolist():
        start, end = float(day * DAY), float((day + 1) * DAY)
        is_today, is_before = (at >= start) & (at < end), liked_at < start
        decay = 0.5 ** ((start - liked_at[is_before]) / DAY / half_life_days)
        popularity = np.bincount(liked_place[is_before], decay, universe.size)
        counts = np.bincount(place[is_today], minlength=universe.size)
        here = int((universe.came < end).sum())
        figures.append(
            {
                "day": np.datetime64(day, "D").item(),
                "pages": int((pages == day).sum()),
                "shown": int(counts.sum()),
                "items": here,
                "deciles": _deciles(counts, popularity, universe.came < start) if is_before.any() else None,
                "added": float(counts[universe.came >= start].sum() / max(1, counts.sum()))
                if universe.is_dated
                else None,
                "gini": gini(counts[counts > 0], here),
            }
            | _new_items(universe, first_shown, start, end)
        )
    return pl.DataFrame(figures, schema=FIGURES)


@dataclass(frozen=True)
class _Universe:
    """All items, and when each came.

    Attributes:
        ids: [items] in the order of the table.
        came: [items] unix seconds; 0 before the log began.
        is_dated: whether anybody said when items came.
    """

    ids: pl.Series
    came: NDArray[np.float64]
    is_dated: bool

    @classmethod
    def of(cls, ids: list[pl.Series | None], arrivals: pl.DataFrame | None) -> "_Universe":
        known = [one.cast(pl.String).alias("item_id") for one in ids if one is not None]
        every = pl.concat([*known, *([] if arrivals is None else [arrivals["item_id"]])]).unique(maintain_order=True)
        came = np.zeros(every.len())
        if arrivals is not None:
            first = arrivals.group_by("item_id").agg(pl.col("came").min())
            dated = every.to_frame().join(first, on="item_id", how="left", maintain_order="left")
            came = dated["came"].fill_null(0.0).to_numpy()
        return cls(every, came, arrivals is not None)

    @property
    def size(self) -> int:
        return len(self.came)

    def places(self, ids: pl.Series) -> NDArray[np.int64]:
        """[ids] the place of each."""
        table = self.ids.to_frame().with_row_index("place")
        wanted = ids.cast(pl.String).alias("item_id").to_frame()
        return wanted.join(table, on="item_id", how="left", maintain_order="left")["place"].cast(pl.Int64).to_numpy()


def _deciles(counts: NDArray[np.int64], popularity: NDArray[Any], was_here: NDArray[np.bool_]) -> list[float]:
    """Shares of what was shown, by tenth of the items that were here before the day; the rest came later."""
    places = np.flatnonzero(was_here)
    order = places[np.argsort(-popularity[places], kind="stable")]
    tenth = np.arange(len(order)) * TENTHS // max(1, len(order))
    shares = np.bincount(tenth, counts[order], TENTHS) / max(1, counts.sum())
    return [float(one) for one in shares]


def _new_items(
    universe: _Universe, first_shown: NDArray[np.float64], start: float, end: float
) -> dict[str, int | float | None]:
    if not universe.is_dated:
        return {"new_items": None, "new_items_shown": None, "first_impression_hours": None}
    is_new = (universe.came > 0) & (universe.came < end) & (universe.came >= end - NEW_SECONDS)
    is_first = is_new & (first_shown >= start) & (first_shown < end)
    waits = np.maximum(0.0, first_shown[is_first] - universe.came[is_first]) / 3_600
    return {
        "new_items": int(is_new.sum()),
        "new_items_shown": int((is_new & (first_shown < end)).sum()),
        "first_impression_hours": float(np.median(waits)) if len(waits) else None,
    }
