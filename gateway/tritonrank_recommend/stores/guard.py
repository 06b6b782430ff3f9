"""A store that may hang, and a request that may not: every call has a limit, and after a few failures none is made.

While the circuit is open, calls fail at once. After a rest one call is let through; its success closes the circuit.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from tritonrank_recommend.events import Event
from tritonrank_recommend.stores.interface import Added, ItemChange, Profile, Store, StoreError, StoreRefusedError

Result = TypeVar("Result")
Outcome = Literal["done", "late", "failed", "refused", "given_up", "not_asked"]
"""Of a call: answered; no answer in its time; no answer at all; answered that this store cannot be used; whoever asked
went away; the circuit was open."""
Watch = Callable[[str, float, Outcome], None]
"""Told of each call: the operation, its seconds, what became of it."""
log = logging.getLogger("tritonrank.store")

READ_SECONDS = 0.1
"""A profile, counters, a page: a request waits for them."""
PUT_SECONDS = 0.25
"""A page that is pinned: it may have to wait for another process's write."""
OTHER_SECONDS = 5.0
"""Events, items, the log, erasures: a caller may wait longer for what must not be lost."""
FAILURES = 3
"""in a row open the circuit"""
GIVEN_UP_SHARE = 0.5
"""A caller that gives up after this share of a limit has waited for the store in vain."""
REST_SECONDS = 1.0
"""until the next try"""


class StoreLateError(StoreError):
    """The store may answer, but not in time."""


def _unwatched(operation: str, seconds: float, outcome: Outcome) -> None:
    """Nobody counts."""


