"""Start and stop a real tritonserver on this machine: in development, in tests, and inside the container.

    with LocalTriton(repository) as server:
        ...  # server.http_url, server.grpc_url and server.metrics_url answer, every model is ready

The server is a container's own or the one in the ``nvidia-pytriton`` wheel (``triton_install.py``); both get the same
options, from here. It loads models at start only, refuses the protocols that security advisories were about, and
listens on the loopback address unless a container's server is told otherwise. Leaving the block, a crash and
``kill -9`` all end the same way: no process, no shared memory and no temporary folder remains (``server_keeper.py``
sees to it).
"""

import atexit
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tritonrank import server_keeper
from tritonrank.errors import ServerError
from tritonrank.server_log import (
    FileLog,
    RelayedLog,
    ServerLog,
    models_still_loading,
    models_that_failed,
    readable_lines,
)
from tritonrank.triton_install import LOOPBACK, TritonInstall, prepare_triton

EVERY_ADDRESS = "0.0.0.0"
POLL_SECONDS = 0.1
START_ATTEMPTS = 3
"""A free port is found, released, then bound by the server; another program may take it in between."""
PORT_TAKEN = "already in use"
RUN_FOLDER_PREFIX = "tritonrank-"
LOG_TAIL_LINES = 25
STOP_MARGIN_SECONDS = 15.0
"""Unloading the models and the keeper's own work, after the requests in flight had their exit timeout."""
UNUSED_PROTOCOLS = "shared-memory,model-repository,trace,logging"
"""Clients could read, write or fill files and memory of the server, or change its models, through these; nothing here
needs them. They answer to a secret that nobody knows."""


