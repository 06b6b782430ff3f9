"""What a recommender is made of, and what keeps it fresh while it serves: artifacts, rules, changed items."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.catalogue.interface import Catalogue
from tritonrank_recommend.engine.artifact_folder import ArtifactFolder
from tritonrank_recommend.engine.live_items import LiveItems
from tritonrank_recommend.engine.memory import set_aside_what_replaced_it
from tritonrank_recommend.engine.remembered import KEEP_SECONDS, KEY, RememberedCatalogue
from tritonrank_recommend.engine.rules import RulesFile
from tritonrank_recommend.privacy import Privacy, read_privacy
from tritonrank_recommend.stores.interface import ItemChange, Store, StoreError
from tritonrank_recommend.streams.settings import StreamSettings

if TYPE_CHECKING:  # it brings pyarrow, which only who writes a log needs
    from tritonrank_recommend.log.event_log import EventLog
    from tritonrank_recommend.streams.intake import Intake

LOG = logging.getLogger("tritonrank_recommend")
LOOK_SECONDS = 1.0
"""Between two looks at the files."""
REMEMBER_SECONDS = 60.0
STORE_SECONDS = 1.0
"""That the store may take for what is remembered."""


@dataclass
class Parts:
    """The parts, each of which may be away.

    Attributes:
        catalogue, blend: by their folders.
        rules: by their file.
        store: None where nothing is kept.
        remembered: the popular items, for when the catalogue fails.
        log: None where no training log is written.
        intake: the stream of events and its consumer; None where events go to the store alone.
        privacy: what of users is kept, and under which name.
    """

    catalogue: ArtifactFolder[Catalogue]
    blend: ArtifactFolder[Blend]
    rules: RulesFile
    store: Store | None
    remembered: RememberedCatalogue = field(default_factory=RememberedCatalogue)
    log: "EventLog | None" = None
    intake: "Intake | None" = None
    privacy: Privacy = field(default_factory=Privacy)


class Upkeep:
    """Keeps parts fresh between ``start`` and ``close``. Used from one event loop.

    Args:
        parts: they are replaced in place.
        pool: for what computes.
    """

    def __init__(self, parts: Parts, pool: ThreadPoolExecutor) -> None:
        self._parts, self._pool = parts, pool
        self._writer = ThreadPoolExecutor(1, "items")  # a catalogue is changed by one thread
        self._tasks: list[asyncio.Task[None]] = []
        self.live = None if parts.store is None else LiveItems(parts.store, self._applier(parts.catalogue.opened))

    async def start(self) -> None:
        """Take what changed before, and go on in the background."""
        if self.live is not None:
            try:
                await self.live.catch_up()
            except StoreError:
                LOG.warning("the store does not answer; changes of items are taken when it does")
            self._tasks.append(asyncio.create_task(self.live.follow()))
        await self._remember()
        self._tasks.append(asyncio.create_task(self._every(LOOK_SECONDS, self._look)))
        self._tasks.append(asyncio.create_task(self._every(REMEMBER_SECONDS, self._remember)))

    async def close(self) -> None:
        """End what runs in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.shutdown(wait=False, cancel_futures=True)

    async def apply(self, changes: Sequence[ItemChange]) -> None:
        """Make changes visible here that no store keeps."""
        await self._applier(self._parts.catalogue.opened, 0.0)(changes)

    def _applier(
        self, catalogue: Catalogue | None, data_read: float | None = None
    ) -> Callable[[Sequence[ItemChange]], Awaitable[None]]:
        since = self._parts.catalogue.data_read if data_read is None else data_read

        async def apply(changes: Sequence[ItemChange]) -> None:
            newer = [change for change in changes if change.changed >= since] if since else list(changes)
            if newer:
                work = partial(_apply, [self._parts.remembered, catalogue], newer)
                await asyncio.get_running_loop().run_in_executor(self._writer, work)

        return apply

    async def _every(self, seconds: float, do: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await do()
            # The next time may go better, and requests do not wait for it.
            except Exception:
                LOG.exception("upkeep")

    async def _look(self) -> None:
        loop, parts = asyncio.get_running_loop(), self._parts
        await loop.run_in_executor(self._pool, parts.rules.refresh)
        blend = await loop.run_in_executor(self._pool, parts.blend.look)
        if blend is not None:
            parts.blend.opened = blend
        catalogue = await loop.run_in_executor(self._pool, parts.catalogue.look)
        if catalogue is None:
            return
        if self.live is not None:
            try:
                await self.live.move_to(self._applier(catalogue))
            except StoreError:
                LOG.warning("the store does not answer; changes of items are taken when it does")
        parts.catalogue.opened = catalogue
        await self._remember()
        set_aside_what_replaced_it()

    async def _remember(self) -> None:
        parts, loop = self._parts, asyncio.get_running_loop()
        catalogue = parts.catalogue.opened
        if catalogue is not None:
            try:
                parts.remembered = await loop.run_in_executor(
                    self._pool, RememberedCatalogue.of, catalogue, parts.rules.rules.filters, time.time()
                )
            # A catalogue that fails is no reason to forget what it said before.
            except Exception:
                LOG.exception("the catalogue %s failed", catalogue.artifact)
        if parts.store is None:
            return
        with suppress(StoreError, TimeoutError, msgspec.DecodeError):
            async with asyncio.timeout(STORE_SECONDS):
                if len(parts.remembered):
                    await parts.store.put(KEY, parts.remembered.to_bytes(), KEEP_SECONDS)
                elif kept := await parts.store.get(KEY):
                    parts.remembered = RememberedCatalogue.read(kept)


def _apply(catalogues: Sequence[Catalogue | None], changes: Sequence[ItemChange]) -> None:
    for catalogue in catalogues:
        if catalogue is None:
            continue
        try:
            catalogue.apply(changes)
        # One item that cannot be taken must not keep out the others.
        except Exception:  # noqa: BLE001 - each is told below
            for change in changes:
                try:
                    catalogue.apply([change])
                except Exception:
                    LOG.exception("item %r could not be changed", change.item_id)


def open_parts(
    *,
    catalogue: Path | None,
    blend: Path | None,
    store_url: str,
    rules: Path | None,
    events_log: Path | None,
    events_stream: StreamSettings | None = None,
) -> Parts:
    """Open what there is.

    Raises:
        RulesError: the rules file is wrong.
        StoreError: the store cannot be used as it is named.
        ValueError: the environment's wishes for privacy are wrong.
    """
    from tritonrank_recommend.blend import open_blend
    from tritonrank_recommend.catalogue import open_catalogue
    from tritonrank_recommend.stores import GuardedStore, open_store

    rules_file, privacy = RulesFile(rules), read_privacy(os.environ)
    store = GuardedStore(open_store(store_url)) if store_url else None
    parts = Parts(
        ArtifactFolder(catalogue, open_catalogue, "catalogue"),
        ArtifactFolder(blend, open_blend, "blend"),
        rules_file,
        store,
        privacy=privacy,
    )
    if store is not None and events_log is not None:
        from tritonrank_recommend.log.event_log import EventLog

        parts.log = EventLog(events_log, store)
    if store is not None and events_stream is not None:
        from tritonrank_recommend.streams.opening import open_intake

        parts.intake = open_intake(events_stream, store_url, store, privacy, events_log)
    return parts
