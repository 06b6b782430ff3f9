"""The gateway as a child process beside a Triton that this process watches over: rerank dialects over HTTP.

Its package is an extra. Where it is not installed, Triton serves alone, and the line that brings it is said.

This process listens, and the child is handed the sockets. So a gateway that was lost, and one that serves what was
there before a promotion, are replaced without a caller who is refused: connections wait for whoever accepts next.
"""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tritonrank.errors import ServerError
from tritonrank.serve.running import RunningServer
from tritonrank.serve.supervisor import tell

PACKAGE = "tritonrank_gateway"
NEEDED = (PACKAGE, "fastapi", "msgspec", "prometheus_client", "uvicorn", "uvloop")
INSTALL = "pip install 'tritonrank[gateway]'"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05
BACKLOG = 1_024
MOST_RESTARTS, RESTART_WINDOW_SECONDS = 5, 60.0
"""More often than that in so short a time, and starting again does not help."""


def missing_packages(needed: Sequence[str] = NEEDED) -> list[str]:
    """What the gateway needs and is not installed."""
    return [name for name in needed if importlib.util.find_spec(name) is None]


class GatewayChild:
    """``python -m tritonrank_gateway`` in front of a running server; use it as a context.

    To whoever waits (``run_until_signalled``) it looks like the server itself, and is stopped before the server behind
    it, so that no accepted request loses its answer. A gateway that ends by itself is started again at the same ports;
    one that ends again and again is gone.

    Args:
        server: in front of it.
        port: of the dialects; 0 takes a free one.
        host: address to listen on.
        name: of the model, as the dialects tell it.
        deadline_seconds: what a request may take.
        further: more of its own command line. It is asked again and again: when it says something else, a gateway with
            that takes over.
    """

    def __init__(
        self,
        server: RunningServer,
        port: int,
        host: str = "127.0.0.1",
        name: str = "",
        deadline_seconds: float = 10.0,
        further: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._server = server
        self._scratch = tempfile.TemporaryDirectory(prefix="tritonrank-gateway-")
        self._log_file = Path(self._scratch.name) / "log"
        self._command = [sys.executable, "-m", PACKAGE, "--triton", urlsplit(server.grpc_url).netloc]
        self._command += ["--host", host, "--deadline-s", str(deadline_seconds)]
        self._command += ["--model-name", name, "--no-access-log"]
        self._place = host, port
        self._further = further
        self._sockets: list[socket.socket] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._runs_with: list[str] = []
        self._refused: list[str] | None = None
        self._restarted_at: deque[float] = deque(maxlen=MOST_RESTARTS)
        self._starts = 0
        self.url = ""
        self.metrics_url = ""

    @property
    def http_url(self) -> str:
        return self._server.http_url

    @property
    def grpc_url(self) -> str:
        return self._server.grpc_url

    @property
    def pid(self) -> int:
        """Process id of the gateway; another one after each restart."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        host, port = self._place
        try:
            self._sockets = [_listen(host, port), _listen(host, 0)]
            self._runs_with = list(self._further())
            self._process = self._start(self._runs_with)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Bring a gateway back that has ended; let another one take over if something else is to be served.

        Raises:
            ServerError: it, or the server behind it, is gone for good.
        """
        self._server.check()
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            self._start_again(f"the gateway ended with {_ending(code)}")
        wanted = list(self._further())
        if wanted == self._runs_with:
            self._refused = None
        elif wanted != self._refused:
            self._hand_over(wanted)

    def stop(self) -> None:
        """Let running requests finish, then end; may be repeated. The server stays for whoever started it."""
        if self._process is not None:
            _end(self._process)
        for one in self._sockets:
            one.close()
        self._scratch.cleanup()

    def _start_again(self, lost: str) -> None:
        began = time.monotonic()
        while True:
            now = time.monotonic()
            if len(self._restarted_at) == MOST_RESTARTS and now - self._restarted_at[0] < RESTART_WINDOW_SECONDS:
                raise ServerError(f"{lost}, again and again. {self._last_lines()}")
            self._restarted_at.append(now)
            try:
                self._process = self._start(self._runs_with)
            except ServerError as error:
                tell(f"{lost}; it did not start: {error}")
            else:
                tell(f"{lost}; it is back after {time.monotonic() - began:.1f} s")
                return

    def _hand_over(self, wanted: list[str]) -> None:
        """Start a second gateway at the same sockets, and end the first one once the second takes requests."""
        before = self._process
        assert before is not None
        try:
            self._process = self._start(wanted)
        except ServerError as error:
            self._refused = wanted
            tell(f"the gateway stays with what it has: {error}")
            return
        self._runs_with = wanted
        _end(before)
        tell("the gateway serves what was promoted, at the same ports")

    def _start(self, further: Sequence[str]) -> subprocess.Popen[bytes]:
        """A gateway that takes requests.

        Raises:
            ServerError: it ended, or took too long.
        """
        self._starts += 1
        ready_file = Path(self._scratch.name) / f"ready-{self._starts}.json"
        descriptors = [one.fileno() for one in self._sockets]
        command = [*self._command, "--listen-on", ",".join(map(str, descriptors)), "--ready-file", str(ready_file)]
        with self._log_file.open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which stops the gateway first.
            process = subprocess.Popen(
                [*command, *further], stdout=log, stderr=log, start_new_session=True, pass_fds=descriptors
            )
        try:
            self._wait(process, ready_file)
        except BaseException:
            _end(process)
            raise
        told = json.loads(ready_file.read_text(encoding="utf-8"))
        self.url, self.metrics_url = told["url"], told["metrics_url"]
        return process

    def _wait(self, process: subprocess.Popen[bytes], ready_file: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready_file.is_file():
            self._server.check()
            if (code := process.poll()) is not None:
                raise ServerError(f"the gateway ended with {_ending(code)}. {self._last_lines()}")
            if time.monotonic() > deadline:
                raise ServerError(f"the gateway is not ready after {START_SECONDS:.0f} s. {self._last_lines()}")
            time.sleep(POLL_SECONDS)

    def _last_lines(self) -> str:
        lines: list[str] = []
        with suppress(OSError):
            lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return "Last lines of its log:\n" + "\n".join(f"  {line}" for line in lines)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerError(
            f"{host}:{port}: cannot listen there ({error.strerror or error}). Choose another port: --port 0 takes a "
            "free one"
        ) from error
    return listener


def _ending(code: int) -> str:
    return f"code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let running requests finish, then end it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
