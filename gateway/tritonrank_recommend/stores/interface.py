"""The store as everything else sees it. Both implementations pass one contract test."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from tritonrank_recommend.events import Event

FieldValue = str | float | int | bool | None | list[str]
"""Of an item: numbers stay numbers, lists are tags."""


class StoreError(Exception):
    """The store cannot be reached or does not answer in time; nothing was acknowledged."""


class StoreRefusedError(StoreError):
    """The URL, the file or the server is not one that can be used; trying again does not help."""


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """An event as a profile keeps it."""

    item_id: str
    type: str
    timestamp: float
    weight: float
    """from -1 to 1, see ``events.weight_of``"""
    received: bool = False
    """Whether a gateway or a stream received it; events of an imported table keep the order of its rows instead."""


class Profile(msgspec.Struct, frozen=True):
    """What is known of a user.

    Attributes:
        user_id: who.
        events: the newest on items, at most so many, newest last by their timestamps.
        searches: the newest queries, newest last.
        counters: events of the user by type, since the first.
    """

    user_id: str
    events: tuple[Seen, ...] = ()
    searches: tuple[str, ...] = ()
    counters: dict[str, int] = {}


class ItemChange(msgspec.Struct, frozen=True):
    """An item that was added or changed (with all its fields), or removed (``fields`` is None)."""

    item_id: str
    fields: dict[str, FieldValue] | None
    changed: float = 0.0
    """unix seconds, by the store's clock when it took the change; what a caller sets is not kept"""


class Added(msgspec.Struct, frozen=True):
    """How a batch of events was taken.

    Attributes:
        accepted: that count now.
        duplicates: that were known before.
        is_queued: they are safe in a stream, and count as soon as the store answers; duplicates are not known yet.
    """

    accepted: int
    duplicates: int
    is_queued: bool = False


class Store(Protocol):
    """Raises StoreError from every method where the store cannot answer. Used from one event loop."""

    async def ready(self) -> bool:
        """Whether it answers now."""

    async def close(self) -> None:
        """Give connections and files back; what was acknowledged stays."""

    # Events and profiles

    async def add_events(self, events: Sequence[Event], *, log: bool = True) -> Added:
        """Take events: profile, counters and outbox. Durable when this returns; the profile holds them then.

        Counters and outbox may follow a moment later; this store's own answers wait for them.

        All events of one user are taken, or none. A batch that failed in between can be sent again: an event whose id
        is known of its user counts as a duplicate, however often it comes within seven days.

        Args:
            events: in any order.
            log: False keeps them out of the outbox: they lie in a table already from which models are built.
        """

    async def profile(self, user_id: str) -> Profile:
        """What is known; an empty profile of a user who is not."""

    async def item_counters(self, item_ids: Sequence[str]) -> list[dict[str, int]]:
        """Events by type, one dict per id."""

    async def user_ids(self) -> list[str]:
        """Of whom there is a profile, in no order. For copies and comparisons: it reads the whole store."""

    async def counted_items(self) -> list[str]:
        """On what there were events, alike."""

    # The outbox: events that wait for the training log, in the order in which they were taken

    async def outbox(self, after: int, most: int) -> list[tuple[int, Event]]:
        """Number and event, those with a number above ``after``; numbers ascend."""

    async def outbox_done(self, through: int) -> None:
        """Events up to this number are in the log for good."""

    async def log_position(self) -> int:
        """The last number that ``outbox_done`` was told; 0 at first."""

    # Items that change while serving

    async def change_items(self, changes: Sequence[ItemChange]) -> int:
        """The version after the changes; versions ascend."""

    async def item_changes(self, since: int, most: int = 10_000) -> list[tuple[int, ItemChange]]:
        """Changes with a version above ``since``, oldest first. Of an item that changed twice only the last is kept."""

    # Small things with an end: pinned pages, cached results

    async def put(self, key: str, value: bytes, seconds: float, *, user_id: str = "") -> None:
        """Keep a value for so long. What belongs to a user goes when the user is erased."""

    async def put_new(self, key: str, value: bytes, seconds: float) -> bytes:
        """Keep a value for so long unless one is kept under the key; the one that is kept then, in one step."""

    async def get(self, key: str) -> bytes | None:
        """A value that was put, unless its time is over."""

    # Leases: of several gateways one does what is to be done once, such as writing the log

    async def take_lease(self, name: str, owner: str, seconds: float) -> bool:
        """Whether ``owner`` holds the lease now, for so long; its holder renews it by taking it again."""

    async def give_lease(self, name: str, owner: str) -> None:
        """Let others take it at once; nothing where ``owner`` does not hold it."""

    # Privacy

    async def export_user(self, user_id: str) -> dict[str, Any]:
        """Everything that is kept under the user's id, as JSON can hold it."""

    async def erase_user(self, user_id: str) -> dict[str, int]:
        """Remove it, pages and waiting events too; how many rows of what. Remembers the id as erased, for the log."""

    async def erased_users(self) -> list[tuple[str, float]]:
        """Who was erased, and when (unix seconds): tombstones for files of the log that were written before.

        The files hold ids, so a tombstone holds the id: the last trace of a user, until ``forget_erased``.
        """

    async def forget_erased(self, user_ids: Sequence[str]) -> None:
        """Drop tombstones: no file holds these users any more."""