class LocalTriton:
    """One tritonserver process; use it as a context manager, or call start() and stop().

    Args:
        repository: folder with one folder per model (``config.pbtxt`` and version folders).
        host: address to listen on; other than 127.0.0.1 only for a container's server, whose ports are published by
            whoever runs the container. 0.0.0.0 is every address.
        http_port: 0 takes a free one. The same holds for grpc_port and metrics_port.
        ready_timeout_seconds: how long all models together may take to load.
        exit_timeout_seconds: how long requests in flight may take to finish at stop; then they are cut off.
        log_file: where the server's log goes (overwritten); by default a temporary file, read with log_tail().
        shows_log: pass the log on to our standard error instead, as a container should.
        extra_arguments: further tritonserver arguments, such as ``--cache-config=local,size=1048576``.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = LOOPBACK,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        ready_timeout_seconds: float = 120.0,
        exit_timeout_seconds: int = 10,
        log_file: Path | None = None,
        shows_log: bool = False,
        extra_arguments: Sequence[str] = (),
    ) -> None:
        self.repository = repository
        self.host = host
        self.ready_timeout_seconds = ready_timeout_seconds
        self.exit_timeout_seconds = exit_timeout_seconds
        self.log_file = log_file
        self.shows_log = shows_log
        self.extra_arguments = tuple(extra_arguments)
        self._wanted_ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
        self._ports: dict[str, int] = {}
        self._keeper: subprocess.Popen[str] | None = None
        self._log: ServerLog | None = None
        self._is_stopped = False
        self._run_folder: Path | None = None
        self._pid: int | None = None
        self._owner_pid = os.getpid()

    @property
    def http_url(self) -> str:
        return f"http://{self._reached_at}:{self._port('http_port')}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self._reached_at}:{self._port('grpc_port')}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._reached_at}:{self._port('metrics_port')}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver itself."""
        if self._pid is None:
            raise ServerError("the server was not started: call start(), or use it in a with statement")
        return self._pid

    def start(self) -> Self:
        """Start the server and wait until every model is ready.

        Raises:
            ServerError: not installed, no such repository, a port is taken, a model does not load, or it takes
                too long.
        """
        if self._keeper is not None:
            raise ServerError("the server was started already: make a new LocalTriton for another run")
        if not self.repository.is_dir():
            raise ServerError(f"{self.repository}: no such model repository. Make one: tritonrank build RECIPE")
        try:
            for attempt in range(1, START_ATTEMPTS + 1):
                self._ports = _choose_ports(self._wanted_ports, self.host)
                self._launch()
                try:
                    self._wait_until_ready()
                    return self
                except ServerError:
                    self.stop()
                    if attempt == START_ATTEMPTS or PORT_TAKEN not in self.log_tail():
                        raise
        except BaseException:  # KeyboardInterrupt too
            self.stop()
            raise
        raise AssertionError("the last attempt returns or raises")

    def stop(self) -> None:
        """Stop the server and remove all traces of it; does nothing when it is stopped already."""
        # A forked copy of this program (a data loader's worker, say) must not stop its parent's server.
        if self._keeper is None or self._log is None or self._is_stopped or os.getpid() != self._owner_pid:
            return
        self._is_stopped = True
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with suppress(BrokenPipeError):  # it has ended already
            if not self._keeper.stdin.closed:
                self._keeper.stdin.write("stop\n")
                self._keeper.stdin.close()
        try:
            self._keeper.wait(self.exit_timeout_seconds + STOP_MARGIN_SECONDS)
        except subprocess.TimeoutExpired:  # not even the keeper answers
            for group in (self._pid, self._keeper.pid):
                with suppress(ProcessLookupError):
                    os.killpg(group or self._keeper.pid, signal.SIGKILL)
            self._keeper.wait()
        self._keeper.stdout.close()
        if self._run_folder is not None:  # gone already, unless somebody killed the keeper
            shutil.rmtree(self._run_folder, ignore_errors=True)
        self._log.close()
        atexit.unregister(self.stop)

    def check(self) -> None:
        """Look whether the server still runs.

        Raises:
            ServerError: it was not started, was stopped, or died; with the last lines of its log.
        """
        pid = self.pid
        assert self._keeper is not None
        exit_code = self._keeper.poll()
        if exit_code is not None:
            assert self._log is not None
            self._log.close()
            failed = "".join(f"\n  {fault}" for fault in models_that_failed(self._read_log()))
            raise ServerError(
                f"tritonserver (process {pid}) ended with exit code {exit_code}{failed and ':' + failed}\n"
                + self._log_report()
            )

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Block until the server ends by itself or is stopped by another thread; gives its exit code.

        Raises:
            TimeoutError: it still runs after ``timeout_seconds``.
        """
        _ = self.pid
        assert self._keeper is not None
        try:
            return self._keeper.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"tritonserver still runs after {timeout_seconds} s") from None

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the server's log, without what is harmless on a machine without a GPU.

        Works after the server has ended, too.
        """
        return "\n".join(readable_lines(self._read_log())[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _reached_at(self) -> str:
        """Where a program on this machine finds it."""
        return LOOPBACK if self.host == EVERY_ADDRESS else self.host

    def _port(self, name: str) -> int:
        _ = self.pid
        return self._ports[name]

    def _launch(self) -> None:
        run_folder = self._run_folder = Path(tempfile.mkdtemp(prefix=RUN_FOLDER_PREFIX))
        try:
            install = prepare_triton(run_folder, self.host)
            self._log = RelayedLog() if self.shows_log else FileLog(self.log_file or run_folder / "server.log")
            keeper_arguments = [os.getpid(), run_folder, self.exit_timeout_seconds + STOP_MARGIN_SECONDS / 3]
            self._keeper = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", server_keeper.__file__, *map(str, keeper_arguments)),
                    *self._server_command(install, shared_memory_prefix=run_folder.name),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log.descriptor,
                text=True,
                env=install.environment,
                start_new_session=True,  # Ctrl-C is for us to handle; it must not reach the server directly
            )
        except BaseException:
            shutil.rmtree(run_folder, ignore_errors=True)
            raise
        self._is_stopped = False
        atexit.register(self.stop)
        assert self._keeper.stdout is not None
        first_line = self._keeper.stdout.readline()
        if not first_line:
            raise ServerError(f"tritonserver could not be executed.\n{self._log_report()}")
        self._pid = int(first_line)

    def _server_command(self, install: TritonInstall, *, shared_memory_prefix: str) -> list[str]:
        closed = f"{UNUSED_PROTOCOLS}:closed={secrets.token_urlsafe(32)}"
        return [
            str(install.executable),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={install.backends}",
            f"--cache-directory={install.caches}",
            f"--http-port={self._ports['http_port']}",
            f"--grpc-port={self._ports['grpc_port']}",
            f"--metrics-port={self._ports['metrics_port']}",
            f"--http-address={self.host}",
            f"--grpc-address={self.host}",
            f"--metrics-address={self.host}",
            f"--http-restricted-api={closed}",
            f"--grpc-restricted-protocol={closed}",
            "--model-control-mode=none",
            "--exit-on-error=true",
            "--strict-readiness=true",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={self.exit_timeout_seconds}",
            # Names that are ours, so that the keeper can find what a killed server left in /dev/shm.
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
            *install.options,
            *self.extra_arguments,
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_seconds
        # The server opens HTTP once the models are loaded, and the metrics port last.
        waiting_for = [f"{self.http_url}/v2/health/ready", self.metrics_url]
        while waiting_for:
            if _answers(waiting_for[0]):
                waiting_for.pop(0)
                continue
            self.check()
            if time.monotonic() > deadline:
                loading = models_still_loading(self._read_log())
                reason = f"still loading: {', '.join(loading)}" if loading else f"no answer from {waiting_for[0]}"
                raise ServerError(
                    f"tritonserver was not ready after {self.ready_timeout_seconds:g} s ({reason}). "
                    f"Look for the cause below, or allow more time with --ready-timeout.\n{self._log_report()}"
                )
            time.sleep(POLL_SECONDS)
        self.check()  # it was our server that answered

    def _read_log(self) -> bytes:
        return self._log.tail() if self._log else b""

    def _log_report(self) -> str:
        where = f"; all of it: {self.log_file}" if self.log_file else ""
        return f"Last lines of its log{where}\n{textwrap.indent(self.log_tail(), '  ')}"


def run_until_signalled(server: LocalTriton) -> None:
    """Wait for SIGINT (Ctrl-C) or SIGTERM, then stop the server. Call it from the main thread.

    Raises:
        ServerError: the server died by itself.
    """
    signalled = threading.Event()
    previous = {number: signal.signal(number, lambda *_: signalled.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not signalled.wait(POLL_SECONDS):
            server.check()
    finally:
        # Before stopping, so that a second Ctrl-C need not wait for slow requests; the keeper finishes the work.
        for number, handler in previous.items():
            signal.signal(number, handler)
        server.stop()


def end_when_terminated() -> None:
    """From now on SIGTERM ends this program in order, while models load too. Call it from the main thread.

    The first process of a container has no default action for it: without this ``docker stop`` would wait in vain.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _choose_ports(wanted: Mapping[str, int], host: str = LOOPBACK) -> dict[str, int]:
    """Replace every 0 by a free port, all of them different.

    Raises:
        ServerError: a port that was asked for is taken, or asked for twice.
    """
    with ExitStack() as sockets:
        ports = {}
        # Given ports first, so that a free one is never one of them.
        for name, port in sorted(wanted.items(), key=lambda item: item[1] == 0):
            probe = sockets.enter_context(socket.socket())
            # As the server does: a port whose last connection closed a moment ago counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port != 0))
            try:
                probe.bind((host, port))
                probe.listen()
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise ServerError(
                    f"port {port} cannot be used on {host} ({reason}). "
                    f"Choose another with --{name.replace('_', '-')}, or 0 for a free one"
                ) from None
            ports[name] = probe.getsockname()[1]
    return ports


def _answers(url: str) -> bool:
    """Whether a GET on our own server gives 200; never through a proxy that the environment names."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=5)
    try:
        connection.request("GET", address.path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
