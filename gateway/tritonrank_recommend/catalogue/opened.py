"""A catalogue that is open: what its artifact says, and what changed since."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.item_text import render_fields

from tritonrank_recommend.catalogue import sources
from tritonrank_recommend.catalogue.columns import Columns
from tritonrank_recommend.catalogue.encoder import EncoderError, QueryEncoder, Towers
from tritonrank_recommend.catalogue.fusion import fuse
from tritonrank_recommend.catalogue.interface import Candidates, Filters, Wish
from tritonrank_recommend.catalogue.items import Items, Row
from tritonrank_recommend.catalogue.layout import (
    ENCODER,
    FIRST_SEEN,
    ITEMS,
    NEW_ORDER,
    POPULAR_ORDER,
    POPULARITY,
    CatalogueError,
    Facts,
    Files,
    Manifest,
)  # fmt: skip
from tritonrank_recommend.catalogue.lexical import Lexical
from tritonrank_recommend.catalogue.neighbours import NeighbourLists
from tritonrank_recommend.catalogue.overlay import NO_SLOT, NO_VECTOR, Overlay
from tritonrank_recommend.catalogue.sources import MissingError, Parts, View
from tritonrank_recommend.catalogue.standing import Standing
from tritonrank_recommend.catalogue.vectors import Vectors
from tritonrank_recommend.stores.interface import FieldValue, ItemChange

FEWEST_DEPTH, MOST_DEPTH = 50, 1_000
"""Of a source's list; as long as what is wanted, within these: short lists say little of what sources agree on."""
MOST_HISTORY = 200
EMBEDDED_AT_ONCE = 32
"""New texts up to so many are embedded before ``apply`` returns; more of them in a thread of their own, so many at a
time, while words and filters find the items already."""
STALE_SLOTS = 20_000
"""Versions that nobody sees any more, beyond as many as are seen, until all is written anew."""
DAY = 86_400.0

Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class _Live:
    """What readers take hold of once per request."""

    overlay: Overlay
    columns: Columns


