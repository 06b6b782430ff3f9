"""Watch over a server, and bring it back when a part of it is lost.

tritonserver does not look after the processes of its Python models: when one is killed, every request that needs it
fails for ever, while health goes on to say 200. So readiness follows what really answers:

- Five times a second: do keeper, tritonserver and the stubs live, are the server's folders still there?
- Twice a second: does Triton itself say that it is ready?
- Every few seconds: is a small golden request answered with the scores that the artifact gives in process? "Too busy"
  is an answer. Silence counts only while the server does no work either, so that a server with a long queue is left
  to it; after a minute it counts in any case.

A process that somebody stopped (SIGSTOP) is told to go on at once: Triton 2.51 survives pauses of less than 0.8 s, and
aborts when a stub goes on after a longer one. One that stops again and again counts as lost. A process that a debugger
holds is left alone, and so is the server's silence in the meantime.

What is lost is taken away first, the ready file before everything else, so that health tells the truth. Then a new
server starts at the same ports, and is ready once all golden requests rank as in process. A start that fails is tried
again after a pause, a few times in a row. One that came up and was lost again before it was ready is another loss, not
a failed start: whoever sends what ends it may be quicker than the golden requests.
"""

import atexit
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from tritonrank.errors import ServerError, TritonRankError
from tritonrank.serve.server import TRITON_PROCESS, LocalTriton
from tritonrank.serve.server_keeper import READY_FILE_PROCESS
from tritonrank.serve.server_processes import STOPPED, TRACED, Part, worked_seconds

RESTARTS_VARIABLE = "TRITONRANK_RESTARTS"
"""Environment variable that tells the models how often their server was brought back; a metric shows it."""
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
FAILED_STARTS = 5
"""In a row; then the server is given up."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_LINE = 1_000
STOP_SECONDS = 10.0
"""For a start that is under way to notice that it is cancelled."""


class WrongScoreError(ServerError):
    """A golden request was answered with other scores than in process."""


class LostAgainError(ServerError):
    """All models were loaded, and a part was lost before the golden requests were answered."""


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


class SupervisedTriton:
    """A tritonserver that is brought back when it is lost; a context manager like LocalTriton.

    Args:
        make: makes the server, not yet started, from options of LocalTriton.
        golden: what it has to answer.
        ready_file: is there while the server is ready, and only then. It holds how often the server was brought back
            and since when it is ready, as JSON.
        options: of LocalTriton.
    """

    def __init__(
        self,
        make: Callable[..., LocalTriton],
        golden: GoldenCheck,
        *,
        ready_file: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.restarts = 0
        """how often it was brought back"""
        self._make = make
        self._golden = golden
        self._ready_file = ready_file
        self._options = dict(options or {})
        self._stopping = threading.Event()
        self._given_up: ServerError | None = None
        self._server: LocalTriton | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._owner_pid = os.getpid()

    @property
    def server(self) -> LocalTriton:
        """The one that runs, or ran last."""
        if self._server is None:
            raise ServerError("the server was not started: call start(), or use it in a with statement")
        return self._server

    @property
    def http_url(self) -> str:
        return self.server.http_url

    @property
    def grpc_url(self) -> str:
        return self.server.grpc_url

    @property
    def metrics_url(self) -> str:
        return self.server.metrics_url

    @property
    def pid(self) -> int:
        """Process id of tritonserver; another one after each restart."""
        return self.server.pid

    def start(self) -> Self:
        """Start the server, wait until the golden requests rank as they should, and watch over it from then on.

        Raises:
            ServerError: it does not start, or does not answer as it should; this first start is tried once.
        """
        remove_ready_file(self._ready_file)
        try:
            self._start_server()
        except BaseException:
            self.stop()
            raise
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the server and remove all traces of it; may be repeated."""
        if os.getpid() != self._owner_pid:
            return
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if self._server is not None:
            with suppress(ServerError):
                remove_ready_file(self._ready_file)
            self._server.stop()
        atexit.unregister(self.stop)

    def check(self) -> None:
        """Look whether the server is there, or is being brought back.

        Raises:
            ServerError: it was given up; with the reason of the last start that failed.
        """
        _ = self.server
        if self._given_up is not None:
            raise self._given_up

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start_server(self) -> None:
        again = self._server is not None
        server = self._make(
            **self._options | (_ports_of(self._server) if self._server else {}),
            environment={RESTARTS_VARIABLE: str(self.restarts + again)},
            ready_file=self._ready_file,
            keeps_log=again,
            cancelled=self._stopping,
        )
        server.start()
        # Behind those of its own, which would otherwise end what we then bring back.
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        try:
            self._golden.prove(server, self._stopping)
            if self._stopping.is_set():
                raise ServerError("the server was told to stop while it started")
            _write_ready_file(self._ready_file, server, self.restarts + again)
        except BaseException as error:
            lost = _lost_part(server)
            server.kill()
            if lost is not None and isinstance(error, ServerError):
                raise LostAgainError(f"{lost} ended before the golden requests were answered: {error}") from None
            raise
        self._server = server

    def _supervise(self) -> None:
        try:
            self._watch_over()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may believe that the server is watched
            self._given_up = ServerError(f"the supervisor itself failed: {type(error).__name__}: {error}")

    def _watch_over(self) -> None:
        watch, seen_at = _Watch(self.server, self._golden), time.monotonic()
        while not self._stopping.wait(LOOK_SECONDS):
            lost = watch.look()
            if lost is None:
                seen_at = time.monotonic()
                continue
            watch.close()
            with suppress(ServerError):  # its folder may be gone, too
                remove_ready_file(self._ready_file)
            self.server.kill()
            if lost.startswith(TRITON_PROCESS):
                lost += f" with exit code {self.server.wait()}"
            if not self._bring_back(lost):
                return
            self.restarts += 1
            _tell(f"{lost}; back after {time.monotonic() - seen_at:.1f} s (restart {self.restarts})")
            watch, seen_at = _Watch(self.server, self._golden), time.monotonic()
        watch.close()

    def _bring_back(self, lost: str) -> bool:
        """Start until it is ready; False when that is given up, or nobody wants it any more."""
        failures = 0
        while not self._stopping.is_set():
            try:
                self._start_server()
            except LostAgainError as error:
                failures = 0
                self.restarts += 1
                _tell(f"{lost}; lost again, {error} (restart {self.restarts})")
            except Exception as error:  # noqa: BLE001 - each reason not to start is told, and tried again
                failures += 1
                if failures == FAILED_STARTS:
                    reason = f"{lost}, and {FAILED_STARTS} starts in a row failed; the last: {error}"
                    self._given_up = ServerError(reason)
                    return False
                if not self._stopping.is_set():
                    _tell(f"{lost}; start {failures} of {FAILED_STARTS} failed: {error}")
                self._stopping.wait(FIRST_PAUSE_SECONDS * 2 ** (failures - 1))
            else:
                return True
        return False


