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
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tritonrank.errors import ServerError
from tritonrank.serve.ports import ports_of
from tritonrank.serve.ready_file import now, remove_ready_file, write_ready_file
from tritonrank.serve.server import TRITON_PROCESS, LocalTriton
from tritonrank.serve.server_processes import Part
from tritonrank.serve.server_watch import LOOK_SECONDS, GoldenCheck, Watch

RESTARTS_VARIABLE = "TRITONRANK_RESTARTS"
"""Environment variable that tells the models how often their server was brought back; a metric shows it."""
FAILED_STARTS = 5
"""In a row; then the server is given up."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_LINE = 1_000
STOP_SECONDS = 10.0
"""For a start that is under way to notice that it is cancelled."""


class Successor(Protocol):
    """What is to be served in place of what is, already known to be undamaged."""

    name: str

    def make(self, **options: Any) -> LocalTriton:
        """A server for it, not yet started."""
        ...

    golden: GoldenCheck
    """What it has to answer."""


class Succession(Protocol):
    """Says when something else is to be served (``succession.py``)."""

    def successor(self) -> Successor | None:
        """What is to be served now; None while that is served."""
        ...

    def took_over(self, successor: Successor) -> None:
        """It answers now."""
        ...

    def failed(self, successor: Successor) -> None:
        """It did not start; what was served before is again, and it is not tried once more."""
        ...


class LostAgainError(ServerError):
    """All models were loaded, and a part was lost before the golden requests were answered."""


class SupervisedTriton:
    """A tritonserver that is brought back when it is lost; a context manager like LocalTriton.

    Args:
        make: makes the server, not yet started, from options of LocalTriton.
        golden: what it has to answer.
        succession: is asked for what to serve instead; None: always the same.
        ready_file: is there while the server is ready, and only then. It holds how often the server was brought back
            and since when it is ready, as JSON.
        options: of LocalTriton.
    """

    def __init__(
        self,
        make: Callable[..., LocalTriton],
        golden: GoldenCheck,
        *,
        succession: Succession | None = None,
        ready_file: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.restarts = 0
        """how often it was brought back"""
        self._make = make
        self._golden = golden
        self._succession = succession
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

    def drain(self) -> None:
        """From now on the ready file is gone, while the server serves on."""
        file, self._ready_file = self._ready_file, None
        remove_ready_file(file)

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

    def _start_server(self, *, is_restart: bool = True) -> None:
        again = self._server is not None
        restarts = self.restarts + (again and is_restart)
        server = self._make(
            **self._options | (ports_of(self._server) if self._server else {}),
            environment={RESTARTS_VARIABLE: str(restarts)},
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
            write_ready_file(self._ready_file, server.pid, restarts)
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
        watch, seen_at = Watch(self.server, self._golden), time.monotonic()
        while not self._stopping.wait(LOOK_SECONDS):
            if self._succession and (successor := self._succession.successor()):
                watch.close()
                if not self._hand_over(self._succession, successor):
                    return
                watch, seen_at = Watch(self.server, self._golden), time.monotonic()
                continue
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
            tell(f"{lost}; back after {time.monotonic() - seen_at:.1f} s (restart {self.restarts})")
            watch, seen_at = Watch(self.server, self._golden), time.monotonic()
        watch.close()

    def _hand_over(self, succession: Succession, successor: Successor) -> bool:
        """Stop the server and start the successor at its ports; where that does not start, what was served before.

        Returns:
            False when nothing is served any more.
        """
        started = time.monotonic()
        with suppress(ServerError):
            remove_ready_file(self._ready_file)
        self.server.stop()  # requests in flight are answered
        before = self._make, self._golden
        self._make, self._golden = successor.make, successor.golden
        try:
            self._start_server(is_restart=False)
        except Exception as error:  # noqa: BLE001 - whatever the reason, the one before has to come back
            self._make, self._golden = before
            if self._stopping.is_set():
                return False
            succession.failed(successor)
            tell(f"{successor.name} did not start, what was served before is brought back: {error}")
            if not self._bring_back(f"{successor.name} did not start"):
                return False
            self.restarts += 1
            return True
        succession.took_over(successor)
        tell(f"{successor.name} is served at the same ports; no answers for {time.monotonic() - started:.1f} s")
        return True

    def _bring_back(self, lost: str) -> bool:
        """Start until it is ready; False when that is given up, or nobody wants it any more."""
        failures = 0
        while not self._stopping.is_set():
            try:
                self._start_server()
            except LostAgainError as error:
                failures = 0
                self.restarts += 1
                tell(f"{lost}; lost again, {error} (restart {self.restarts})")
            except Exception as error:  # noqa: BLE001 - each reason not to start is told, and tried again
                failures += 1
                if failures == FAILED_STARTS:
                    reason = f"{lost}, and {FAILED_STARTS} starts in a row failed; the last: {error}"
                    self._given_up = ServerError(reason)
                    return False
                if not self._stopping.is_set():
                    tell(f"{lost}; start {failures} of {FAILED_STARTS} failed: {error}")
                self._stopping.wait(FIRST_PAUSE_SECONDS * 2 ** (failures - 1))
            else:
                return True
        return False


def _lost_part(server: LocalTriton) -> Part | None:
    """A part that has ended; its connections break a moment before it does."""
    ends = time.monotonic() + LOOK_SECONDS
    while True:
        lost = next((part for part in server.parts if part.state() is None), None)
        if lost is not None or time.monotonic() > ends:
            return lost
        time.sleep(0.01)


def tell(what: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it any more
        print(f"{now()} {' '.join(what.split())[:LONGEST_LINE]}", file=sys.stderr, flush=True)
