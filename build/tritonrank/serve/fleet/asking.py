"""A GET on a port of our own, without a library: the fleet looks at its members several times a second."""

import asyncio
from contextlib import suppress

LOOPBACK = "127.0.0.1"
MOST_BYTES = 2**22
"""Of an answer; a page of metrics has some 100 kB."""


async def get(port: int, path: str, seconds: float = 2.0) -> tuple[int, bytes]:
    """Status and body; status 0 where nobody answers in time."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {LOOPBACK}:{port}\r\n\r\n".encode())
                await writer.drain()
                answer = await _all_of(reader)
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    return (int(words[1]), body) if len(words) > 1 and words[1].isdigit() else (0, b"")


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    pieces, size = [], 0
    while size < MOST_BYTES and (piece := await reader.read(2**16)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
