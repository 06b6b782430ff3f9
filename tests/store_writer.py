"""Writes batches of events to a store for ever, and prints the number of each that was acknowledged: to be killed.

python tests/store_writer.py URL
"""

import asyncio
import sys

from tritonrank_recommend.events import Event
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import StoreError

USERS = 20
BATCH = 8


def batch(number: int) -> list[Event]:
    """Events of several users on a few items, the same at every call."""
    return [
        Event(
            event_id=f"e{number}-{place}",
            user_id=f"u{(number + place) % USERS}",
            type="click",
            timestamp=1_700_000_000.0 + number,
            item_id=f"i{place}",
        )
        for place in range(BATCH)
    ]


async def main(url: str) -> None:
    store = open_store(url)
    number = 0
    while True:
        try:
            await store.add_events(batch(number))
        except StoreError:  # the server is being killed: the same batch again, until it is acknowledged
            await asyncio.sleep(0.05)
            continue
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
