"""What is kept of users: events come in, everything of a user can be read, and be erased."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

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
        kept = [self._parts.privacy.event(event) for event in events]
        if self._parts.intake is not None:
            return await self._parts.intake.add_events(kept)
        return await self._store().add_events(kept, log=self._parts.log is not None)

    async def export(self, user_id: str, *, with_log: bool = False) -> dict[str, Any]:
        """Everything that the store keeps of a user; ``with_log`` also the rows of the log's files, which takes longer.

        Raises:
            OSError: a file of the log cannot be read.
        """
        names, user_id = self._parts.privacy.names(user_id), self._parts.privacy.user(user_id)
        kept, log, intake = await self._store().export_user(user_id), self._parts.log, self._parts.intake
        if with_log and intake is not None:
            kept |= {"stream": msgspec.to_builtins(await intake.events_of(names))}
        if with_log and log is not None:
            rows = await log.rows_of(user_id)
            logged = {row.get("event_id") for row in rows}  # some since the store was asked
            waiting = [event for event in kept["waiting"] if event["event_id"] not in logged]
            kept |= {"waiting": waiting, "log": rows}
        return kept

    async def erase(self, user_id: str) -> tuple[dict[str, int], LogErased]:
        """Remove everything: rows by kind in the store, and how far it is with the log of the running hour."""
        rows: Counter[str] = Counter()
        names, log = self._parts.privacy.names(user_id), self._parts.log
        if self._parts.intake is not None:  # first: what lies there would come into the store again
            rows["stream"] = await self._parts.intake.erase(names)
        for name in names:
            rows.update(await self._store().erase_user(name))
            self._pages.erase(name)
        if log is None:
            return dict(rows), "none"
        try:
            return dict(rows), "done" if all([await log.erase(name) for name in names]) else "within seconds"
        except (OSError, StoreError):
            LOG.warning("the log cannot be written anew; that is done when it can")
            return dict(rows), "within seconds"

    def _store(self) -> Store:
        if self._parts.store is None:
            raise NotKeptError("there is no store; start the gateway with --store sqlite:FILE")
        return self._parts.store
