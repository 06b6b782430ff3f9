"""Ids, fields and texts of the items of an artifact, out of SQLite; what was asked for lately is kept decoded."""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tritonrank_recommend.catalogue.layout import REBUILD, CatalogueError
from tritonrank_recommend.stores.interface import FieldValue

MOST_VARIABLES = 500
"""In one statement of SQLite."""
KEPT = 20_000
"""Rows, and places of ids, that are kept: all of a small catalogue, read when it is opened, and of a large one what is
popular."""
MAPPED_BYTES = 1 << 30

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Row:
    """An item as it is shown and ranked."""

    id: str
    fields: Mapping[str, FieldValue]
    text: str


class Items:
    """The table of ``items.db``; one connection per thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._rows: dict[int, Row] = {}
        self._places: dict[str, int] = {}
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode
        try:
            first = self._connection().execute(f"SELECT place, id, fields, text FROM items LIMIT {KEPT + 1}").fetchall()
            if len(first) <= KEPT:
                self._rows = {place: Row(name, self._decode(fields), text) for place, name, fields, text in first}
                self._places = {row.id: place for place, row in self._rows.items()}
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise CatalogueError(f"{path}: cannot be read ({error}); {REBUILD}") from None

    def places(self, ids: Iterable[str]) -> dict[str, int]:
        """Place by id, of those ids that are here."""
        wanted = dict.fromkeys(ids)
        known = {name: place for name in wanted if (place := self._places.get(name)) is not None}
        absent = [name for name in wanted if name not in known]
        if absent:
            found: dict[str, int] = dict(self._select("SELECT id, place FROM items WHERE id IN", absent))
            _make_room(self._places, len(found))
            self._places.update(found)
            known |= found
        return known

    def rows(self, places: Sequence[int]) -> list[Row]:
        """The items of places, all of which have to be here."""
        known = {place: row for place in places if (row := self._rows.get(place)) is not None}
        absent = [place for place in dict.fromkeys(places) if place not in known]
        if absent:
            statement = "SELECT place, id, fields, text FROM items WHERE place IN"
            found = {
                place: Row(name, self._decode(fields), text)
                for place, name, fields, text in self._select(statement, absent)
            }
            _make_room(self._rows, len(found))
            self._rows.update(found)
            known |= found
        return [known[place] for place in places]

    def ids(self) -> Iterator[str]:
        """All ids, by their places."""
        for (item_id,) in self._connection().execute("SELECT id FROM items ORDER BY place"):
            yield item_id

    def _select(self, statement: str, values: Sequence[Any]) -> Iterator[Any]:
        connection = self._connection()
        for start in range(0, len(values), MOST_VARIABLES):
            part = values[start : start + MOST_VARIABLES]
            yield from connection.execute(f"{statement} ({','.join('?' * len(part))})", part)

    def _connection(self) -> sqlite3.Connection:
        held: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if held is None:
            # Immutable: nobody writes to an artifact, so no lock is taken and no journal looked for.
            held = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            held.execute(f"PRAGMA mmap_size={MAPPED_BYTES}")
            self._local.connection = held
        return held


def _make_room(kept: dict[Key, Any], more: int) -> None:
    """Forget what was kept first, a good part at once; several threads may do so at a time."""
    if len(kept) + more > KEPT:
        for key in list(kept)[: more + KEPT // 10]:
            kept.pop(key, None)
