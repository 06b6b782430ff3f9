"""Rows that say nothing true: items that come twice, events of items that are gone, of tomorrow, or written twice.

Each kind has one rule, the same for every shop, and is counted; docs/labels.md has them as a table. The rows come here
with values of their columns; what is no value has been left out before.
"""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from tritonrank.data.dropped import Dropped, Loss, ids_of
from tritonrank.data.ids import with_alike
from tritonrank.system.dates import day_of

AVAILABLE_FROM = "__available_from"
"""Column of items, Int64 unix seconds, while the tables are read; no text field is called so."""


def without_repeats(items: pl.DataFrame, name: str) -> tuple[pl.DataFrame, list[Dropped]]:
    """Each item once, in the order of their first rows, with the values of their last: exports append what changed.

    Args:
        items: item_id and further columns.
        name: of the table.

    Returns:
        The items; copies word for word and rows that a later one replaced, apart.
    """
    ids = items["item_id"]
    if not ids.is_duplicated().any():
        return items, []
    first_of_its_kind = items.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    copies = ids.filter(~first_of_its_kind)
    different = ids.filter(first_of_its_kind)
    replaced = different.filter(~different.is_last_distinct())
    newest = items.unique("item_id", keep="last")
    kept = items.select("item_id").unique(keep="first", maintain_order=True)
    return kept.join(newest, on="item_id", how="left", maintain_order="left"), [
        *ids_of(f"repeated rows of {name}", "the first of the copies is kept", copies, items.height),
        *ids_of(f"rows of {name} whose item has a later row", "the last row is kept", replaced, items.height),
    ]


COPIES, COPIES_RULE = "events that are written twice", "the first of the copies is kept"


def without_strays(
    events: pl.DataFrame, items: pl.DataFrame, items_name: str, latest: int
) -> tuple[pl.DataFrame, list[Dropped]]:
    """Events that can have happened, each once.

    Args:
        events: the columns of ``Tables.events``.
        items: the catalogue; the column AVAILABLE_FROM is looked at where there is one.
        items_name: of the items table.
        latest: the last unix second that an event may have.

    Returns:
        The events in their order; and by kind what was left out: of items that the catalogue does not have, from before
        an item existed, later than that second, copies of another event in all columns.
    """
    rows = events.height
    events, losses = possible(events, items, items_name, latest)
    events, copies = without_copies(events)
    return events, strays_of([*losses, copies], items, rows)


def possible(
    events: pl.DataFrame, items: pl.DataFrame, items_name: str, latest: int
) -> tuple[pl.DataFrame, list[Loss]]:
    """Events that can have happened, and what was lost, each kind with what it lost or none: as ``without_strays``."""
    losses = []

    def leave_out(kind: str, wrong: pl.Series) -> None:
        nonlocal events
        losses.append(Loss.of(kind, "left out", events.filter(wrong)["item_id"]))
        events = events.filter(~wrong) if wrong.any() else events

    unknown = ~events["item_id"].is_in(items["item_id"].implode())
    leave_out(f"events of items that {items_name} does not have", unknown)
    leave_out(f"events in the future (after {day_of(latest)})", events["timestamp"] > latest)
    if AVAILABLE_FROM in items.columns:
        since = events.select("item_id").join(
            items.select("item_id", AVAILABLE_FROM), on="item_id", how="left", maintain_order="left"
        )[AVAILABLE_FROM]
        leave_out("events from before their item existed", (events["timestamp"] < since).fill_null(False))
    return events, losses


def without_copies(events: pl.DataFrame) -> tuple[pl.DataFrame, Loss]:
    """Each event once: of copies the first is kept."""
    copies = copies_in(events)
    lost = Loss.of(COPIES, COPIES_RULE, events.filter(copies)["item_id"])
    return events.filter(~copies) if copies.any() else events, lost


def strays_of(losses: Sequence[Loss], items: pl.DataFrame, rows: int) -> list[Dropped]:
    """What ``possible`` and ``without_copies`` lost of ``rows`` rows; of the first kind, items of the catalogue that
    are nearly called so."""
    dropped = [one for loss in losses for one in loss.in_all(rows)]
    if losses and losses[0].count:
        examples = tuple(with_alike(pl.Series(dropped[0].examples), items["item_id"]))
        dropped[0] = replace(dropped[0], examples=examples)
    return dropped


def copies_in(events: pl.DataFrame) -> pl.Series:
    """[rows] True where an earlier row says the same in all columns.

    Rows are compared by a hash of theirs first, because of ten million only a few are alike.
    """
    alike = events.hash_rows().is_duplicated()
    if not alike.any():
        return alike
    repeats = events.filter(alike).select(~pl.struct(pl.all()).is_first_distinct()).to_series()
    return pl.select(pl.repeat(False, events.height)).to_series().scatter(alike.arg_true(), repeats)
