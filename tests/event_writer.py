"""A process that takes events as a gateway does, tells which ones it acknowledged, and is killed.

    python event_writer.py STORE LOG NAME BATCH POINT

Batches of NAME are sent from number BATCH on, a line with the number behind each that was acknowledged. At the second
time that the log is about to tell (POINT ``before``) or has told (``after``) the store what is in a file, the process
kills itself; with ``never`` it goes on until somebody else does.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

from tritonrank_recommend.events import Event
from tritonrank_recommend.log.event_log import EventLog
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Store

SIZE = 20
LEASE_SECONDS = 1.0


def batch(name: str, number: int) -> list[Event]:
    return [
        Event(
            event_id=f"{name}-{number}-{place}", user_id=f"u{place}", type="click", timestamp=1e9 + number, item_id="i1"
        )
        for place in range(SIZE)
    ]


class Dying:
    """A store on which the process dies at the second telling."""

    def __init__(self, store: Store, point: str) -> None:
        self._store, self._point, self._told = store, point, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def outbox_done(self, through: int) -> None:
        self._told += 1
        if self._told == 2 and self._point == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await self._store.outbox_done(through)
        if self._told == 2 and self._point == "after":
            os.kill(os.getpid(), signal.SIGKILL)


async def main(store_url: str, folder: str, name: str, first: str, point: str) -> None:
    store = open_store(store_url)
    log = EventLog(Path(folder), cast(Store, Dying(store, point)), every_seconds=0.02, lease_seconds=LEASE_SECONDS)
    log.start()
    number = int(first)
    while True:
        await store.add_events(batch(name, number))
        print(number, flush=True)
        number += 1
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
