"""Load and unload models of a running server, through ``model_repository/steward`` inside it."""

import json
import socket
from pathlib import Path

from tritonrank.errors import ServerError

SOCKET = "steward.sock"
LONGEST_ANSWER = 100_000
UNLOAD_SECONDS = 30.0


class ModelControl:
    """Of one tritonserver process.

    Args:
        run_folder: its own.
        load_seconds: how long a model may take to load.
    """

    def __init__(self, run_folder: Path, load_seconds: float) -> None:
        self._socket = run_folder / SOCKET
        self._load_seconds = load_seconds

    def load(self, model: str) -> None:
        """Load a model with those that it needs, or load it anew; returns when it answers. The one before answers until
        then, and goes on to where it cannot be loaded.

        Raises:
            ServerError: it cannot be loaded; says why.
        """
        self._ask("load", model, self._load_seconds)

    def unload(self, model: str) -> None:
        """Take no more requests for a model; those in flight are answered. It need not be there.

        Raises:
            ServerError: the server says no.
        """
        self._ask("unload", model, UNLOAD_SECONDS)

    def _ask(self, what: str, model: str, seconds: float) -> None:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(seconds)
                connection.connect(str(self._socket))
                with connection.makefile("rwb") as lines:
                    lines.write(json.dumps({"do": what, "model": model}).encode() + b"\n")
                    lines.flush()
                    told = json.loads(lines.readline(LONGEST_ANSWER) or b'{"error": "the server ended meanwhile"}')
        except TimeoutError:
            raise ServerError(
                f"model {model} was not {what}ed within {seconds:g} s. Allow more time with --ready-timeout"
            ) from None
        except (OSError, ValueError) as error:
            raise ServerError(f"model {model} cannot be {what}ed: the server does not answer ({error})") from None
        if fault := told.get("error"):
            raise ServerError(f"model {model} cannot be {what}ed: {fault}")
