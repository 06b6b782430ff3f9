"""A process that consumes a stream as a gateway does, tells how many messages it brought into the store, to be killed.

python tests/stream_consumer.py STREAM STORE DEAD_LETTERS [SECONDS]

With SECONDS it applies a batch and waits so long before it acknowledges it: whoever kills it then finds events that are
in the store and messages that nobody acknowledged.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tritonrank_recommend.stores import GuardedStore, open_store
from tritonrank_recommend.streams.consumer import Consumer
from tritonrank_recommend.streams.dead_letters import DeadLetters
from tritonrank_recommend.streams.opening import open_stream

IDLE_SECONDS = 0.6


async def main(stream_url: str, store_url: str, letters: str, hesitates: float) -> None:
    stream, store = open_stream(stream_url), GuardedStore(open_store(store_url))
    assert stream is not None
    acknowledge = stream.acknowledge

    async def acknowledge_late(group: str, offsets: Sequence[str]) -> Mapping[str, float]:
        if offsets and hesitates:
            print("applied", flush=True)
            await asyncio.sleep(hesitates)
        return await acknowledge(group, offsets)

    stream.acknowledge = acknowledge_late  # type: ignore[method-assign]
    consumer = Consumer(stream, store, DeadLetters(Path(letters)), idle_seconds=IDLE_SECONDS)
    consumer.start()
    told = -1
    while True:
        await asyncio.sleep(0.02)
        if consumer.state.messages != told:
            told = consumer.state.messages
            print(told, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], float(sys.argv[4]) if len(sys.argv) > 4 else 0.0))  # type: ignore[arg-type]
