"""Bound the scorer's queue and keep deadlines, without Triton's queue policies.

Any queue policy (``max_queue_size``, a default timeout) makes Triton's dynamic batcher stop preparing the next batch
while an instance is busy; a request that arrives just then can wait 500 ms for the batcher to look again (seen on
2.51: half of the requests at four in flight). So the batcher runs without a policy, and this file does its work:
``tokenize`` admits a request only while fewer than the limit wait for the scorer, and gives it a deadline; ``score``
says how many it has started, and answers expired ones without computing them. The words of both refusals are Triton's.

The scorers' counts are 8-byte files in the server's temporary folder, one per instance, because each model runs in a
process of its own.

``assemble`` copies this file beside the server's models: it imports only the standard library.
"""

import os
import struct
import tempfile
import time
from collections import deque
from pathlib import Path

QUEUE_FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"


class QueueFullError(RuntimeError):
    """As many requests wait for the scorer as may wait."""


class Admission:
    """The gate in ``tokenize``: how many admitted requests has the scorer not started yet?

    Args:
        most_waiting: requests that may wait; one more is refused.
        longest_wait_seconds: after this an admitted request counts as lost (cancelled on its way, say).
        folder: where the scorers count; default: a folder of this server.
    """

    def __init__(self, most_waiting: int, longest_wait_seconds: float, folder: Path | None = None) -> None:
        self._most_waiting = most_waiting
        self._longest_wait_seconds = longest_wait_seconds
        self._folder = folder or counter_folder()
        self._waiting: deque[float] = deque()
        self._started = 0

    def check_room(self) -> None:
        """Raise QueueFullError unless one more may wait."""
        self._forget_started()
        if len(self._waiting) >= self._most_waiting:
            raise QueueFullError(QUEUE_FULL)

    def admitted(self) -> None:
        """One more is on its way to the scorer."""
        self._waiting.append(time.monotonic())

    def _forget_started(self) -> None:
        started = sum(_read_count(path) for path in self._folder.iterdir())
        if started < self._started:  # a scorer was loaded again: what waited for it is gone
            self._waiting.clear()
        for _ in range(min(started - self._started, len(self._waiting))):
            self._waiting.popleft()
        self._started = started
        lost_before = time.monotonic() - self._longest_wait_seconds
        while self._waiting and self._waiting[0] < lost_before:
            self._waiting.popleft()


class StartedCounter:
    """The scorer's side: counts the requests that it has started, or refused because they had expired."""

    def __init__(self, instance: str, folder: Path | None = None) -> None:
        self._path = (folder or counter_folder()) / instance
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._count = 0
        self.add(0)

    def add(self, requests: int) -> None:
        self._count += requests
        os.pwrite(self._file, struct.pack("<q", self._count), 0)

    def close(self) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)


def deadline_after(asked_microseconds: int, longest_microseconds: int) -> int:
    """When a request expires, on this machine's monotonic clock in microseconds, which all processes share.

    Args:
        asked_microseconds: the request's own timeout; 0 = none.
        longest_microseconds: the server's limit, which also holds where the request asks for more.
    """
    allowed = min(asked_microseconds or longest_microseconds, longest_microseconds)
    return time.monotonic_ns() // 1_000 + allowed


def is_expired(deadline_microseconds: int) -> bool:
    return time.monotonic_ns() // 1_000 > deadline_microseconds


def counter_folder() -> Path:
    """A folder that all models of one server find: they are children of the same process."""
    folder = Path(tempfile.gettempdir()) / f"tritonrank-queue-{os.getppid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _read_count(path: Path) -> int:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    return int(struct.unpack("<q", data)[0]) if len(data) == 8 else 0
