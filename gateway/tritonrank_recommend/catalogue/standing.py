"""How the items of a catalogue stand among each other by popularity, for whoever watches what is shown."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # they bring usearch, which a gateway without a catalogue has not
    from tritonrank_recommend.catalogue.items import Items
    from tritonrank_recommend.catalogue.overlay import Overlay

TENTHS = 10
ADDED = 0
"""In place of a tenth: the item came after the catalogue was built, and nobody knows yet how popular it is."""
UNKNOWN = -1
"""In place of a tenth: the item is not here (any more), or the catalogue lacks the file of popularity."""
NOWHERE = -1
"""In place of the place of an item that is not known."""


class Standing:
    """Of an opened catalogue, with what changed since it was built.

    Args:
        items: of the artifact.
        popular_order: [items] places, the most popular first; None where the file is missing or damaged.
        overlay: gives what changed, as it is now.
    """

    def __init__(
        self, items: "Items", popular_order: NDArray[np.int32] | None, overlay: "Callable[[], Overlay]"
    ) -> None:
        self._items, self._popular_order, self._overlay = items, popular_order, overlay

    @property
    def added_count(self) -> int:
        """Items that came after the build, those among them that went again too; rises by what comes."""
        return len(self._overlay().new_ids)

    def tenths(self, item_ids: Sequence[str]) -> NDArray[np.int8]:
        """[item_ids] by popularity, from 1, the most popular tenth of the artifact's items, to 10; ADDED, UNKNOWN.

        Items that are equally popular, such as all that nobody bought yet, stand in the order of the table.
        """
        overlay = self._overlay()
        places = self._places(overlay, item_ids)
        found = np.full(len(places), UNKNOWN, dtype=np.int8)
        found[places >= overlay.items] = ADDED
        if self._popular_order is not None:
            is_built = (places >= 0) & (places < overlay.items)
            found[is_built] = self._of_place[places[is_built]]
        found[~self._here(overlay, places)] = UNKNOWN
        return found

    def here(self, item_ids: Sequence[str]) -> NDArray[np.bool_]:
        """[item_ids] whether an item can be found now."""
        overlay = self._overlay()
        return self._here(overlay, self._places(overlay, item_ids))

    def added(self) -> dict[str, float]:
        """Items that the artifact does not have, and when each came (unix seconds); without those that went again."""
        overlay = self._overlay()
        # The writer may add more meanwhile: whoever asks again gets them.
        return {
            item_id: float(overlay.first_seen.rows[place - overlay.items])
            for item_id, place in list(overlay.new_ids.items())
            if not overlay.removed()[place]
        }

    def ids(self) -> Iterator[str]:
        """All items of the artifact, in the order of their places."""
        return self._items.ids()

    def _places(self, overlay: "Overlay", item_ids: Sequence[str]) -> NDArray[np.int64]:
        known, new = self._items.places(item_ids), overlay.new_ids
        return np.array([new.get(one, known.get(one, NOWHERE)) for one in item_ids], dtype=np.int64)

    def _here(self, overlay: "Overlay", places: NDArray[np.int64]) -> NDArray[np.bool_]:
        is_known: NDArray[np.bool_] = places != NOWHERE
        is_known[is_known] = ~overlay.is_removed(places[is_known])
        return is_known

    @cached_property
    def _of_place(self) -> NDArray[np.int8]:
        if self._popular_order is None:
            return np.zeros(0, dtype=np.int8)
        items = len(self._popular_order)
        tenths = np.empty(items, dtype=np.int8)
        tenths[self._popular_order] = np.arange(items) * TENTHS // items + 1
        return tenths
