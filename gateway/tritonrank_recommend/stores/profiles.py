"""How events change what is kept of a user: the one definition, for SQLite in Python and for Valkey in Lua beside it.

Events lie in a profile by their timestamps, newest last, and only the newest are kept. Those of the same time lie by
what they say: the more of liking the later, then by type and item. So a profile does not depend on the order in which
events come to the store, nor on how they are cut into batches: whatever is read twice, late or by another consumer
gives the same bytes. Not the time of receiving: of an event that comes twice nobody knows which copy was the first.
Events that nobody received (``received_at`` 0, as of an imported table) lie before the others of their time, in the
order in which they come, which is that of the table.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from tritonrank_recommend.events import Event, weight_of
from tritonrank_recommend.stores.interface import Profile, Seen

MOST_EVENTS = 200
"""of a profile; the rankers read the newest 8 or so, retrieval some more"""
MOST_SEARCHES = 20
ID_SECONDS = 7 * 86_400
"""An event's id is known for at least this long after the event came, and for at most twice as long."""
PROFILE_DAYS = 365
"""Without an event for so long, a profile goes."""


Row = TypeVar("Row")


class Searched(msgspec.Struct, frozen=True, array_like=True):
    """A search as a profile keeps it; ``received`` as of ``Seen``."""

    timestamp: float
    query: str
    received: bool = False


class Kept(msgspec.Struct, array_like=True):
    """What is stored of a user, in MessagePack."""

    events: list[Seen] = []
    searches: list[Searched] = []
    counters: dict[str, int] = {}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Kept)


def id_number(event_id: str) -> int:
    """63 bits of an event's id, to know it again among the ids of its user."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "big") >> 1


def fold(kept: bytes | None, events: Iterable[Event], most_events: int) -> bytes:
    """What is stored after these events of one user, none of which was seen before."""
    state = _decoder.decode(kept) if kept else Kept()
    for event in events:
        state.counters[event.type] = state.counters.get(event.type, 0) + 1
        if event.type == "search":
            if event.query:
                search = Searched(event.timestamp, event.query, event.received_at > 0)
                _insert(state.searches, search, _place_of_search, MOST_SEARCHES)
        elif event.item_id:
            seen = Seen(event.item_id, event.type, event.timestamp, weight_of(event), event.received_at > 0)
            _insert(state.events, seen, _place, most_events)
    return _encoder.encode(state)


def read_profile(user_id: str, kept: bytes | None) -> Profile:
    """The profile as the rest sees it."""
    if not kept:
        return Profile(user_id)
    state = _decoder.decode(kept)
    return Profile(user_id, tuple(state.events), tuple(one.query for one in state.searches), state.counters)


def export(user_id: str, kept: bytes | None, waiting: Sequence[Event], pages: Mapping[str, bytes]) -> dict[str, Any]:
    """Everything that is stored of a user, as JSON can hold it.

    Args:
        user_id: who.
        kept: as stored.
        waiting: the user's events in the outbox.
        pages: what was put under the user's id.
    """
    state = _decoder.decode(kept) if kept else Kept()
    return {
        "user_id": user_id,
        "events": [{name: getattr(seen, name) for name in Seen.__struct_fields__} for seen in state.events],
        "searches": [{"query": one.query, "timestamp": one.timestamp} for one in state.searches],
        "counters": state.counters,
        "waiting": msgspec.to_builtins(waiting),
        "pages": {key: _as_text(value) for key, value in pages.items()},
    }


def _as_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def _place(seen: Seen) -> tuple[float, bool, float, str, str]:
    if not seen.received:
        return seen.timestamp, False, 0.0, "", ""
    return seen.timestamp, True, seen.weight, seen.type, seen.item_id


def _place_of_search(search: Searched) -> tuple[float, bool, str]:
    return search.timestamp, search.received, search.query if search.received else ""


def _insert(rows: list[Row], row: Row, key: Callable[[Row], Any], most: int) -> None:
    """Put a row behind those of its place, and drop the oldest where there are too many."""
    rows.insert(bisect_right(rows, key(row), key=key), row)
    del rows[: max(0, len(rows) - most)]
