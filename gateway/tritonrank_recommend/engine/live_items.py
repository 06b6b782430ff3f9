"""Items that change while serving: every gateway follows the store's list of changes and applies them to its catalogue.

A change is newer than data that were read before it, and older than data that were read after it: so a change counts
for a catalogue if the store took it after the catalogue's data were read (``ArtifactFolder.data_read``). When it was
published says nothing: an hour of training may lie between, in which items change.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from tritonrank_recommend.stores.interface import ItemChange, Store, StoreError

LOG = logging.getLogger("tritonrank_recommend")
POLL_SECONDS = 0.25
AWAY_SECONDS = 1.0
"""Between two questions to a store that does not answer."""
ANSWER_SECONDS = 2.0
"""That the store may take for a batch of changes."""
BATCH = 10_000

Apply = Callable[[Sequence[ItemChange]], Awaitable[None]]


class LiveItems:
    """Follows the changes of a store. Used from one event loop.

    Args:
        store: whose changes.
        apply: makes them visible; awaited, one call at a time.
    """

    def __init__(self, store: Store, apply: Apply) -> None:
        self._store, self._apply = store, apply
        self._asked = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._one_at_a_time = asyncio.Lock()
        self.version = 0
        """of the last change that was applied"""

    async def follow(self) -> None:
        """Apply what comes until cancelled."""
        while True:
            pause = POLL_SECONDS
            try:
                await self.catch_up()
            except StoreError:
                pause = AWAY_SECONDS
            # One change that cannot be applied must not end the following.
            except Exception:
                LOG.exception("a change of items could not be applied")
                pause = AWAY_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()

    async def catch_up(self) -> None:
        """Apply everything that is there now.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._one_at_a_time:
            await self._replay(self.version, self._apply)

    async def move_to(self, apply: Apply) -> None:
        """Replay all changes on what takes the place of the catalogue before, and follow with it from there.

        Raises:
            StoreError: the store does not answer; it is followed with what was followed with before.
        """
        async with self._one_at_a_time:
            await self._replay(0, apply)
            self._apply = apply

    async def _replay(self, since: int, apply: Apply) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    found = await self._store.item_changes(since, BATCH)
            except TimeoutError:
                raise StoreError(f"no changes of items within {ANSWER_SECONDS:g} s") from None
            if found:
                await apply([change for _, change in found])
                since = found[-1][0]
                async with self._advanced:
                    self.version = max(self.version, since)
                    self._advanced.notify_all()
            if len(found) < BATCH:
                return

    async def wait_for(self, version: int, seconds: float) -> bool:
        """Whether changes up to a version are applied here, at latest after so many seconds."""
        self._asked.set()
        try:
            async with asyncio.timeout(seconds), self._advanced:
                await self._advanced.wait_for(lambda: self.version >= version)
        except TimeoutError:
            return False
        return True
