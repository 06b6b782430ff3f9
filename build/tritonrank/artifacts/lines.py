"""Files of JSON lines that only grow: a line is there whole or not at all, whoever is killed when."""

import json
import os
from pathlib import Path
from typing import Any

from tritonrank.errors import storage_error


def append_line(path: Path, told: dict[str, Any], mode: int = 0o666) -> None:
    """Append one line, and wait until the disk has it.

    Args:
        path: the file; it is made where it is not there.
        told: what the line says.
        mode: of a file that is made.

    Raises:
        StorageError: it cannot be written.
    """
    line = (json.dumps(told) + "\n").encode()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # somebody was killed within a line
                line = b"\n" + line
            try:
                written = os.write(descriptor, line)
                if written < len(line):
                    os.write(descriptor, line[written:])  # raises why
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        if (fault := storage_error(error, path)) is not None:
            raise fault from error
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines, oldest first; one that was cut off by the end of a process or a disk is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict):
            found.append(told)
    return found
