"""What brings candidates: vectors, words, items liked together, EASE, what comes next, popularity, newness.

Each gives a bounded list.

All of them look at the same ``View``: what there was when the request came, what its filters admit, and what it wants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.catalogue.columns import Columns
from tritonrank_recommend.catalogue.encoder import QueryEncoder, Towers
from tritonrank_recommend.catalogue.items import Items
from tritonrank_recommend.catalogue.layout import Facts
from tritonrank_recommend.catalogue.lexical import Lexical, Postings, best, scores_at
from tritonrank_recommend.catalogue.neighbours import NeighbourLists, Sums
from tritonrank_recommend.catalogue.overlay import NO_SLOT, NO_VECTOR, Overlay
from tritonrank_recommend.catalogue.vectors import EXACT_ITEMS, NOTHING, Nearest, Vectors, dots, exact

FIRST_LOOK = 1_000
"""Items of an order that are looked at first, when a filter may drop most of them."""
OVERSAMPLED = 2
"""Of texts that came later some are no more the newest."""
Places = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parts:
    """What was opened of an artifact; None is a file that is missing or damaged, ``broken`` says why."""

    facts: Facts
    items: Items
    vectors: Vectors | None
    towers: Towers | None
    encoder: QueryEncoder | None
    lexical: Lexical | None
    knn: NeighbourLists | None
    ease: NeighbourLists | None
    next: NeighbourLists | None
    popularity: NDArray[np.float32]
    popular_order: NDArray[np.int32]
    first_seen: NDArray[np.float64]
    new_order: NDArray[np.int32]
    broken: Mapping[str, str]
    """reasons by source, and by ``encoder``"""


class MissingError(Exception):
    """A source cannot answer."""


@dataclass(frozen=True)
class View:
    """One request, and the catalogue as it was then.

    Attributes:
        liked: places of the history, newest last.
        weights: [liked] above 0.
        mask: [places] what filters admit; None: there are none.
        exclude: places.
        depth: of each source's list.
        wanted: a vector to be near to, in place of that of history and query.
    """

    parts: Parts
    overlay: Overlay
    query: str
    liked: Places
    weights: Scores
    mask: NDArray[np.bool_] | None
    exclude: Places
    depth: int
    wanted: Scores | None = None

    @cached_property
    def _may_come(self) -> NDArray[np.bool_]:
        """[places + 1] see ``admitted``; the last stands for what came after this was looked at."""
        removed = self.overlay.removed()
        fine = np.zeros(len(removed) + 1, dtype=bool)
        np.logical_not(removed, out=fine[:-1])
        if self.mask is not None:
            known = min(len(self.mask), len(fine))
            fine[:known] &= self.mask[:known]
            fine[known:] = False
        fine[self.exclude] = False
        return fine

    def admitted(self, places: Places) -> NDArray[np.bool_]:
        """Whether items may come back: not removed, not excluded, and the filters admit them.

        What came since the first source asked waits for the next request.
        """
        last = len(self._may_come) - 1
        fine: NDArray[np.bool_] = self._may_come[np.minimum(places, last)]
        return fine

    def first(self, places: Places, scores: Scores) -> Nearest:
        """The best of those that may come back."""
        fine = self.admitted(places)
        places, scores = places[fine], scores[fine]
        if len(places) > 4 * self.depth:
            kept = np.argpartition(-scores, self.depth)[: self.depth]
            places, scores = places[kept], scores[kept]
        order = np.lexsort((places, -scores))[: self.depth]
        return places[order], scores[order]

    @cached_property
    def few(self) -> Places | None:
        """The places that filters admit, where those are so few that all can be looked at."""
        if self.mask is None or np.count_nonzero(self.mask) > EXACT_ITEMS:
            return None
        return np.flatnonzero(self.mask)

    @cached_property
    def user(self) -> Scores | None:
        """The vector of what is wanted; None where nothing is known."""
        if self.wanted is not None:
            return self.wanted
        towers = self.parts.towers
        if towers is None:
            raise MissingError(self.parts.broken.get("encoder", "no encoder"))
        vectors, known = vectors_at(self.parts, self.overlay, self.liked)
        query = None
        if self.query:
            if self.parts.encoder is None:
                raise MissingError(self.parts.broken.get("encoder", "no encoder"))
            query = self.parts.encoder.embed([self.query])[0]
        return towers.mix(query, vectors[known], self.weights[known].tolist())

    @cached_property
    def words(self) -> list[str]:
        return self.parts.lexical.words(self.query) if self.parts.lexical and self.query else []

    @cached_property
    def postings(self) -> list[Postings]:
        return self.parts.lexical.postings(self.words) if self.parts.lexical else []

    @cached_property
    def knn(self) -> Sums:
        newest = self.parts.facts.neighbour_history
        return _sums(self, self.parts.knn, "knn", newest)

    @cached_property
    def ease(self) -> Sums:
        return _sums(self, self.parts.ease, "ease", len(self.liked))

    @cached_property
    def next(self) -> Sums:
        return _sums(self, self.parts.next, "next", self.parts.facts.next_history)


def filter_mask(columns: Columns, overlay: Overlay, filters: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """[places] whether the newest version of an item passes; None where nothing is asked."""
    if not filters:
        return None
    base = columns.base_mask(filters)
    slots = overlay.slots
    if not slots:
        return base
    mask = np.zeros(overlay.places, dtype=bool)
    mask[: len(base)] = base
    places = overlay.place_of_slot.rows[:slots]
    newest = overlay.slots_of(places) == np.arange(slots)
    mask[places[newest]] = columns.later_mask(filters, slots)[newest]
    return mask


def vectors_at(parts: Parts, overlay: Overlay, places: Places) -> tuple[Scores, NDArray[np.bool_]]:
    """[places, dimensions] vectors of the newest versions, and [places] whether there is one."""
    vectors = np.zeros((len(places), parts.facts.dimensions), dtype=np.float32)
    slots = overlay.texts_of(places)
    of_base = slots == NO_SLOT
    known = np.zeros(len(places), dtype=bool)
    if parts.vectors is not None:
        base = of_base & (places < overlay.items)
        vectors[base] = parts.vectors.at(places[base])
        known |= base
    rows = np.where(of_base, NO_VECTOR, overlay.vector_row.rows[np.maximum(slots, 0)] if overlay.slots else NO_VECTOR)
    later = rows != NO_VECTOR
    if later.any():
        vectors[later] = overlay.vectors.rows(rows[later])
        known |= later
    return vectors, known


def two_tower(view: View) -> Nearest:
    overlay, places, scores = view.overlay, [], []
    if view.parts.vectors is None and not len(overlay.vectors):
        raise MissingError(view.parts.broken.get("two-tower", "no vectors"))
    user = view.user
    if user is None:
        return NOTHING
    if view.parts.vectors is not None:
        allowed = _allowed_base(view)
        found, values = view.parts.vectors.nearest(user, view.depth + len(view.exclude), allowed)
        places.append(found)
        scores.append(values)
    if len(overlay.vectors):
        slots, values = _nearest_later(view, user)
        found = overlay.newest(slots)
        places.append(found[found != NO_SLOT])
        scores.append(values[found != NO_SLOT])
    return view.first(np.concatenate(places), np.concatenate(scores))


def lexical(view: View) -> Nearest:
    if view.parts.lexical is None:
        raise MissingError(view.parts.broken.get("lexical", "no lexical index"))
    places, scores = best(view.postings)
    if view.overlay.slots:
        unchanged = view.overlay.texts_of(places) == NO_SLOT
        slots, values = best(view.overlay.words.postings(view.words))
        later = view.overlay.newest(slots)
        places = np.concatenate([places[unchanged], later[later != NO_SLOT]])
        scores = np.concatenate([scores[unchanged], values[later != NO_SLOT]])
    return view.first(places, scores)


def knn(view: View) -> Nearest:
    return _positive(view, view.knn)


def ease(view: View) -> Nearest:
    return _positive(view, view.ease)


def next_(view: View) -> Nearest:
    return _positive(view, view.next)


def popular(view: View) -> Nearest:
    if view.few is not None:
        return view.first(view.few, popularity_at(view, view.few))
    places = _walk(view, view.parts.popular_order)
    return places, popularity_at(view, places)


def new(view: View) -> Nearest:
    if view.few is not None:
        seen = first_seen_at(view, view.few)
        known = ~np.isnan(seen)
        return view.first(view.few[known], seen[known].astype(np.float32))
    count = view.overlay.places - view.overlay.items
    later = np.arange(view.overlay.items + count - 1, view.overlay.items - 1, -1, dtype=np.int64)
    later = later[view.admitted(later)][: view.depth] if count else later
    places = np.concatenate([later, _walk(view, view.parts.new_order)])[: view.depth]
    return places, first_seen_at(view, places).astype(np.float32)


SOURCE_FUNCTIONS: dict[str, Callable[[View], Nearest]] = {
    "two-tower": two_tower, "lexical": lexical, "knn": knn, "ease": ease, "popular": popular, "new": new, "next": next_
}  # fmt: skip


def two_tower_at(view: View, places: Places) -> Scores:
    """[places] cosines; NaN of an item without a vector yet."""
    vectors, known = vectors_at(view.parts, view.overlay, places)
    user = view.user
    if user is None:
        return np.full(len(places), np.nan, dtype=np.float32)
    return np.where(known, dots(vectors, user), np.float32(np.nan))


def lexical_at(view: View, places: Places) -> Scores:
    """[places] BM25; 0 of an item that has none of the words."""
    slots = view.overlay.texts_of(places)
    of_base = slots == NO_SLOT
    scores = np.where(of_base, scores_at(view.postings, np.where(of_base, places, NO_SLOT)), np.float32(0))
    if view.overlay.slots and not of_base.all():
        later = scores_at(view.overlay.words.postings(view.words), slots.astype(np.int64))
        scores = np.where(of_base, scores, later)
    return scores.astype(np.float32)


def popularity_at(view: View, places: Places) -> Scores:
    """[places] decayed popularity; 0 of new items."""
    held = view.parts.popularity
    if not len(held):
        return np.zeros(len(places), dtype=np.float32)
    old = places < len(held)
    return np.where(old, held[np.where(old, places, 0)], np.float32(0)).astype(np.float32)


def first_seen_at(view: View, places: Places) -> NDArray[np.float64]:
    """[places] unix seconds; NaN where that is not known."""
    seen = np.full(len(places), np.nan)
    old = places < view.overlay.items
    if len(view.parts.first_seen):
        seen[old] = view.parts.first_seen[places[old]]
    seen[~old] = view.overlay.first_seen.rows[places[~old] - view.overlay.items]
    return seen


def _sums(view: View, lists: NeighbourLists | None, name: str, newest: int) -> Sums:
    if lists is None:
        raise MissingError(view.parts.broken.get(name, "no neighbour lists"))
    liked, weights = view.liked[-newest:], view.weights[-newest:]
    if power := view.parts.facts.recency.get(name, 0.0):
        weights = weights * np.arange(len(weights), 0, -1, dtype=np.float32) ** np.float32(-power)
    return lists.sums(liked, weights)


def _positive(view: View, sums: Sums) -> Nearest:
    good = sums.scores > 0
    return view.first(sums.places[good], sums.scores[good])


def _allowed_base(view: View) -> NDArray[np.bool_] | None:
    """[items of the artifact] whether its vector is the newest and may be found; None: all are."""
    overlay = view.overlay
    if not overlay.slots and not overlay.removed_count:
        return view.mask
    allowed = overlay.with_old_text()
    if view.mask is not None:
        allowed &= view.mask[: overlay.items]
    return allowed


def _nearest_later(view: View, user: Scores) -> Nearest:
    overlay = view.overlay
    asked = OVERSAMPLED * (view.depth + len(view.exclude))
    if view.mask is None:
        return overlay.vectors.nearest(user, asked)
    slots = overlay.slots
    places = overlay.place_of_slot.rows[:slots]
    rows = overlay.vector_row.rows[:slots]
    known = np.flatnonzero((rows != NO_VECTOR) & (places < len(view.mask)))
    matching = known[view.mask[places[known]]]
    if len(matching) > EXACT_ITEMS:
        return overlay.vectors.nearest(user, asked)
    found, scores = exact(overlay.vectors.rows(rows[matching]), user, asked)
    return matching[found], scores


def _walk(view: View, order: NDArray[np.int32]) -> Places:
    """The first of an order that may come back."""
    found: list[Places] = []
    total, begin, look = 0, 0, max(FIRST_LOOK, 2 * view.depth)
    while begin < len(order) and total < view.depth:
        part = order[begin : begin + look].astype(np.int64)
        part = part[view.admitted(part)]
        found.append(part)
        total += len(part)
        begin, look = begin + look, 4 * look
    places: Places = np.concatenate([np.zeros(0, dtype=np.int64), *found])
    return places[: view.depth]