class OpenCatalogue:
    """See ``interface.Catalogue``."""

    def __init__(self, folder: Path, facts: Facts, manifest: Manifest) -> None:
        files = Files(folder, facts, manifest)
        self.artifact = manifest.artifact
        self.facts = facts
        self._parts = _open_parts(files, facts)
        self._live = _Live(Overlay(facts.items, facts.dimensions), Columns(files, facts.columns, facts.items))
        order = None if "popular" in self._parts.broken else self._parts.popular_order
        self.standing = Standing(self._parts.items, order, lambda: self._live.overlay)
        self._writing = threading.Lock()
        self._to_embed: deque[int] = deque()
        self._embedder: threading.Thread | None = None

    def __len__(self) -> int:
        overlay = self._live.overlay
        return overlay.places - overlay.removed_count

    @property
    def broken(self) -> Mapping[str, str]:
        """Sources, and ``encoder``, whose files are missing or damaged, with the reason."""
        return self._parts.broken

    @property
    def encoder(self) -> QueryEncoder | None:
        """What embeds queries and new texts, and remembers them; None where it is missing."""
        return self._parts.encoder

    @property
    def waiting_vectors(self) -> int:
        """New texts that words find and vectors do not yet."""
        return len(self._to_embed)

    def fields(self, item_ids: Sequence[str]) -> list[Mapping[str, FieldValue] | None]:
        return [row.fields if row else None for row in self._rows_by_id(item_ids)]

    def texts(self, item_ids: Sequence[str]) -> list[str | None]:
        return [row.text if row else None for row in self._rows_by_id(item_ids)]

    def render(self, fields: Mapping[str, FieldValue]) -> str:
        return render_fields(self.facts.template, fields)

    def retrieve(self, wish: Wish) -> Candidates:
        """See ``interface.Catalogue``.

        Raises:
            FilterError (a ValueError): a filter names a field that items do not have, or asks what it cannot answer.
        """
        live = self._live
        liked = [one for one in wish.history[-MOST_HISTORY:] if one.weight > 0]
        by_id = self._places(live.overlay, {one.item_id for one in liked} | set(wish.exclude))
        known = [one for one in liked if one.item_id in by_id]
        view = self._view(
            live,
            wish.filters,
            query=wish.query.strip(),
            liked=_array([by_id[one.item_id] for one in known]),
            weights=np.array([one.weight for one in known], dtype=np.float32),
            exclude=_array([by_id[name] for name in set(wish.exclude) if name in by_id]),
            depth=_depth(wish.size),
        )
        asked = [source for source in wish.sources if source in self.facts.sources]
        return self._candidates(view, asked, wish.size, wish.now or time.time())

    def similar(self, item_id: str, size: int, filters: Filters) -> Candidates:
        """See ``interface.Catalogue``.

        Raises:
            KeyError: the item is not here.
            FilterError: as ``retrieve``.
        """
        live = self._live
        place = self._places(live.overlay, [item_id]).get(item_id)
        if place is None or live.overlay.removed()[place]:
            raise KeyError(item_id)
        own = _array([place])
        vectors, known = sources.vectors_at(self._parts, live.overlay, own)
        view = self._view(
            live,
            filters,
            query="",
            liked=own,
            weights=np.ones(1, dtype=np.float32),
            exclude=own,
            depth=_depth(size),
            wanted=vectors[0] if known[0] else None,
        )
        asked = [source for source in ("two-tower", "knn", "ease") if source in self.facts.sources]
        return self._candidates(view, asked, size, time.time())

    def apply(self, changes: Sequence[ItemChange]) -> None:
        """See ``interface.Catalogue``. Seconds for thousands of changes: not to be called from an event loop."""
        with self._writing:
            slots = self._change(changes)
            if len(slots) <= EMBEDDED_AT_ONCE and not self._to_embed:
                self._embed(self._live.overlay, slots)
                slots = []
            self._to_embed.extend(slots)
            is_stale = self._live.overlay.slots > 2 * self._live.overlay.current_slots + STALE_SLOTS
            tail = self._live.overlay.vectors.has_long_tail
            if (self._to_embed or is_stale or tail) and self._embedder is None:
                self._embedder = threading.Thread(target=self._catch_up, name="catalogue-vectors", daemon=True)
                self._embedder.start()

    def wait_for_vectors(self, seconds: float) -> None:
        """Wait until every text that ``apply`` took is embedded, for so long at the most."""
        thread = self._embedder
        if thread is not None:
            thread.join(seconds)

    def write_anew(self) -> None:
        """Forget versions of items that nobody sees any more; happens by itself when there are many."""
        with self._writing:
            self._write_anew()

    # Reading

    def _view(self, live: _Live, filters: Filters, **wanted: Any) -> View:
        live.columns.check(filters)
        mask = sources.filter_mask(live.columns, live.overlay, filters)
        return View(parts=self._parts, overlay=live.overlay, mask=mask, **wanted)

    def _candidates(self, view: View, asked: Sequence[str], size: int, now: float) -> Candidates:
        lists, scores, missing = {}, {}, {}
        for source in asked:
            try:
                lists[source], scores[source] = sources.SOURCE_FUNCTIONS[source](view)
            except MissingError as error:
                missing[source] = str(error)
            except Exception as error:  # noqa: BLE001 - one source's fault must not cost the others' answers
                missing[source] = f"{type(error).__name__}: {error}"
        places, fused, ranks = fuse(lists, self.facts.weights, size)
        shown = {name: _at(ranks[name], scores[name]) for name in lists}
        shown |= self._scores_of_all(view, places)
        rows = self._rows(view.overlay, places)
        return Candidates(
            ids=[row.id for row in rows],
            fused=fused,
            ranks=ranks,
            scores=shown,
            popularity=sources.popularity_at(view, places),
            age_days=((now - sources.first_seen_at(view, places)) / DAY).astype(np.float32),
            texts=[row.text for row in rows],
            fields=[row.fields for row in rows],
            missing=missing,
        )

    def _scores_of_all(self, view: View, places: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """Of the sources that know something of every candidate, whoever brought it, as far as they can answer."""
        asked: dict[str, Callable[[], NDArray[np.float32]]] = {"two-tower": lambda: sources.two_tower_at(view, places)}
        if len(view.liked):
            asked |= {"knn": lambda: view.knn.at(places), "ease": lambda: view.ease.at(places)}
            if "next" in self.facts.sources:
                asked["next"] = lambda: view.next.at(places)
        if view.words:
            asked["lexical"] = lambda: sources.lexical_at(view, places)
        unknown = np.full(len(places), np.nan, dtype=np.float32)
        scores = dict.fromkeys(("two-tower", "knn", "ease"), unknown)
        for source, score in asked.items():
            try:
                scores[source] = score()
            except Exception:  # noqa: BLE001 - said already where the source was asked for candidates
                scores[source] = unknown
        return scores

    def _places(self, overlay: Overlay, ids: Collection[str]) -> dict[str, int]:
        new = {name: place for name in ids if (place := overlay.new_ids.get(name)) is not None}
        return new | self._parts.items.places(name for name in ids if name not in new)

    def _rows(self, overlay: Overlay, places: NDArray[np.int64]) -> list[Row]:
        if not overlay.slots:
            return self._parts.items.rows(places.tolist())
        slots = overlay.slots_of(places).tolist()
        base = [place for place, slot in zip(places.tolist(), slots, strict=True) if slot == NO_SLOT]
        rows = iter(self._parts.items.rows(base))
        return [next(rows) if slot == NO_SLOT else overlay.rows[slot] for slot in slots]

    def _rows_by_id(self, ids: Sequence[str]) -> list[Row | None]:
        overlay = self._live.overlay
        by_id = self._places(overlay, set(ids))
        places = _array(list(by_id.values()))
        here = places[~overlay.is_removed(places)]
        rows = {row.id: row for row in self._rows(overlay, here)}
        return [rows.get(name) for name in ids]

    # Writing; all of this with the lock

    def _change(self, changes: Sequence[ItemChange]) -> list[int]:
        """Make the changes visible; returns slots whose texts are to be embedded."""
        overlay, columns, items = self._live.overlay, self._live.columns, self._parts.items
        known = items.places(change.item_id for change in changes)
        before = dict(zip(known.values(), items.rows(list(known.values())), strict=True))
        texts: list[int] = []
        for change in changes:
            place = overlay.new_ids.get(change.item_id, known.get(change.item_id))
            if change.fields is None:
                if place is not None:
                    overlay.remove(place)
                continue
            if place is None:
                place = overlay.new_place(change.item_id, change.changed or time.time())
            row = Row(change.item_id, change.fields, self.render(change.fields))
            is_new = not self._has_text(overlay, place, row.text, before.get(place))
            slot = self._add(overlay, columns, place, row, is_new)
            if is_new:
                texts.append(slot)
            overlay.publish(place, slot, has_new_text=is_new)
        return texts

    def _add(self, overlay: Overlay, columns: Columns, place: int, row: Row, has_new_text: bool) -> int:
        slot = overlay.add_version(place, row)
        columns.add(slot, row.fields)
        if has_new_text and self._parts.lexical is not None:
            overlay.words.add(slot, self._parts.lexical.weighed(row.text))
        return slot

    def _has_text(self, overlay: Overlay, place: int, text: str, base: Row | None) -> bool:
        """Whether an item has this text already, so that its words and its vector stay."""
        at = _array([place])
        if (slot := int(overlay.texts_of(at)[0])) != NO_SLOT:
            return overlay.rows[slot].text == text
        return base is not None and base.text == text

    def _embed(self, overlay: Overlay, slots: list[int]) -> None:
        if self._parts.encoder is not None and slots:
            vectors = self._parts.encoder.embed([overlay.rows[slot].text for slot in slots])
            overlay.set_vectors(slots, vectors.astype(np.float16))

    # In a thread of its own: what takes long

    def _catch_up(self) -> None:
        """Embed what waits, and keep the overlay small; ends when there is nothing to do."""
        while True:
            with self._writing:
                overlay = self._live.overlay
                slots = [self._to_embed.popleft() for _ in range(min(EMBEDDED_AT_ONCE, len(self._to_embed)))]
                if not slots and not overlay.vectors.has_long_tail:
                    if overlay.slots > 2 * overlay.current_slots + STALE_SLOTS:
                        self._write_anew()
                        continue
                    self._embedder = None
                    return
            encoder = self._parts.encoder
            newest = [slot for slot in slots if overlay.has_newest_text(slot)]
            vectors = encoder.embed([overlay.rows[slot].text for slot in newest]) if encoder else None
            with self._writing:
                if vectors is not None and newest and overlay is self._live.overlay:  # else they wait again
                    overlay.set_vectors(newest, vectors.astype(np.float16))
            overlay.vectors.seal()

    def _write_anew(self) -> None:
        """The same places without versions that nobody sees."""
        old, columns = self._live.overlay, self._live.columns.without_slots()
        fresh, waiting = Overlay(old.items, self.facts.dimensions), deque[int]()
        for item_id, place in old.new_ids.items():  # in the order of their places
            fresh.new_place(item_id, float(old.first_seen.rows[place - old.items]))
        places = np.arange(old.places)
        versions, texts = old.slots_of(places), old.texts_of(places)
        for place in np.flatnonzero(versions != NO_SLOT).tolist():
            text, has_new_text = int(texts[place]), bool(texts[place] != NO_SLOT)
            slot = self._add(fresh, columns, place, old.rows[versions[place]], has_new_text)
            row = int(old.vector_row.rows[text]) if has_new_text else NO_VECTOR
            if row != NO_VECTOR:
                fresh.set_vectors([slot], old.vectors.rows(_array([row])))
            elif has_new_text:
                waiting.append(slot)
            fresh.publish(place, slot, has_new_text=has_new_text)
        for place in np.flatnonzero(old.removed()).tolist():
            fresh.remove(place)
        self._live, self._to_embed = _Live(fresh, columns), waiting


def _open_parts(files: Files, facts: Facts) -> Parts:
    """Open what is there; a source whose files are missing or damaged does not keep the others from answering."""
    broken: dict[str, str] = {}

    def attempt(name: str, make: Callable[[], Opened]) -> Opened | None:
        try:
            return make()
        except (CatalogueError, EncoderError, OSError, ValueError, RuntimeError) as error:
            broken[name] = str(error)
            return None

    folder = files.folder / ENCODER
    lexical = facts.lexical
    nothing = np.zeros(0)
    popularity = attempt("popular", lambda: (files.array(POPULARITY), files.array(POPULAR_ORDER)))
    newness = attempt("new", lambda: (files.array(FIRST_SEEN), files.array(NEW_ORDER)))

    def open_towers() -> Towers:
        for name in files.below(ENCODER):
            files.path(name)
        return Towers.load(folder)

    towers = attempt("encoder", open_towers)
    return Parts(
        facts=facts,
        items=Items(files.path(ITEMS)),
        vectors=attempt("two-tower", lambda: Vectors(files, facts)),
        towers=towers,
        encoder=attempt("encoder", lambda: QueryEncoder.open(folder)) if towers else None,
        lexical=attempt("lexical", lambda: Lexical(files, lexical, facts.items)) if lexical else None,
        knn=attempt("knn", lambda: NeighbourLists(files, "knn")),
        ease=attempt("ease", lambda: NeighbourLists(files, "ease")),
        # Catalogues of older builds have no such lists, and do not name the source.
        next=attempt("next", lambda: NeighbourLists(files, "next")) if "next" in facts.sources else None,
        popularity=popularity[0] if popularity else nothing.astype(np.float32),
        # Popularity always answers: without its file in the order of the items.
        popular_order=popularity[1] if popularity else np.arange(facts.items, dtype=np.int32),
        first_seen=newness[0] if newness else nothing,
        new_order=newness[1] if newness else nothing.astype(np.int32),
        broken=broken,
    )


def _depth(size: int) -> int:
    return max(FEWEST_DEPTH, min(size, MOST_DEPTH))


def _array(places: Sequence[int]) -> NDArray[np.int64]:
    return np.array(places, dtype=np.int64)


def _at(ranks: NDArray[np.int32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """[candidates] the scores of those that a source brought; NaN of others.

    Args:
        ranks: [candidates] in the source's list, -1 where it is not on it.
        scores: [ranks] of the list.
    """
    return np.append(scores, np.float32(np.nan))[ranks]  # -1 is the last
