"""The popular items, kept aside: what is shown while the catalogue cannot be read or is too slow.

They are refreshed from the catalogue while it works, held in this process, and laid into the store, so that a gateway
that starts beside a damaged catalogue has something to show as well.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from tritonrank_recommend.catalogue.interface import SOURCES, Candidates, Catalogue, Filters, Wish
from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.stores.interface import FieldValue, ItemChange

KEY = "remembered-popular"
KEEP_SECONDS = 30 * 86_400.0
MOST_REMEMBERED = 200
ARTIFACT = "remembered"


class RememberedItem(msgspec.Struct, frozen=True, array_like=True):
    """An item with what is needed to rank and to show it."""

    item_id: str
    text: str
    fields: dict[str, FieldValue]
    popularity: float


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[RememberedItem])


class RememberedCatalogue:
    """A ``Catalogue`` of the most popular items alone, best first."""

    artifact = ARTIFACT
    standing = None

    def __init__(self, items: Iterable[RememberedItem] = ()) -> None:
        self._items = {item.item_id: item for item in items}

    @classmethod
    def of(cls, catalogue: Catalogue, filters: Filters, now: float) -> "RememberedCatalogue":
        """The popular items of a catalogue that works."""
        found = catalogue.retrieve(Wish(filters=filters, size=MOST_REMEMBERED, sources=("popular",), now=now))
        return cls(
            RememberedItem(item_id, text, dict(of), float(popularity))
            for item_id, text, of, popularity in zip(
                found.ids, found.texts, found.fields, found.popularity, strict=True
            )
        )

    @classmethod
    def read(cls, value: bytes) -> "RememberedCatalogue":
        """What ``to_bytes`` gave.

        Raises:
            msgspec.DecodeError: it did not.
        """
        return cls(_decoder.decode(value))

    def to_bytes(self) -> bytes:
        """For the store."""
        return _encoder.encode(list(self._items.values()))

    def __len__(self) -> int:
        return len(self._items)

    def fields(self, item_ids: Sequence[str]) -> list[Mapping[str, FieldValue] | None]:
        return [None if (item := self._items.get(one)) is None else item.fields for one in item_ids]

    def texts(self, item_ids: Sequence[str]) -> list[str | None]:
        return [None if (item := self._items.get(one)) is None else item.text for one in item_ids]

    def render(self, fields: Mapping[str, FieldValue]) -> str:
        return " ".join(str(value) for value in fields.values() if isinstance(value, str))

    def retrieve(self, wish: Wish) -> Candidates:
        excluded = set(wish.exclude)
        fitting = [
            item
            for item in list(self._items.values())
            if item.item_id not in excluded and meets(item.fields, wish.filters)
        ][: wish.size]
        places = np.arange(len(fitting), dtype=np.int32)
        return Candidates(
            ids=[item.item_id for item in fitting],
            fused=(1 / (60 + places)).astype(np.float32),
            ranks={name: places if name == "popular" else np.full_like(places, -1) for name in SOURCES},
            scores={name: np.full(len(fitting), np.nan, np.float32) for name in SOURCES},
            popularity=np.array([item.popularity for item in fitting], np.float32),
            age_days=np.full(len(fitting), np.nan, np.float32),
            texts=[item.text for item in fitting],
            fields=[item.fields for item in fitting],
        )

    def similar(self, item_id: str, size: int, filters: Filters) -> Candidates:
        raise KeyError(item_id)

    def apply(self, changes: Sequence[ItemChange]) -> None:
        for change in changes:
            known = self._items.get(change.item_id)
            if known is None:
                continue
            if change.fields is None:
                del self._items[change.item_id]
            else:
                self._items[change.item_id] = RememberedItem(known.item_id, known.text, change.fields, known.popularity)
