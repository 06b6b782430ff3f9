"""A part of a list as it is shown now: what was removed, sold out or blocked since the list was made is passed over."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tritonrank_recommend.catalogue.interface import Catalogue
from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.engine.explain import ShownItem
from tritonrank_recommend.engine.pages import Entry, PinnedList
from tritonrank_recommend.engine.rules import Rules
from tritonrank_recommend.engine.wire import Recommended
from tritonrank_recommend.log.impression import Impression

LOG = logging.getLogger("tritonrank_recommend")


@dataclass(frozen=True, slots=True)
class Shown:
    """Items of a page.

    Attributes:
        items: best first.
        after: place in the list behind the last one; the list's length where nothing follows.
        problem: why the catalogue could not be asked; "" where it was.
    """

    items: list[Recommended]
    after: int
    problem: str = ""


def shown_from(entries: Sequence[Entry], offset: int, size: int, catalogue: Catalogue, rules: Rules) -> Shown:
    """The next items of a list; blocks for a moment where fields have to be read.

    Args:
        entries: the whole list.
        offset: place of the first one.
        size: items at most.
        catalogue: that knows the fields.
        rules: whose filters and blocks hold now.
    """
    items: list[Recommended] = []
    place = offset
    while place < len(entries) and len(items) < size:
        part = entries[place : place + size - len(items)]
        for entry, fields in zip(part, catalogue.fields([entry.item_id for entry in part]), strict=True):
            may_be_shown = fields is not None and entry.item_id not in rules.block.item_ids
            if may_be_shown and fields is not None and meets(fields, rules.filters):
                items.append(
                    Recommended(
                        entry.item_id,
                        place,
                        entry.score,
                        dict(fields),
                        entry.source_ranks,
                        entry.logit,
                    )
                )
            place += 1
    return Shown(items, place)


def shown_somehow(
    entries: Sequence[Entry], offset: int, size: int, catalogue: Catalogue | None, remembered: Catalogue, rules: Rules
) -> Shown:
    """The next items of a list; where the catalogue fails, with the fields that are remembered, or without any."""
    if catalogue is not None:
        try:
            return shown_from(entries, offset, size, catalogue, rules)
        # Whatever became of its files: the list was made and is shown.
        except Exception:
            LOG.exception("the catalogue %s failed", catalogue.artifact)
    part = list(enumerate(entries))[offset : offset + size]
    known = remembered.fields([entry.item_id for _, entry in part])
    items = [
        Recommended(entry.item_id, place, entry.score, dict(fields or {}), entry.source_ranks, entry.logit)
        for (place, entry), fields in zip(part, known, strict=True)
        if entry.item_id not in rules.block.item_ids and (fields is None or meets(fields, rules.filters))
    ]
    return Shown(items, offset + len(part), "damaged")


def shown_to_explain(catalogue: Catalogue, items: Sequence[Recommended]) -> list[ShownItem]:
    """The same items with the texts that the ranker reads; one that has none any more is rendered anew."""
    texts = catalogue.texts([item.item_id for item in items])
    return [
        ShownItem(item.item_id, text if text is not None else catalogue.render(item.fields), item.fields)
        for item, text in zip(items, texts, strict=True)
    ]


def impression_of(token: str, pinned: PinnedList, items: Sequence[Recommended], now: float) -> Impression:
    """What the log is told of a page: what was passed over says as much as what was chosen.

    Args:
        token: of the list.
        pinned: the list.
        items: of it that are shown.
        now: unix seconds.
    """
    entries = [pinned.entries[one.position] for one in items]
    return Impression(
        page=token,
        user_id=pinned.user_id,
        query=pinned.query,
        shown_at=now,
        artifact=pinned.artifacts.get("ranker", ""),
        item_ids=tuple(one.item_id for one in items),
        positions=tuple(one.position for one in items),
        policy_positions=tuple(
            one.position if entry.policy_position < 0 else entry.policy_position
            for one, entry in zip(items, entries, strict=True)
        ),
        move_up=tuple(entry.move_up for entry in entries),
        move_down=tuple(entry.move_down for entry in entries),
    )
