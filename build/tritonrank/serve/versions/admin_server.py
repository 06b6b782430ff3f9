"""The port of the private API for versions: bound before Triton starts, served once it answers."""

import importlib.util
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tritonrank.errors import ServerError
from tritonrank.serve.versions.shapes import FEWEST_KEY_CHARACTERS, KEY_VARIABLE
from tritonrank.serve.versions.shelf import VersionShelf

if TYPE_CHECKING:  # the gateway's extra
    from starlette.routing import BaseRoute

NEEDED = ("starlette", "uvicorn")
INSTALL = "pip install 'tritonrank[gateway]'"
BACKLOG = 64
STOP_SECONDS = 10.0
MOST_AT_ONCE = 32


class AdminServer:
    """Listens from the start on.

    Args:
        port: 0 takes a free one.
        host: address to listen on.

    Raises:
        ServerError: there is no key in the environment or a short one, a package is missing, or the port is taken.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            raise ServerError(f"--admin-port needs {', '.join(missing)}: {INSTALL}")
        self._key = key_of_environment()
        self._socket = _listening(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"

    @contextmanager
    def serving(self, shelf: VersionShelf, further: "Sequence[BaseRoute]" = ()) -> Iterator[None]:
        """Answer for a shelf in a thread, inside the block."""
        import uvicorn

        from tritonrank.serve.versions.admin_app import admin_app

        config = uvicorn.Config(
            admin_app(shelf, self._key, further),
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=MOST_AT_ONCE,
            timeout_graceful_shutdown=int(STOP_SECONDS / 2),
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([self._socket],), name="versions API", daemon=True)
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


def _listening(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ServerError(
            f"port {port} cannot be used on {host} ({reason}). Choose another with --admin-port, or 0 for a free one"
        ) from error
    return listener
