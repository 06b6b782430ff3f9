"""A part of a list as it is shown now: what was removed, sold out or blocked since the list was made is passed over."""

from collections.abc import Sequence
from dataclasses import dataclass

from tritonrank_recommend.catalogue.interface import Catalogue
from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.engine.pages import Entry
from tritonrank_recommend.engine.rules import Rules
from tritonrank_recommend.engine.wire import Recommended


@dataclass(frozen=True, slots=True)
class Shown:
    """Items of a page.

    Attributes:
        items: best first.
        after: place in the list behind the last one; the list's length where nothing follows.
    """

    items: list[Recommended]
    after: int


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
