"""Whether a server still answers as it should: its processes, its folders, Triton's word and golden scores.

``supervisor.py`` says what is looked at how often, and acts on what is found here.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tritonrank.errors import ServerError, TritonRankError
from tritonrank.serve.ports import refuses
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.server_processes import (
    STOPPED,
    STUB,
    TRACED,
    Part,
    worked_between,
    worked_by,
    worked_seconds,
    youngest_seconds,
)

QUEUE_FOLDERS = "tritonrank-queue-*"
"""Below the run folder, made by the models (``admission.py``)."""
MARKER_FILE = "watched"
"""In the run folder, as long as it is the one that the server started with."""
LOOK_SECONDS = 0.2
STOPPED_LOOKS = 5
"""A part that is found stopped more often than this within STOPPED_WINDOW_SECONDS is lost."""
STOPPED_WINDOW_SECONDS = 5.0
HEALTH_SECONDS = 0.5
GOLDEN_SECONDS = 3.0
GOLDEN_DEADLINE_SECONDS = 1.0
MOST_MISSES = 2
"""Golden requests, or questions for Triton's health, that may go without their answer in a row, less one."""
IDLE_CORES = 0.2
"""A server that uses less of the processor, or waits less for it, while a request waits does not work on it."""
BUSY_SECONDS = 60.0
"""A server that answers nothing for so long counts as lost, whatever it works on."""
LOAD_SECONDS = 120.0
"""For so long one whose stubs have started processes since it last answered: a scorer's ranks, which load or wait for a
disk, and which the scorer gives up after so long (``tritonrank_runtime.shard_workers``)."""


class WrongScoreError(ServerError):
    """A golden request was answered with other scores than in process."""


class GoldenCheck(Protocol):
    """What a server has to answer; ``serve.py`` has the one for an artifact."""

    def prove(self, server: LocalTriton, cancelled: threading.Event) -> None:
        """All golden requests, patiently. Raises ServerError when one is not answered as in process."""
        ...

    def ask(self, server: LocalTriton, seconds: float) -> None:
        """One small golden request.

        Raises:
            TimeoutError: no answer in time.
            WrongScoreError: other scores than in process.
            ServerError: a failure.
        """
        ...


class Watch:
    """Looks after one server until it is lost or closed; the golden requests go from a thread of its own."""

    def __init__(self, server: LocalTriton, golden: GoldenCheck) -> None:
        self._server = server
        self._golden = golden
        self._queue_folders = {folder: _inode(folder) for folder in server.run_folder.glob(QUEUE_FOLDERS)}
        # The models make a queue folder that is gone anew, and with it the run folder, but not this file in it.
        self._marker = server.run_folder / MARKER_FILE
        with suppress(OSError):
            self._marker.touch()
        self._stops: deque[float] = deque()
        self._is_traced = False
        self._silence: str | None = None
        """why the answers say that the server is lost"""
        self._closed = threading.Event()
        threading.Thread(target=self._listen, name="golden requests", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def look(self) -> str | None:
        """What is lost; None while everything is there."""
        stopped, traced = [], False
        for part in self._server.parts:
            state = part.state()
            if state is None:
                return f"{part} ended"
            traced = traced or state.letter == TRACED
            if state.letter == STOPPED:
                stopped.append(part)
        self._is_traced = traced
        if not self._marker.exists():
            return f"the server's folder {self._server.run_folder} was removed"
        for folder, inode in self._queue_folders.items():
            if _inode(folder) != inode:
                return f"the server's folder {folder} was removed"
        return self._wake(stopped) or self._silence

    def _wake(self, stopped: Sequence[Part]) -> str | None:
        """Tell stopped parts to go on; one that was stopped too often is lost."""
        if not stopped:
            return None
        for part in stopped:
            part.send(signal.SIGCONT)
        now = time.monotonic()
        self._stops.append(now)
        while self._stops[0] < now - STOPPED_WINDOW_SECONDS:
            self._stops.popleft()
        return f"{stopped[0]} does not stay awake" if len(self._stops) > STOPPED_LOOKS else None

    def _listen(self) -> None:
        """Ask for health and golden scores until the answers say that the server is lost."""
        refusals = misses = 0
        asked_at, answered_at = -GOLDEN_SECONDS, time.monotonic()
        while not self._closed.wait(HEALTH_SECONDS):
            if self._is_traced:
                answered_at = time.monotonic()
                continue
            refusals = refusals + 1 if refuses(self._server.http_url) else 0
            if refusals >= MOST_MISSES:
                self._silence = "Triton said that it is not ready"
                return
            if not misses and time.monotonic() - asked_at < GOLDEN_SECONDS:
                continue
            asked_at, worked_before = time.monotonic(), self._worked()
            try:
                self._golden.ask(self._server, GOLDEN_DEADLINE_SECONDS)
            except TimeoutError as error:
                worked = worked_between(worked_before, self._worked())
                cores = worked / max(time.monotonic() - asked_at, 1e-3)
                is_silent_for = time.monotonic() - answered_at
                misses = misses + 1 if cores < IDLE_CORES else 0
                fault = f"no golden request was answered for {is_silent_for:.0f} s ({error})"
                if self._is_loading(is_silent_for):
                    misses = 0
                elif is_silent_for > BUSY_SECONDS:
                    misses = MOST_MISSES
            except WrongScoreError as error:
                misses, fault = MOST_MISSES, str(error)
            except TritonRankError as error:
                misses, fault = misses + 1, str(error)
            else:
                misses, fault, answered_at = 0, "", time.monotonic()
            if misses >= MOST_MISSES and not self._is_traced:
                self._silence = fault
                return

    def _is_loading(self, silent_seconds: float) -> bool:
        """Whether its stubs have started processes since it last answered, which may still be loading."""
        stubs = [part.pid for part in self._server.parts if part.name.startswith(STUB)]
        return youngest_seconds(stubs) < silent_seconds <= LOAD_SECONDS

    def _worked(self) -> dict[int, float]:
        """Seconds by process, of all who have a part in an answer: on a crowded machine each of them has to wait.

        Those are this thread, the server and its stubs, and what stubs start: a scorer's ranks, which may load.
        """
        own = worked_seconds(os.getpid(), threading.get_native_id())
        return worked_by(part.pid for part in self._server.parts) | {os.getpid(): own}


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None
