"""Rows of a table as requests: what `tritonrank rank FILE` and Spark score, and how.

A row may have any number of candidates, and nobody waits for it. So one with more than the artifact takes at once is
asked for in pieces, and one that its deadline stops in smaller ones; the pieces' rankings are one, because the score of
a candidate does not depend on the others.
"""

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._client import RankClient
from ._errors import DeadlineExceeded, InvalidRequest
from ._results import Detail, Item, ItemId, RankedItem, RankResult

WANTED: tuple[Detail, ...] = ("unscored", "fields")
NO_TEXT = "no text"
"""Why an item has no score, where an artifact of an older release does not say it."""


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One request of a table."""

    items: Sequence[Item]
    query: str = ""
    history: Sequence[Item] = ()
    item_ids: Sequence[ItemId] | None = None


@dataclass(frozen=True, slots=True)
class RankedRow:
    """Its answer, best first.

    Attributes:
        places: the items.
        unscored: position of an item that has no score -> why.
        missing_fields: of the template that items or history lack.
        unknown_fields: that the template does not name.
    """

    places: tuple[RankedItem, ...]
    unscored: Mapping[int, str]
    missing_fields: frozenset[str] = frozenset()
    unknown_fields: frozenset[str] = frozenset()


class RowRanker:
    """Ranks rows, one after the other.

    Args:
        client: what is asked; of a folder best opened with one thread, in as many processes as there are cores.
        top_k: how many of a row to give; 0 is all.
        strict: refuse rows with items that cannot be scored.
    """

    def __init__(self, client: RankClient, top_k: int = 0, strict: bool = False) -> None:
        info = client.model_info()
        outputs = {output.name for output in info.outputs}
        self._client = client
        self._top_k = top_k
        self._strict = strict
        self._want = [name for name in WANTED if name in outputs]
        self._piece = int(info.parameters.get("max_candidates", 1_000))

    def rank(self, row: AskedRow) -> RankedRow:
        """The ranking of a row.

        Raises:
            InvalidRequest: the row is wrong; the message begins with the field.
            RankError: it could not be ranked.
        """
        rankings: list[list[RankedItem]] = []
        unscored: dict[int, str] = {}
        missing: set[str] = set()
        unknown: set[str] = set()
        begin = 0
        while begin < len(row.items):
            end = begin + self._piece
            try:
                result = self._ask(row, begin, end)
            except DeadlineExceeded:
                size = min(self._piece, len(row.items) - begin)
                if size == 1:
                    raise
                self._piece = size // 2  # those that come later are as slow
                continue
            except InvalidRequest as error:
                raise _moved(error, begin) from error
            rankings.append([_at(place, begin) for place in result.ranking])
            told = result.unscored
            if told is None:
                told = {place.index: NO_TEXT for place in result.ranking if not place.has_text}
            unscored |= {begin + place: reason for place, reason in told.items()}
            missing |= set(result.missing_fields or ())
            unknown |= set(result.unknown_fields or ())
            begin = end
        places = tuple(_first(_different(heapq.merge(*rankings, key=lambda place: -place.score)), self._top_k))
        return RankedRow(places, unscored, frozenset(missing), frozenset(unknown))

    def _ask(self, row: AskedRow, begin: int, end: int) -> RankResult:
        return self._client.rank(
            query=row.query,
            history=row.history,
            items=row.items[begin:end],
            item_ids=None if row.item_ids is None else row.item_ids[begin:end],
            top_k=self._top_k,
            strict=self._strict,
            want=self._want,
        )


def asked_row(cells: Mapping[str, Any]) -> AskedRow:
    """A row of a table as a request.

    Args:
        cells: `items`, and where there are any `query`, `history` and `item_ids`. A list may be a Python list, a numpy
            array, or JSON in a text; an element is a text or a mapping of fields.

    Raises:
        InvalidRequest: a cell is no list, or ids and items do not match; the message begins with the column's name.
    """
    items = _list("items", cells.get("items"))
    if items is None:
        raise InvalidRequest("items: empty cell; expected a list of texts or of fields")
    query = cells.get("query")
    return AskedRow(
        [_item(one) for one in items],
        "" if _is_nothing(query) else str(query),
        [_item(one) for one in _list("history", cells.get("history")) or ()],
        _ids(cells.get("item_ids"), len(items)),
    )


def _ids(cell: Any, items: int) -> list[ItemId] | None:
    ids = _list("item_ids", cell)
    if ids is None:
        return None
    if len(ids) != items:
        raise InvalidRequest(f"item_ids: {len(ids)} for {items} items; expected one each")
    for place, item_id in enumerate(ids):
        if _is_nothing(item_id):
            raise InvalidRequest(f"item_ids[{place}]: empty; expected an id")
    return [int(item_id) if isinstance(item_id, float) and item_id.is_integer() else item_id for item_id in ids]


def _list(column: str, cell: Any) -> list[Any] | None:
    """The elements of a cell; None where it is empty."""
    if isinstance(cell, str):
        if not cell.strip():
            return None
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{column}: expected a list, or JSON of one ({error})") from None
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if not isinstance(cell, list | tuple):
        raise InvalidRequest(f"{column}: expected a list, got {type(cell).__name__}")
    return list(cell)


def _item(element: Any) -> Item:
    if isinstance(element, Mapping):
        return {str(name): _value(value) for name, value in element.items()}
    return "" if _is_nothing(element) else str(element)


def _value(value: Any) -> Any:
    """A field as JSON can hold it: what a data frame writes for nothing is nothing, and times are their text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_value(one) for one in value]
    if _is_nothing(value):
        return None
    return value if isinstance(value, str | int | float | Mapping) else str(value)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"


def _at(place: RankedItem, begin: int) -> RankedItem:
    if not begin:
        return place
    return RankedItem(place.index + begin, place.score, place.item, place.item_id, place.has_text)


def _moved(error: InvalidRequest, begin: int) -> InvalidRequest:
    """The error with the row's positions; those of a piece say nothing to whoever looks at the row."""
    return InvalidRequest(f"{error} (counted from items[{begin}] on)") if begin else error


def _different(places: Iterable[RankedItem]) -> Iterator[RankedItem]:
    """Of items with the same id the best one, over all pieces."""
    seen = set()
    for place in places:
        if place.item_id is not None:
            if str(place.item_id) in seen:
                continue
            seen.add(str(place.item_id))
        yield place


def _first(places: Iterator[RankedItem], most: int) -> Iterator[RankedItem]:
    for number, place in enumerate(places):
        if most and number >= most:
            return
        yield place
