"""What is kept of users: events come in, everything of a user can be read, and be erased."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

from tritonrank_recommend.engine.pages import Pages
from tritonrank_recommend.engine.parts import Parts
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores.interface import Added, Store, StoreError

LOG = logging.getLogger("tritonrank_recommend")
LogErased = Literal["none", "done", "within seconds"]
"""Of the running hour's files: there is no log here; they hold the user no more; whoever writes them is about to."""


class NotKeptError(Exception):
    """Something has to be kept, and there is no store."""


class Users:
    """Users in the store, in this process's pages, and in the log.

    Every method raises NotKeptError where there is no store, and StoreError where it does not answer: then nothing was
    done that the caller may count on.
    """

    def __init__(self, parts: Parts, pages: Pages) -> None:
        self._parts, self._pages = parts, pages

    async def add_events(self, events: Sequence[Event]) -> Added:
        """Take events, all or none; they are durable when this returns.

        They wait for the log only where this gateway has one: nobody else may ever come for them.
        """
        return await self._store().add_events(events, log=self._parts.log is not None)

    async def export(self, user_id: str, *, with_log: bool = False) -> dict[str, Any]:
        """Everything that the store keeps of a user; ``with_log`` also the rows of the log's files, which takes longer.

        Raises:
            OSError: a file of the log cannot be read.
        """
        kept, log = await self._store().export_user(user_id), self._parts.log
        return kept | {"log": await log.rows_of(user_id)} if with_log and log is not None else kept

    async def erase(self, user_id: str) -> tuple[dict[str, int], LogErased]:
        """Remove everything: rows by kind in the store, and how far it is with the log of the running hour."""
        rows = await self._store().erase_user(user_id)
        self._pages.erase(user_id)
        log = self._parts.log
        if log is None:
            return rows, "none"
        try:
            return rows, "done" if await log.erase(user_id) else "within seconds"
        except (OSError, StoreError):
            LOG.warning("the log cannot be written anew; that is done when it can")
            return rows, "within seconds"

    def _store(self) -> Store:
        if self._parts.store is None:
            raise NotKeptError("there is no store; start the gateway with --store sqlite:FILE")
        return self._parts.store
