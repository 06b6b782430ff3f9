"""The rows of the training log as a night needs them: what became of each page, and when that was settled.

A page is settled when its click window closes (``learn.delay_hours`` after it was shown for the first time), and what
was done on it until then is one list. What comes later, and what belongs to no known page, is settled when it is in the
log, and stands for itself. Both follow from the rows alone, so that every night that reads a row says the same of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tritonrank.data.event_log import KNOWN_AT, LogRows, as_events, first_of_each, page_queries
from tritonrank.errors import DataError
from tritonrank.learn.clicks.click_estimates import ShownItems
from tritonrank.learn.lists.left_out import LeftOut, without_left_out
from tritonrank.learn.lists.windows import SECONDS_PER_HOUR
from tritonrank.recipe.data import EVENT_WEIGHTS

SETTLED_AT, LIST_AT = "settled_at", "list_at"
"""Columns, unix seconds: see above; and when the list came to be, before which everything counts as history."""
HINT = "Let neighbours change places: section [explore] of the gateway's rules (docs/recommend.md)"


@dataclass(frozen=True)
class ShownPages:
    """Pages of the log for estimates by clicks.

    Attributes:
        items: a row per shown item, in the order of pages and positions: page, user_id, query, shown_at, item_id.
        shown: the same rows, as ``click_estimates`` takes them.
    """

    items: pl.DataFrame
    shown: ShownItems


def settled_events(rows: LogRows, delay_hours: float, *, every_list: bool = False) -> pl.DataFrame:
    """Events on items, and what was shown beside them and passed over, each with when it is settled.

    Args:
        rows: of the log.
        delay_hours: after a page was shown, in which events count for it.
        every_list: also what was shown to known users who then did nothing.

    Returns:
        user_id, item_id, type, query, timestamp (Int64), page, position, SETTLED_AT and LIST_AT (Float64). ``page`` is
        empty where an event stands for itself.
    """
    delay = delay_hours * SECONDS_PER_HOUR
    pages = _pages(rows.shown, delay)
    events = rows.events.sort(KNOWN_AT, maintain_order=True)
    events = events.filter(first_of_each(events))
    queries = page_queries(events, rows.shown)
    events = events.join(queries, on="page", how="left", suffix="_of_page", maintain_order="left")
    events = events.join(pages, on="page", how="left", maintain_order="left")
    hours = (pl.col(KNOWN_AT) // SECONDS_PER_HOUR, pl.col("page_known_at") // SECONDS_PER_HOUR)
    # A night that knew the event knew the page, too: nights end with hours.
    on_page = ((pl.col(KNOWN_AT) < pl.col(SETTLED_AT)) & (hours[1] <= hours[0])).fill_null(False)
    events = events.with_columns(
        pl.when(on_page).then(pl.col("page")).otherwise(pl.lit("")).alias("page"),
        pl.when(pl.col("query") != "").then(pl.col("query")).otherwise(pl.col("query_of_page").fill_null("")),
        pl.when(on_page).then(pl.col(SETTLED_AT)).otherwise(pl.col(KNOWN_AT)).alias(SETTLED_AT),
        pl.when(on_page).then(pl.col(LIST_AT)).otherwise(pl.col("timestamp")).alias(LIST_AT),
    ).drop("query_of_page", "page_known_at")
    shown = rows.shown.join(pages, on="page", how="inner", maintain_order="left")
    shown = shown.filter(pl.col("shown_at") < pl.col(SETTLED_AT))
    return as_events(events, shown, every_list, [SETTLED_AT, LIST_AT])


def _pages(shown: pl.DataFrame, delay: float) -> pl.DataFrame:
    """page, LIST_AT, SETTLED_AT and page_known_at; further pages of a list have its token, and are part of it."""
    first = shown.filter(pl.col("page") != "").group_by("page", maintain_order=True)
    return first.agg(
        pl.col("shown_at").min().alias(LIST_AT), pl.col(KNOWN_AT).min().alias("page_known_at")
    ).with_columns((pl.col(LIST_AT) + delay).alias(SETTLED_AT))


def shown_pages(
    rows: LogRows,
    delay_hours: float,
    until: float,
    left_out: Sequence[LeftOut] = (),
    gains: Mapping[str, float] = EVENT_WEIGHTS,
) -> ShownPages:
    """The pages that were settled by then and for which lots are known, each item with whether it was clicked.

    Args:
        rows: of the log.
        delay_hours: in which clicks count.
        until: unix seconds.
        left_out: whose clicks and pages do not count.
        gains: by type of event; all above 0 are clicks (``TablesData.event_weights``).

    Raises:
        DataError: nothing was shown, or no lots were drawn.
    """
    rows = without_left_out(rows, left_out)
    pages = _pages(rows.shown, delay_hours * SECONDS_PER_HOUR).filter(pl.col(SETTLED_AT) <= until)
    shown = rows.shown.join(pages, on="page", how="inner", maintain_order="left")
    if shown.is_empty():
        raise DataError(
            f"{rows.log}: no page was shown in these hours whose {delay_hours:g} hours for clicks have passed; "
            "expected impressions, which gateways with --events-log write"
        )
    shown = shown.filter(pl.col("shown_at") < pl.col(SETTLED_AT)).drop_nulls(["policy_positions", "move_up"])
    items = shown.explode("item_ids", "positions", "policy_positions", "move_up", "move_down").drop_nulls("item_ids")
    if not (items["move_up"] > 0).any():
        raise DataError(
            f"{rows.log}: no lots were drawn when the pages of these hours were shown, so that their clicks do not "
            f"tell good places from good items. {HINT}"
        )
    items = items.rename({"item_ids": "item_id"}).unique(["page", "item_id"], keep="first", maintain_order=True)
    events = settled_events(rows, delay_hours)
    liked = [kind for kind, gain in gains.items() if gain > 0]
    clicked = events.filter((pl.col("page") != "") & pl.col("type").is_in(liked)).select("page", "item_id").unique()
    items = items.join(clicked.with_columns(clicked=1.0), on=["page", "item_id"], how="left", maintain_order="left")
    # Who is not known may be anybody: each of their pages is somebody's.
    person = pl.when(pl.col("user_id") != "").then("u" + pl.col("user_id")).otherwise("p" + pl.col("page"))
    items = items.sort("shown_at", "page", "positions").with_columns(
        pl.col("clicked").fill_null(0.0),
        person.rank("dense").alias("person"),
        pl.col("page").rank("dense").alias("number"),
    )
    shown_items = ShownItems(
        user=items["person"].to_numpy().astype(np.int64) - 1,
        page=items["number"].to_numpy().astype(np.int64) - 1,
        policy_position=items["policy_positions"].to_numpy().astype(np.int64),
        position=items["positions"].to_numpy().astype(np.int64),
        move_up=items["move_up"].to_numpy(),
        move_down=items["move_down"].to_numpy(),
        clicked=items["clicked"].to_numpy(),
    )
    return ShownPages(items.select("page", "user_id", "query", "shown_at", "item_id"), shown_items)
