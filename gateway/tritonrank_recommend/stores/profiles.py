"""How events change what is kept of a user: the one definition, for SQLite in Python and for Valkey in Lua beside it.

Events lie in a profile by (timestamp, order of coming), newest last, and only the newest are kept. That order does not
depend on how events are cut into batches, so a table that is imported gives the profile that single events give.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
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


class Kept(msgspec.Struct, array_like=True):
    """What is stored of a user, in MessagePack."""

    events: list[Seen] = []
    searches: list[tuple[float, str]] = []
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
                _insert(state.searches, (event.timestamp, event.query), itemgetter(0), MOST_SEARCHES)
        elif event.item_id:
            seen = Seen(event.item_id, event.type, event.timestamp, weight_of(event))
            _insert(state.events, seen, _timestamp, most_events)
    return _encoder.encode(state)


def read_profile(user_id: str, kept: bytes | None) -> Profile:
    """The profile as the rest sees it."""
    if not kept:
        return Profile(user_id)
    state = _decoder.decode(kept)
    return Profile(user_id, tuple(state.events), tuple(query for _, query in state.searches), state.counters)


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
        "searches": [{"query": query, "timestamp": timestamp} for timestamp, query in state.searches],
        "counters": state.counters,
        "waiting": msgspec.to_builtins(waiting),
        "pages": {key: _as_text(value) for key, value in pages.items()},
    }


def _as_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def _timestamp(seen: Seen) -> float:
    return seen.timestamp


def _insert(rows: list[Row], row: Row, key: Callable[[Row], float], most: int) -> None:
    """Put a row behind those of its time, and drop the oldest where there are too many."""
    rows.insert(bisect_right(rows, key(row), key=key), row)
    del rows[: max(0, len(rows) - most)]
