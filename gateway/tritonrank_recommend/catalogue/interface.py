"""What the rest needs of a catalogue."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.stores.interface import FieldValue, ItemChange

if TYPE_CHECKING:  # it brings usearch, which only who opens a catalogue needs
    from tritonrank_recommend.catalogue.standing import Standing

Source = Literal["two-tower", "lexical", "knn", "ease", "popular", "new", "next"]
SOURCES: tuple[Source, ...] = ("two-tower", "lexical", "knn", "ease", "popular", "new", "next")

Filters = Mapping[str, Any]
"""By field: a value, a list of values of which one fits, or bounds ``{"gt": .., "gte": .., "lt": .., "lte": ..}``."""


@dataclass(frozen=True, slots=True)
class Liked:
    """An item of the history, as far as retrieval is concerned."""

    item_id: str
    weight: float = 1.0
    """from -1 to 1; what is not above 0 is no reason to find similar items"""
    timestamp: float = 0.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What to retrieve.

    Attributes:
        query: may be empty.
        history: newest last.
        filters: on fields of items.
        exclude: ids that must not come back.
        size: of the fused list.
        sources: which to ask.
        now: unix seconds.
    """

    query: str = ""
    history: Sequence[Liked] = ()
    filters: Filters = field(default_factory=dict)
    exclude: Collection[str] = ()
    size: int = 200
    sources: Sequence[Source] = SOURCES
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidates:
    """What was retrieved, best first by the fused score.

    Attributes:
        ids: of the items.
        fused: reciprocal rank fusion, [n] float32, descending.
        ranks: by source its rank of each item from 0, [n] int32; -1 where that source did not bring it.
        scores: by source its score of each item, [n] float32; NaN where the source has none. EASE, kNN, next and
            two-tower score every candidate, whoever brought it, because the blend wants to know.
        popularity: decayed popularity, [n] float32.
        age_days: since the item was first seen, [n] float32; NaN where that is not known.
        texts, fields: of the items, as they were when these were found; see ``Catalogue``.
        missing: sources that were asked and could not answer, with the reason.
    """

    ids: list[str]
    fused: NDArray[np.float32]
    ranks: Mapping[str, NDArray[np.int32]]
    scores: Mapping[str, NDArray[np.float32]]
    popularity: NDArray[np.float32]
    age_days: NDArray[np.float32]
    texts: list[str]
    fields: list[Mapping[str, FieldValue]]
    missing: Mapping[str, str] = field(default_factory=dict)


class Catalogue(Protocol):
    """Thread-safe for readers while one thread calls ``apply``."""

    artifact: str
    """id of the artifact, for logs and answers"""

    @property
    def standing(self) -> "Standing | None":
        """Of its items by popularity; None where it has too few items to say."""

    def __len__(self) -> int:
        """Items that can be found now."""

    def fields(self, item_ids: Sequence[str]) -> list[Mapping[str, FieldValue] | None]:
        """Of each item its fields; None for one that is not here (any more)."""

    def texts(self, item_ids: Sequence[str]) -> list[str | None]:
        """Of each item its text by the ranker's template, as ``rank`` takes it."""

    def render(self, fields: Mapping[str, FieldValue]) -> str:
        """The text of an item with these fields, as ``texts`` gives it."""

    def retrieve(self, wish: Wish) -> Candidates:
        """Candidates of all sources, fused. Never raises because of a single source (see ``Candidates.missing``)."""

    def similar(self, item_id: str, size: int, filters: Filters) -> Candidates:
        """Items that are like one; KeyError where it is not here."""

    def apply(self, changes: Sequence[ItemChange]) -> None:
        """Add, change and remove items; what follows sees it."""
