"""The gateway as a child process beside a Triton that this process watches over: rerank dialects over HTTP.

Its package is an extra. Where it is not installed, Triton serves alone, and the line that brings it is said.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tritonrank.errors import ServerError
from tritonrank.serve.running import RunningServer

PACKAGE = "tritonrank_gateway"
NEEDED = (PACKAGE, "fastapi", "msgspec", "prometheus_client", "uvicorn")
INSTALL = "pip install 'tritonrank[gateway]'"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05
MOST_RESTARTS, RESTART_WINDOW_SECONDS = 5, 60.0
"""More often than that in so short a time, and starting again does not help."""


def missing_packages() -> list[str]:
    """What the gateway needs and is not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


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
        further: more of its own command line.
    """

    def __init__(
        self,
        server: RunningServer,
        port: int,
        host: str = "127.0.0.1",
        name: str = "",
        deadline_seconds: float = 10.0,
        further: Sequence[str] = (),
    ) -> None:
        self._server = server
        self._scratch = tempfile.TemporaryDirectory(prefix="tritonrank-gateway-")
        self._ready_file = Path(self._scratch.name) / "ready.json"
        self._log_file = Path(self._scratch.name) / "log"
        self._command = [sys.executable, "-m", PACKAGE, "--triton", urlsplit(server.grpc_url).netloc]
        self._command += ["--host", host, "--port", str(port), "--metrics-port", "0"]
        self._command += ["--ready-file", str(self._ready_file), "--deadline-s", str(deadline_seconds)]
        self._command += ["--model-name", name, "--no-access-log", *further]
        self._process: subprocess.Popen[bytes] | None = None
        self._restarted_at: deque[float] = deque(maxlen=MOST_RESTARTS)
        self.url = ""
        self.metrics_url = ""

    @property
    def http_url(self) -> str:
        return self._server.http_url

    @property
    def grpc_url(self) -> str:
        return self._server.grpc_url

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Bring a gateway back that has ended; raise ServerError when it, or the server behind it, is gone for good."""
        self._server.check()
        if self._process is not None and (code := self._process.poll()) is not None:
            self._start_again(code)

    def stop(self) -> None:
        """Let running requests finish, then end; may be repeated. The server stays for whoever started it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._scratch.cleanup()

    def _start(self) -> None:
        self._ready_file.unlink(missing_ok=True)
        with self._log_file.open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which stops the gateway first.
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        self._wait()

    def _start_again(self, code: int) -> None:
        now = time.monotonic()
        if len(self._restarted_at) == MOST_RESTARTS and now - self._restarted_at[0] < RESTART_WINDOW_SECONDS:
            raise ServerError(f"the gateway ended with code {code}, again and again. {self._last_lines()}")
        self._restarted_at.append(now)
        for flag, url in (("--port", self.url), ("--metrics-port", self.metrics_url)):
            self._command[self._command.index(flag) + 1] = str(urlsplit(url).port)
        self._start()
        seconds = time.monotonic() - now
        print(f"the gateway ended with code {code}; it is back after {seconds:.1f} s", file=sys.stderr, flush=True)

    def _wait(self) -> None:
        """Until it takes requests.

        Raises:
            ServerError: it ended, or took too long.
        """
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._ready_file.is_file():
            self._server.check()
            if (code := self._process.poll()) is not None:
                raise ServerError(f"the gateway ended with code {code}. {self._last_lines()}")
            if time.monotonic() > deadline:
                raise ServerError(f"the gateway is not ready after {START_SECONDS:.0f} s. {self._last_lines()}")
            time.sleep(POLL_SECONDS)
        told = json.loads(self._ready_file.read_text(encoding="utf-8"))
        self.url, self.metrics_url = told["url"], told["metrics_url"]

    def _last_lines(self) -> str:
        lines: list[str] = []
        with suppress(OSError):
            lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return "Last lines of its log:\n" + "\n".join(f"  {line}" for line in lines)
