"""Where a server's output goes, and what can be quoted of it afterwards.

``FileLog`` keeps it in a file. ``RelayedLog`` passes it on to our own standard error and keeps only its end in memory:
in a container that is where logs belong, and nothing grows there. Of both the last lines can be read while the server
runs and after it has ended.
"""

import os
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tritonrank.errors import ServerError

KEPT_BYTES = 1 << 20
RELAY_END_SECONDS = 5.0
"""The pipe ends with the last process that holds it; a stub that outlives its server must not keep us."""
NOISE = re.compile(
    r"^[+|]"  # tables of settings
    r"|\] ?$"  # their headings
    r"|CUDA driver|CudaDriverHelper|CUDA memory pool|NVML|DCGM|libnvidia|libcuda"  # no GPU here
    r"|Timeout \d+: Found|in-flight requests|^Signal \(\d+\) received|^\s*$"  # an orderly exit
)


class ServerLog(Protocol):
    @property
    def descriptor(self) -> int:
        """The open file that the server writes to."""
        ...

    def tail(self) -> bytes:
        """The last KEPT_BYTES; works after close(), too."""
        ...

    def close(self) -> None:
        """Take in what is left, once the server has ended; may be repeated."""
        ...


class FileLog:
    """The log in a file.

    Args:
        path: the file, overwritten.
        keeps: go on after what it holds already, which counts as no part of this log.

    Raises:
        ServerError: it cannot be written there.
    """

    def __init__(self, path: Path, *, keeps: bool = False) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b" if keeps else "w+b")
        except OSError as error:
            raise ServerError(f"{path}: the server's log cannot be written there ({error.strerror})") from None
        self._last = b""
        self._start = os.fstat(self.descriptor).st_size

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def tail(self) -> bytes:
        if self._file.closed:
            return self._last
        # pread: the server writes through the same file description, so a seek here would move its position.
        size = os.fstat(self.descriptor).st_size
        return os.pread(self.descriptor, KEPT_BYTES, max(self._start, size - KEPT_BYTES))

    def close(self) -> None:
        self._last = self.tail()
        self._file.close()


class RelayedLog:
    """The log on our standard error as it comes, its end in memory."""

    def __init__(self) -> None:
        self._read_end, self.descriptor = os.pipe()
        self._kept = bytearray()
        self._is_open = True
        self._relay = threading.Thread(target=self._pass_on, name="server log", daemon=True)
        self._relay.start()

    def tail(self) -> bytes:
        return bytes(self._kept)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.descriptor)
        self._relay.join(RELAY_END_SECONDS)

    def _pass_on(self) -> None:
        with os.fdopen(self._read_end, "rb", buffering=0) as pipe:
            while chunk := pipe.read(1 << 16):
                self._kept += chunk
                del self._kept[:-KEPT_BYTES]
                # Whoever read our standard error may be gone; a server whose pipe is full would stand still.
                with suppress(OSError, ValueError):
                    sys.stderr.buffer.write(chunk)
                    sys.stderr.buffer.flush()


def readable_lines(log: bytes) -> list[str]:
    """The log's lines that tell something, with a model's traceback on lines of its own."""
    lines = log.decode(errors="replace").splitlines()
    told = "\n".join(line for line in lines if not NOISE.search(line)).replace("\\n", "\n    ")
    return [line for line in told.splitlines() if line.strip(' "')]


def models_that_failed(log: bytes) -> list[str]:
    """One line for each model that did not load: its name, and the first line of what it said."""
    faults = re.findall(r"failed to load '([^']+)' version \d+: (.*?)(?:\\n|\"?$)", log.decode(errors="replace"), re.M)
    return [f"model {name} failed to load: {reason}" for name, reason in faults]


def still_loading(log: bytes) -> str:
    """The models that a server is loading, in words; empty where there are none."""
    text = log.decode(errors="replace")
    ended = set(re.findall(r"(?:successfully loaded|failed to load) '([^']+)'", text))
    loading = sorted({name for name in re.findall(r'"loading: (.+):\d+"', text) if name not in ended})
    return f"still loading: {', '.join(loading)}" if loading else ""
