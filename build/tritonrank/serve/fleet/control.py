"""What a running fleet is asked, over a socket of its folder that only its user can open: lines of JSON.

{"do": "scale", "count": 4}   ->   {"said": "triton-4 starting"} ... {"done": {...status...}} or {"error": "..."}
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tritonrank.errors import ServerError, TritonRankError
from tritonrank.serve.fleet.fleet import Fleet

LONGEST_LINE = 2**16
WAIT_SECONDS = 700.0
NO_FLEET = "no fleet runs there. Start one: tritonrank fleet up ARTIFACTS; or name its folder with --state"


class Control:
    """The server's side.

    Args:
        fleet: is asked.
        path: of the socket.
    """

    def __init__(self, fleet: Fleet, path: Path) -> None:
        self._fleet, self._path = fleet, path
        self._listeners: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    def tell(self, line: str) -> None:
        """Whoever waits for a command sees what happens meanwhile."""
        for writer in self._listeners:
            _send(writer, {"said": line})

    async def __aenter__(self) -> "Control":
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=LONGEST_LINE)
        finally:
            os.umask(before)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            wish = json.loads(await reader.readline())
            if wish["do"] != "status":
                self._listeners.add(writer)
            await self._do(wish)
            answer: dict[str, Any] = {"done": self._fleet.status()}
        except TritonRankError as error:
            answer = {"error": str(error)}
        except (ValueError, KeyError, TypeError) as error:
            answer = {"error": f"not understood: {type(error).__name__}: {error}"}
        finally:
            self._listeners.discard(writer)
        _send(writer, answer)
        with suppress(OSError):
            await writer.drain()
            writer.close()

    async def _do(self, wish: dict[str, Any]) -> None:
        fleet = self._fleet
        match wish["do"]:
            case "status":
                pass
            case "scale":
                await fleet.scale("triton", int(wish["count"]))
            case "drain":
                await fleet.drain(str(wish["name"]))
            case "kill":
                await fleet.kill(str(wish["name"]))
            case "roll":
                await fleet.roll(str(wish.get("source", "")))
            case "down":
                fleet.stopping.set()
            case other:
                raise ServerError(f"{other}: expected status, scale, drain, kill, roll or down")


def _send(writer: asyncio.StreamWriter, what: dict[str, Any]) -> None:
    with suppress(OSError, RuntimeError):
        writer.write(json.dumps(what).encode() + b"\n")


def ask(path: Path, wish: dict[str, Any], tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The other side: what the fleet answers; its state in JSON's types.

    Args:
        path: of the socket.
        wish: see above.
        tell: is told what happens meanwhile.

    Raises:
        ServerError: no fleet is there, or it says no.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_SECONDS)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(wish).encode() + b"\n")
            with connection.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "said" in answer:
                        tell(answer["said"])
                    elif "error" in answer:
                        raise ServerError(answer["error"])
                    else:
                        done: dict[str, Any] = answer["done"]
                        return done
        except (OSError, ValueError) as error:
            raise ServerError(f"{path}: {NO_FLEET} ({error})") from None
    raise ServerError(f"{path.parent}: the fleet ended meanwhile")
