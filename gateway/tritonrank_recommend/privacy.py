"""Under which name a user is kept, and what is not kept at all.

Two variables of the environment, the same for everybody who shares a store (gateways, Triton's model `recommend`,
`tritonrank import-events`):

**TRITONRANK_PSEUDONYM_KEY** (16 characters at least): a user's id is replaced by a keyed hash as soon as it comes in,
before the store, the log or a page of a list sees it, and so is the id of an event. HMAC-SHA-256 cut to 128 bits (RFC
2104): the same user has the same pseudonym, and without the key no list of ids leads from one to the other, which it
would with a plain hash. Whoever has the key can still ask for, export and erase a user by the id. A key that is lost
makes all that is kept nobody's; another key makes every user a new one.

**TRITONRANK_PRIVATE_FIELDS** (names parted by commas): fields that are never kept, of events (`query`, `value`, `page`,
`position`) and of items. A private query still finds and ranks; it is in no profile, list or log.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import msgspec

from tritonrank_recommend.events import Event
from tritonrank_recommend.stores.interface import ItemChange

KEY_VARIABLE, FIELDS_VARIABLE = "TRITONRANK_PSEUDONYM_KEY", "TRITONRANK_PRIVATE_FIELDS"
SHORTEST_KEY = 16
DIGITS = 32
"""Hexadecimal, of a pseudonym."""
EMPTY: Mapping[str, Any] = {"query": "", "value": None, "page": "", "position": None}
"""What an event has in place of a private field."""
NEEDED = frozenset({"event_id", "user_id", "type", "timestamp", "item_id", "received_at"})


class Privacy:
    """What of users and items is kept; by default all, under the ids that came.

    Args:
        key: of the pseudonyms; None makes none.
        private: names of fields.
    """

    def __init__(self, key: bytes | None = None, private: frozenset[str] = frozenset()) -> None:
        self._key, self._private = key, private
        self._lost = {name: EMPTY[name] for name in sorted(private & EMPTY.keys())}

    def user(self, user_id: str) -> str:
        """Under which name a user is kept; nobody ("") stays nobody."""
        return self._pseudonym("user", user_id) if user_id else ""

    def names(self, user_id: str) -> tuple[str, ...]:
        """All names that a user may be kept under: the id itself, too, from before there was a key."""
        return tuple(dict.fromkeys((self.user(user_id), user_id)))

    def query(self, query: str) -> str:
        """What is kept of a query."""
        return "" if "query" in self._private else query

    def event(self, event: Event) -> Event:
        """What is kept of an event."""
        if self._key is None and not self._lost:
            return event
        named = {"user_id": self.user(event.user_id), "event_id": self._pseudonym("event", event.event_id)}
        return msgspec.structs.replace(event, **named, **self._lost)

    def item(self, change: ItemChange) -> ItemChange:
        """What is kept of an item."""
        if change.fields is None or not self._private & change.fields.keys():
            return change
        kept = {name: value for name, value in change.fields.items() if name not in self._private}
        return msgspec.structs.replace(change, fields=kept)

    def _pseudonym(self, kind: str, told: str) -> str:
        if self._key is None:
            return told
        # The kind stands before: an event that is called like a user must not share that user's pseudonym.
        message = f"{kind}\0{told}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:DIGITS]


def read_privacy(environment: Mapping[str, str]) -> Privacy:
    """As the environment says it.

    Raises:
        ValueError: the key is too short, or a field cannot be private; the message does not hold the key.
    """
    key = environment.get(KEY_VARIABLE, "")
    if key and len(key) < SHORTEST_KEY:
        raise ValueError(f"{KEY_VARIABLE}: expected at least {SHORTEST_KEY} characters, as of: openssl rand -hex 24")
    names = environment.get(FIELDS_VARIABLE, "").split(",")
    private = frozenset(filter(None, (name.strip() for name in names)))
    if needed := sorted(private & NEEDED):
        raise ValueError(
            f"{FIELDS_VARIABLE}: {', '.join(needed)}: an event is nothing without it; for users set {KEY_VARIABLE}"
        )
    return Privacy(key.encode("utf-8", "surrogatepass") if key else None, private)