class GuardedStore:
    """A store with limits, see ``interface.Store``; what it raises is always StoreError, and soon."""

    def __init__(
        self,
        store: Store,
        *,
        read_seconds: float = READ_SECONDS,
        put_seconds: float = PUT_SECONDS,
        other_seconds: float = OTHER_SECONDS,
        rest_seconds: float = REST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        watch: Watch = _unwatched,
    ) -> None:
        """Guard a store.

        Args:
            store: closed with this one.
            read_seconds: for a profile, counters or a value.
            put_seconds: for keeping a value.
            other_seconds: for everything else.
            rest_seconds: from the failure that opened the circuit to the next try.
            clock: seconds.
            watch: told of each call; whoever counts may put another in its place.
        """
        self.watch = watch
        self._store = store
        self._read_seconds = read_seconds
        self._put_seconds = put_seconds
        self._other_seconds = other_seconds
        self._rest_seconds = rest_seconds
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0

    @property
    def open_circuit(self) -> bool:
        """Whether calls fail at once now."""
        return self._failures >= FAILURES and self._clock() < self._closed_until

    @property
    def answers(self) -> bool:
        """Whether the last calls did not all fail."""
        return self._failures < FAILURES

    async def _call(self, operation: str, call: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
        if self._failures >= FAILURES:
            if self._clock() < self._closed_until:
                self.watch(operation, 0.0, "not_asked")
                raise StoreError("the store does not answer; it is asked again within a second")
            self._closed_until = self._clock() + self._rest_seconds  # this call alone goes to see
        started = self._clock()
        outcome: Outcome = "given_up"
        try:
            result = await self._limited(call, seconds)
            outcome = "done"
            return result
        except StoreLateError:
            outcome = "late"
            raise
        except StoreRefusedError:
            outcome = "refused"
            raise
        except StoreError:
            outcome = "failed"
            raise
        finally:
            self.watch(operation, self._clock() - started, outcome)

    async def _limited(self, call: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
        started = self._clock()
        task = asyncio.ensure_future(call())
        try:
            # Not wait_for: where this process is late itself, an answer that has come counts, however late.
            done, _ = await asyncio.wait([task], timeout=seconds)
        except BaseException:
            task.add_done_callback(_forget)
            task.cancel()
            if self._clock() - started > GIVEN_UP_SHARE * seconds:  # a limit of the caller's own
                self._failed()
            raise
        if not done:
            task.add_done_callback(_forget)
            task.cancel()
            self._failed()
            raise StoreLateError(f"the store did not answer within {seconds * 1000:.0f} ms")
        try:
            result = task.result()
        except StoreRefusedError:
            raise
        except StoreError:
            self._failed()
            raise
        if self._failures >= FAILURES:
            log.warning("the store answers again")
        self._failures = 0
        return result

    def _failed(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            if self._failures == FAILURES:
                log.warning(
                    "the store failed %d times in a row; it is asked once in %g s", FAILURES, self._rest_seconds
                )
            self._closed_until = self._clock() + self._rest_seconds

    async def ready(self) -> bool:
        return await self._call("ready", self._store.ready, self._put_seconds)

    async def close(self) -> None:
        await self._store.close()

    async def add_events(self, events: Sequence[Event], *, log: bool = True) -> Added:
        return await self._call("add_events", lambda: self._store.add_events(events, log=log), self._other_seconds)

    async def profile(self, user_id: str) -> Profile:
        return await self._call("profile", lambda: self._store.profile(user_id), self._read_seconds)

    async def item_counters(self, item_ids: Sequence[str]) -> list[dict[str, int]]:
        return await self._call("item_counters", lambda: self._store.item_counters(item_ids), self._read_seconds)

    async def user_ids(self) -> list[str]:
        return await self._call("user_ids", self._store.user_ids, self._other_seconds)

    async def counted_items(self) -> list[str]:
        return await self._call("counted_items", self._store.counted_items, self._other_seconds)

    async def outbox(self, after: int, most: int) -> list[tuple[int, Event]]:
        return await self._call("outbox", lambda: self._store.outbox(after, most), self._other_seconds)

    async def outbox_done(self, through: int) -> None:
        await self._call("outbox_done", lambda: self._store.outbox_done(through), self._other_seconds)

    async def log_position(self) -> int:
        return await self._call("log_position", self._store.log_position, self._other_seconds)

    async def change_items(self, changes: Sequence[ItemChange]) -> int:
        return await self._call("change_items", lambda: self._store.change_items(changes), self._other_seconds)

    async def item_changes(self, since: int, most: int = 10_000) -> list[tuple[int, ItemChange]]:
        return await self._call("item_changes", lambda: self._store.item_changes(since, most), self._other_seconds)

    async def put(self, key: str, value: bytes, seconds: float, *, user_id: str = "") -> None:
        await self._call("put", lambda: self._store.put(key, value, seconds, user_id=user_id), self._put_seconds)

    async def put_new(self, key: str, value: bytes, seconds: float) -> bytes:
        return await self._call("put_new", lambda: self._store.put_new(key, value, seconds), self._other_seconds)

    async def get(self, key: str) -> bytes | None:
        return await self._call("get", lambda: self._store.get(key), self._read_seconds)

    async def take_lease(self, name: str, owner: str, seconds: float) -> bool:
        return await self._call("take_lease", lambda: self._store.take_lease(name, owner, seconds), self._other_seconds)

    async def give_lease(self, name: str, owner: str) -> None:
        await self._call("give_lease", lambda: self._store.give_lease(name, owner), self._other_seconds)

    async def export_user(self, user_id: str) -> dict[str, Any]:
        return await self._call("export_user", lambda: self._store.export_user(user_id), self._other_seconds)

    async def erase_user(self, user_id: str) -> dict[str, int]:
        return await self._call("erase_user", lambda: self._store.erase_user(user_id), self._other_seconds)

    async def erased_users(self) -> list[tuple[str, float]]:
        return await self._call("erased_users", self._store.erased_users, self._other_seconds)

    async def forget_erased(self, user_ids: Sequence[str]) -> None:
        await self._call("forget_erased", lambda: self._store.forget_erased(user_ids), self._other_seconds)


def _forget(task: asyncio.Future[Any]) -> None:
    """Nobody waits for this outcome; without a look at it, asyncio would complain."""
    if not task.cancelled():
        task.exception()
