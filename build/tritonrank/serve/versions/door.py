"""The door of a private API: a port that listens before its work begins, and the key that every request has to bring.

Whoever has the key decides which code a server runs, so every request needs it, whatever it asks, and nothing is told
to who has none.
"""

import hmac
import importlib.util
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tritonrank.errors import ServerError
from tritonrank.serve.versions.shapes import FEWEST_KEY_CHARACTERS, KEY_VARIABLE

if TYPE_CHECKING:  # the gateway's extra
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

NEEDED = ("starlette", "uvicorn")
INSTALL = "pip install 'tritonrank[gateway]'"
BACKLOG = 64
STOP_SECONDS = 10.0
MOST_AT_ONCE = 32
SCHEME = "bearer "


class KeyNeeded:
    """Answers who has no key, or another one; lets the others through."""

    def __init__(self, app: "ASGIApp", key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """One request."""
        if scope["type"] == "http" and not self._is_allowed(scope):
            said = f"the Authorization header has to be: Bearer KEY, with the {KEY_VARIABLE} of the server"
            await fault(401, "key", said)(scope, receive, send)
        elif scope["type"] != "websocket":
            await self._app(scope, receive, send)

    def _is_allowed(self, scope: "Scope") -> bool:
        told = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(told) != 1 or not told[0].decode("latin-1").lower().startswith(SCHEME):
            return False
        return hmac.compare_digest(told[0][len(SCHEME) :].strip(), self._key)


class Door:
    """Listens from the start on.

    Args:
        port: 0 takes a free one.
        host: address to listen on.
        flag: of the command line, that names the port.

    Raises:
        ServerError: there is no key in the environment or a short one, a package is missing, or the port is taken.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", flag: str = "--port") -> None:
        if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            raise ServerError(f"{flag} needs {', '.join(missing)}: {INSTALL}")
        self._key = key_of_environment()
        self._socket = listening(host, port, flag)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"

    @contextmanager
    def answering(self, app: "ASGIApp") -> Iterator[None]:
        """Let who has the key to an application, in a thread, inside the block."""
        import uvicorn

        config = uvicorn.Config(
            KeyNeeded(app, self._key),
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=MOST_AT_ONCE,
            timeout_graceful_shutdown=int(STOP_SECONDS / 2),
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([self._socket],), name="private API", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS)
            self.close()

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def fault(status: int, code: str, message: str) -> "Response":
    """A refusal."""
    from starlette.responses import JSONResponse

    return JSONResponse({"error": {"code": code, "message": message}}, status)


def key_of_environment() -> str:
    """The key that every request has to bring.

    Raises:
        ServerError: there is none, or one that can be guessed.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if len(key) < FEWEST_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
        said = "is not set" if not key else f"is not {FEWEST_KEY_CHARACTERS} or more plain characters"
        raise ServerError(
            f"{KEY_VARIABLE} {said}: whoever has this key decides what the server runs. Make one: "
            f"export {KEY_VARIABLE}=$(openssl rand -hex 32)"
        )
    return key


def listening(host: str, port: int, flag: str) -> socket.socket:
    """A socket that listens; raises ServerError where the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ServerError(
            f"port {port} cannot be used on {host} ({reason}). Choose another with {flag}, or 0 for a free one"
        ) from error
    return listener