class _Watch:
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
            refusals = refusals + 1 if _refuses(self._server.http_url) else 0
            if refusals >= MOST_MISSES:
                self._silence = "Triton said that it is not ready"
                return
            if not misses and time.monotonic() - asked_at < GOLDEN_SECONDS:
                continue
            asked_at, worked_before = time.monotonic(), self._worked_seconds()
            try:
                self._golden.ask(self._server, GOLDEN_DEADLINE_SECONDS)
            except TimeoutError as error:
                cores = (self._worked_seconds() - worked_before) / max(time.monotonic() - asked_at, 1e-3)
                is_silent_for = time.monotonic() - answered_at
                misses = misses + 1 if cores < IDLE_CORES else 0
                fault = f"no golden request was answered for {is_silent_for:.0f} s ({error})"
                if is_silent_for > BUSY_SECONDS:
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

    def _worked_seconds(self) -> float:
        """Of all who have a part in an answer, this thread included: on a crowded machine each of them has to wait."""
        own = worked_seconds(os.getpid(), threading.get_native_id())
        return own + sum(worked_seconds(part.pid) for part in self._server.parts)


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _lost_part(server: LocalTriton) -> Part | None:
    """A part that has ended; its connections break a moment before it does."""
    ends = time.monotonic() + LOOK_SECONDS
    while True:
        lost = next((part for part in server.parts if part.state() is None), None)
        if lost is not None or time.monotonic() > ends:
            return lost
        time.sleep(0.01)


def _refuses(http_url: str) -> bool:
    """Whether Triton says that it is not ready, or nobody listens; a busy machine's silence is neither."""
    connection = http.client.HTTPConnection(urlsplit(http_url).netloc, timeout=GOLDEN_DEADLINE_SECONDS)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status != http.client.OK
    except TimeoutError:
        return False
    except (OSError, http.client.HTTPException):
        return True
    finally:
        connection.close()


def _ports_of(server: LocalTriton) -> dict[str, int]:
    urls = {"http_port": server.http_url, "grpc_port": server.grpc_url, "metrics_port": server.metrics_url}
    return {name: port for name, url in urls.items() if (port := urlsplit(url).port)}


def _write_ready_file(file: Path | None, server: LocalTriton, restarts: int) -> None:
    if file is None:
        return
    said = {"restarts": restarts, "since": _now(), READY_FILE_PROCESS: server.pid}
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(said) + "\n", encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ServerError(f"{file}: cannot be written ({error.strerror}); choose another with --ready-file") from None


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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _tell(what: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it any more
        print(f"{_now()} {' '.join(what.split())[:LONGEST_LINE]}", file=sys.stderr, flush=True)
