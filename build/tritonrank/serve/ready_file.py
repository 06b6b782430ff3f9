"""The file that is there while a server is ready, and only then."""

import json
import time
from pathlib import Path

from tritonrank.artifacts import write_whole
from tritonrank.errors import ServerError
from tritonrank.serve.server_keeper import READY_FILE_PROCESS


def write_ready_file(file: Path | None, process: int, restarts: int) -> None:
    """Say that a server is ready; does nothing without a file.

    Args:
        file: where to say so.
        process: id of tritonserver.
        restarts: how often it was brought back.

    Raises:
        ArtifactError: the file cannot be written.
    """
    if file is None:
        return
    said = {"restarts": restarts, "since": now(), READY_FILE_PROCESS: process}
    write_whole(file, json.dumps(said) + "\n", "choose another with --ready-file")


def remove_ready_file(ready_file: Path | None) -> None:
    """Nothing is ready, or not yet.

    Raises:
        ServerError: the file cannot be removed.
    """
    if ready_file is not None:
        try:
            ready_file.unlink(missing_ok=True)
        except OSError as error:
            raise ServerError(
                f"{ready_file}: cannot be removed ({error.strerror}); choose another with --ready-file"
            ) from None


def now() -> str:
    """UTC, to the second, as ISO 8601 has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
