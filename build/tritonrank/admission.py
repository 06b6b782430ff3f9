"""Bound the scorer's queue and keep deadlines, without Triton's queue policies.

Any queue policy (``max_queue_size``, a default timeout) makes Triton's dynamic batcher stop preparing the next batch
while an instance is busy; a request that arrives just then can wait 500 ms for the batcher to look again (seen on
2.51: half of the requests at four in flight). So the batcher runs without a policy, and this file does its work:
``tokenize`` admits a request only while fewer than the limit wait for the scorer, and gives it a deadline; ``score``
says how many it has started, and answers expired ones without computing them. The words of both refusals are Triton's.

The scorers' counts are files of a few bytes in the server's temporary folder, one per instance, because each model runs
in a process of its own.

``assemble`` copies this file beside the server's models: it imports only the standard library.
"""

import os
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUEUE_FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"
_STATE = struct.Struct("<q?")


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
        started = sum(_read(path)[0] for path in self._folder.iterdir())
        if started < self._started:  # a scorer was loaded again: what waited for it is gone
            self._waiting.clear()
        for _ in range(min(started - self._started, len(self._waiting))):
            self._waiting.popleft()
        self._started = started
        lost_before = time.monotonic() - self._longest_wait_seconds
        while self._waiting and self._waiting[0] < lost_before:
            self._waiting.popleft()


class StartedCounter:
    """The scorer's side: counts the requests that it has started, or refused because they had expired.

    It also says whether it computes at the moment, so that instances can share out the cores: one alone takes them all.
    """

    def __init__(self, instance: str, folder: Path | None = None) -> None:
        self._folder = folder or counter_folder()
        self._path = self._folder / instance
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._count = 0
        self._write(is_busy=False)

    def add(self, requests: int) -> None:
        self._count += requests
        self._write(is_busy=False)

    @contextmanager
    def busy(self) -> Iterator[int]:
        """Inside the block this instance counts as busy; gives the number of busy ones, itself included."""
        self._write(is_busy=True)
        try:
            yield max(1, sum(_read(path)[1] for path in self._folder.iterdir()))
        finally:
            self._write(is_busy=False)

    def _write(self, *, is_busy: bool) -> None:
        os.pwrite(self._file, _STATE.pack(self._count, is_busy), 0)

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


def _read(path: Path) -> tuple[int, bool]:
    """Requests started, and whether the instance computes; nothing of an instance that is just starting or gone."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0, False
    return _STATE.unpack(data) if len(data) == _STATE.size else (0, False)
