"""What changed since the catalogue was built: items added, changed and removed while serving.

A *place* names an item for good: its row in the artifact, or a number behind the last row for an item that is new. A
*slot* is one version of an item that came later; a change of an item is a new slot, so that readers, who take no lock,
see the old version or the new one and nothing between. Neighbour lists and popularity go by places, so a changed item
keeps them; filters go by the newest version. Words and vectors go by the newest *text*: a change of a price leaves
them where they are, in the artifact or at the slot that brought the text. Of a removed item the place is marked, and
whatever a source finds is checked against that mark.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.catalogue.growing import Growing
from tritonrank_recommend.catalogue.items import Row
from tritonrank_recommend.catalogue.later_vectors import LaterVectors
from tritonrank_recommend.catalogue.lexical import LaterWords

NO_SLOT = -1
NO_VECTOR = -1


class Overlay:
    """Versions of items on top of the artifact's; written to by one thread at a time.

    Args:
        items: of the artifact.
        dimensions: of vectors.
    """

    def __init__(self, items: int, dimensions: int) -> None:
        self.items = items
        self.rows: list[Row] = []
        """by slot"""
        self.place_of_slot: Growing[np.int64] = Growing(np.int64)
        self.vector_row: Growing[np.int64] = Growing(np.int64)
        """by slot that brought a text the row in ``vectors``"""
        self.new_ids: dict[str, int] = {}
        """place by id, of items that the artifact does not have"""
        self.first_seen: Growing[np.float64] = Growing(np.float64)
        """by new item unix seconds"""
        self._slot_of_place = _filled(items, NO_SLOT, np.int32)
        self._text_of_place = _filled(items, NO_SLOT, np.int32)
        self._removed = _filled(items, False, np.bool_)
        self.removed_count = 0
        self.current_slots = 0
        """items whose newest version is a slot"""
        self.words = LaterWords()
        self.vectors = LaterVectors(dimensions)

    @property
    def places(self) -> int:
        """All that were ever given, removed ones too."""
        return self.items + len(self.first_seen)

    @property
    def slots(self) -> int:
        return len(self.place_of_slot)

    def is_removed(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self._removed.rows[places]
        return mask

    def removed(self) -> NDArray[np.bool_]:
        """[places] whether an item is no more."""
        return self._removed.rows

    def slots_of(self, places: NDArray[np.int64]) -> NDArray[np.int32]:
        """[places] the slot of the newest version; NO_SLOT where that is the artifact's."""
        slots: NDArray[np.int32] = self._slot_of_place.rows[places]
        return slots

    def texts_of(self, places: NDArray[np.int64]) -> NDArray[np.int32]:
        """[places] the slot whose text is the newest; NO_SLOT where that is the artifact's."""
        slots: NDArray[np.int32] = self._text_of_place.rows[places]
        return slots

    def with_old_text(self) -> NDArray[np.bool_]:
        """[items of the artifact] whether an item is here with the artifact's text."""
        base = slice(self.items)
        mask: NDArray[np.bool_] = ~self._removed.rows[base] & (self._text_of_place.rows[base] == NO_SLOT)
        return mask

    def has_newest_text(self, slot: int) -> bool:
        return bool(self._text_of_place.rows[self.place_of_slot.rows[slot]] == slot)

    def newest(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of those slots that have the newest text of an item that is here; NO_SLOT of others."""
        places = self.place_of_slot.rows[slots]
        return np.where((self.texts_of(places) == slots) & ~self.is_removed(places), places, NO_SLOT)

    def add_version(self, place: int, row: Row) -> int:
        """A new version of an item, whose place may be that of a removed one; its slot."""
        slot = len(self.rows)
        self.rows.append(row)
        self.vector_row.append(NO_VECTOR)
        self.place_of_slot.append(place)
        return slot

    def publish(self, place: int, slot: int, *, has_new_text: bool) -> None:
        """From here on the version is the item's, and its text where that is another one."""
        if has_new_text:
            self._text_of_place.rows[place] = slot
        self.current_slots += self._slot_of_place.rows[place] == NO_SLOT
        self._slot_of_place.rows[place] = slot
        if self._removed.rows[place]:
            self._removed.rows[place] = False
            self.removed_count -= 1

    def new_place(self, item_id: str, now: float) -> int:
        """Of an item that neither the artifact nor a change had; it counts as removed until it is published."""
        place = self.places
        self._slot_of_place.append(NO_SLOT)
        self._text_of_place.append(NO_SLOT)
        self._removed.append(True)
        self.removed_count += 1
        self.first_seen.append(now)
        self.new_ids[item_id] = place
        return place

    def remove(self, place: int) -> None:
        if not self._removed.rows[place]:
            self._removed.rows[place] = True
            self.removed_count += 1

    def set_vectors(self, slots: Sequence[int], vectors: NDArray[np.float16]) -> None:
        first = self.vectors.add(slots, vectors)
        self.vector_row.rows[np.asarray(slots, dtype=np.int64)] = np.arange(first, first + len(slots))


def _filled(count: int, value: object, dtype: type[np.generic]) -> Growing[np.generic]:
    growing: Growing[np.generic] = Growing(dtype)
    growing.extend(np.full(count, value, dtype=dtype))
    return growing
