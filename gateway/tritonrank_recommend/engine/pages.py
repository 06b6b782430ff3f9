"""Lists that were shown in part: page 2 continues page 1, whatever was published or changed in between.

A list lies in the store under a token of 128 random bits for some minutes, bound to its user. Who knows the token and
the user's id may read on; nobody can guess it. Without a store, or while it is away, a list is held in this process.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from tritonrank_recommend.catalogue.interface import SOURCES
from tritonrank_recommend.random_hex import random_hex
from tritonrank_recommend.stores.interface import Store, StoreError

TOKEN_BYTES = 16
MOST_PINNED = 200
"""Items of a list that can be paged through."""
MOST_HELD_BYTES = 64 * 2**20
"""Of lists in this process."""
STORE_SECONDS = 0.25
"""That the store may take for a page."""
PINNED_BY_RULE = "pin"
SOURCE_NAMES = (*(name for name in SOURCES if name != "next"), PINNED_BY_RULE, "next")
"""Lists are kept over an update, so that a name keeps its number: what is new comes last."""


class PageGoneError(Exception):
    """A cursor whose list is no longer kept, or never was, or belongs to somebody else."""


class CursorError(ValueError):
    """A cursor that no answer can have held."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """An item of a list.

    Attributes:
        item_id: its id.
        score: that ordered it.
        logit: the ranker's; None where it was not heard.
        sources: that brought it, by their numbers in SOURCE_NAMES, with its rank in each.
        policy_position: where it stood before neighbours changed places by lot; -1 where nothing was left to chance.
        move_up, move_down: how likely it was to stand one place further up, or down, than that.
    """

    item_id: str
    score: float
    logit: float | None
    sources: list[tuple[int, int]]
    policy_position: int = -1
    move_up: float = 0.0
    move_down: float = 0.0

    @property
    def source_ranks(self) -> dict[str, int]:
        """Rank by the name of the source."""
        return {SOURCE_NAMES[number]: rank for number, rank in self.sources}


class PinnedList(msgspec.Struct, frozen=True, array_like=True):
    """A whole list as it was made.

    Attributes:
        user_id: whose it is.
        entries: best first.
        cold, reasons, artifacts: of the answer that it belongs to.
        query: that it answers.
        history: what the ranker was told, newest last: ids, each with the type of its event.
    """

    user_id: str
    entries: list[Entry]
    cold: bool
    reasons: list[str]
    artifacts: dict[str, str]
    query: str = ""
    history: list[tuple[str, str]] = []


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a list is read on."""

    token: str
    offset: int

    def __str__(self) -> str:
        return f"{self.token}.{self.offset}"

    @classmethod
    def read(cls, text: str) -> "Cursor":
        """The cursor that an answer held.

        Raises:
            CursorError: it is none.
        """
        token, _, offset = text.partition(".")
        is_token = len(token) == 2 * TOKEN_BYTES and all(one in "0123456789abcdef" for one in token)
        if not is_token or not offset.isascii() or not offset.isdigit() or len(offset) > 4:
            raise CursorError("cursor: expected the one of the answer before, unchanged")
        return cls(token, int(offset))


def new_token() -> str:
    """128 random bits."""
    return random_hex(TOKEN_BYTES)


class Pages:
    """Lists by token.

    Args:
        store: None keeps them in this process alone.
        minutes: that a list is kept.
    """

    def __init__(self, store: Store | None, minutes: float) -> None:
        self._store, self._seconds = store, 60 * minutes
        self._held: OrderedDict[str, tuple[float, str, bytes]] = OrderedDict()
        self._held_bytes = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(PinnedList)

    async def keep(self, token: str, pinned: PinnedList) -> None:
        """Keep a list.

        Raises:
            StoreError: it is in this process only.
        """
        value = self._encoder.encode(pinned)
        if self._store is None:
            self._hold(token, pinned.user_id, value)
            return
        try:
            async with _in_time():
                await self._store.put(f"page:{token}", value, self._seconds, user_id=pinned.user_id)
        except StoreError:
            self._hold(token, pinned.user_id, value)
            raise

    async def find(self, token: str, user_id: str) -> PinnedList:
        """The list of a token.

        Raises:
            PageGoneError: it is not kept, or is somebody else's.
            StoreError: the store does not answer, and it is not in this process.
        """
        value: bytes | None
        value = self._from_here(token)
        if value is None and self._store is not None:
            async with _in_time():
                value = await self._store.get(f"page:{token}")
        pinned = self._decoder.decode(value) if value is not None else None
        if pinned is None or not secrets.compare_digest(pinned.user_id.encode(), user_id.encode()):
            raise PageGoneError
        return pinned

    @property
    def is_shared(self) -> bool:
        """Whether a list outlives this process."""
        return self._store is not None

    def erase(self, user_id: str) -> int:
        """Remove a user's lists from this process; how many there were."""
        tokens = [token for token, (_, owner, _) in self._held.items() if owner == user_id]
        for token in tokens:
            self._drop(token)
        return len(tokens)

    def _from_here(self, token: str) -> bytes | None:
        held = self._held.get(token)
        if held is None:
            return None
        if held[0] < time.monotonic():
            self._drop(token)
            return None
        return held[2]

    def _hold(self, token: str, user_id: str, value: bytes) -> None:
        now = time.monotonic()
        self._held[token] = (now + self._seconds, user_id, value)
        self._held_bytes += len(value)
        while self._held and (self._held_bytes > MOST_HELD_BYTES or next(iter(self._held.values()))[0] < now):
            self._drop(next(iter(self._held)))

    def _drop(self, token: str) -> None:
        self._held_bytes -= len(self._held.pop(token)[2])


class _in_time:  # noqa: N801 - reads as a function
    """Turns a store that hangs into one that is away."""

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(STORE_SECONDS)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._timeout.__aexit__(*error)  # type: ignore[arg-type]  # three of one kind each
        except TimeoutError:
            raise StoreError(f"no answer within {STORE_SECONDS} s") from None
