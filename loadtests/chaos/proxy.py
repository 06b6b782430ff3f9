"""A small TCP proxy between two parts of a service, whose network can be made bad while it works.

TCP repeats what a network loses, so loss is seen by programs as pauses that grow: so it is made here, too. What a
broken cable does is seen as silence, and what a firewall or a killed host does as connections that break. A router that
started anew, or a host that took another's address over, has forgotten what was open: those connections are silent for
ever, and new ones work.
"""

import asyncio
import random
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Literal

from loadtests.processes import LOOPBACK

Network = Literal["good", "slow", "lossy", "silent", "cut", "forgotten", "corrupt"]
PIECE_BYTES = 16_384
DELAY_SECONDS = 0.2
LOST_SHARE = 0.2
"""Of the pieces, each way."""
REPEAT_SECONDS = 0.2
"""A lost piece comes after so long (Linux' least timeout of TCP), one that is lost again after twice as long more."""
CORRUPT_SHARE = 0.3
LOOK_SECONDS = 0.05
START_SECONDS = 10.0


class TcpProxy:
    """Listens on a free port of loopback and passes on to one address; runs from entering the block to its end.

    Args:
        port: of loopback, where it passes on to.
        seed: of what is lost or corrupted.
    """

    def __init__(self, port: int, seed: int = 1) -> None:
        self.target = port
        self.network: Network = "good"
        self.port = 0
        self._forgotten = 0
        """how often all connections were; the number at which one was opened tells whether it is"""
        self._random = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy to {port}", daemon=True)

    def __enter__(self) -> "TcpProxy":
        self._thread.start()
        assert self._started.wait(START_SECONDS), "the proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)

    def become(self, network: Network) -> None:
        """Change the network; a cut one breaks what is open."""
        self.network = network
        self._forgotten += network == "forgotten"
        if network == "cut":
            self._loop.call_soon_threadsafe(self._break_all)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._pass_on, LOOPBACK, 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            self._break_all()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    def _break_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.network == "cut":
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self.target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._open |= ends
        opened = self._forgotten
        try:
            await _first_of(self._copy(reader, far_writer, opened), self._copy(far_reader, writer, opened))
        finally:
            self._open -= ends
            for one in ends:
                one.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: int) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while piece := await reader.read(PIECE_BYTES):
                await self._on_the_way()
                if opened < self._forgotten:
                    continue
                if self.network == "corrupt" and self._random.random() < CORRUPT_SHARE:
                    piece = self._corrupted(piece)
                writer.write(piece)
                await writer.drain()

    async def _on_the_way(self) -> None:
        if self.network == "slow":
            await asyncio.sleep(DELAY_SECONDS)
        if self.network == "lossy":
            pause = REPEAT_SECONDS
            while self._random.random() < LOST_SHARE:
                await asyncio.sleep(pause)
                pause *= 2
        while self.network == "silent":
            await asyncio.sleep(LOOK_SECONDS)

    def _corrupted(self, piece: bytes) -> bytes:
        changed = bytearray(piece)
        changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)


async def _first_of(*ways: Coroutine[object, object, None]) -> None:
    """Until one of them ends; what is under way on the others ends with it."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
