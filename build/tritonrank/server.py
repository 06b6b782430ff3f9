"""Start and stop a real tritonserver on this machine, for development, tests and the laptop demo.

    with LocalTriton(repository) as server:
        ...  # server.http_url, server.grpc_url and server.metrics_url answer, every model is ready

The server is the one in the ``nvidia-pytriton`` wheel (``triton_wheel.py`` finds its parts), a release with published
security advisories. So it listens on the loopback address only, loads models at start only, and refuses the protocols
that advisories were about. Leaving the block, a crash and ``kill -9`` all end the same way: no process, no shared
memory and no temporary folder remains (``server_keeper.py`` sees to it). Production runs a current NGC container.
"""

import atexit
import http.client
import os
import re
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
from typing import IO, Self
from urllib.parse import urlsplit

from tritonrank import server_keeper, triton_wheel
from tritonrank.errors import ServerError

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.1
START_ATTEMPTS = 3
"""A free port is found, released, then bound by the server; another program may take it in between."""
PORT_TAKEN = "already in use"
RUN_FOLDER_PREFIX = "tritonrank-"
LOG_TAIL_LINES = 25
LOG_TAIL_BYTES = 1 << 20
STOP_MARGIN_SECONDS = 15.0
"""Unloading the models and the keeper's own work, after the requests in flight had their exit timeout."""
UNUSED_PROTOCOLS = "shared-memory,trace,logging"
"""Clients could read, write or fill files and memory of the server through these; nothing here needs them."""
NOISE = re.compile(
    r"^[+|]"  # tables of settings
    r"|\] ?$"  # their headings
    r"|CUDA driver|CudaDriverHelper|CUDA memory pool|NVML|DCGM|libnvidia|libcuda"  # no GPU here
    r"|Timeout \d+: Found|in-flight requests|^Signal \(\d+\) received|^\s*$"  # an orderly exit
)


class LocalTriton:
    """One tritonserver process; use it as a context manager, or call start() and stop().

    Args:
        repository: folder with one folder per model (``config.pbtxt`` and version folders).
        http_port: port on 127.0.0.1; 0 takes a free one. The same holds for grpc_port and metrics_port.
        ready_timeout_seconds: how long all models together may take to load.
        exit_timeout_seconds: how long requests in flight may take to finish at stop; then they are cut off.
        log_file: where the server's log goes (overwritten); by default a temporary file, read with log_tail().
        extra_arguments: further tritonserver arguments, such as ``--cache-config=local,size=1048576``.
    """

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        ready_timeout_seconds: float = 120.0,
        exit_timeout_seconds: int = 10,
        log_file: Path | None = None,
        extra_arguments: Sequence[str] = (),
    ) -> None:
        self.repository = repository
        self.ready_timeout_seconds = ready_timeout_seconds
        self.exit_timeout_seconds = exit_timeout_seconds
        self.log_file = log_file
        self.extra_arguments = tuple(extra_arguments)
        self._wanted_ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
        self._ports: dict[str, int] = {}
        self._keeper: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None
        self._last_log = b""
        self._run_folder: Path | None = None
        self._pid: int | None = None
        self._owner_pid = os.getpid()

    @property
    def http_url(self) -> str:
        return f"http://{LOOPBACK}:{self._port('http_port')}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{LOOPBACK}:{self._port('grpc_port')}"

    @property
    def metrics_url(self) -> str:
        return f"http://{LOOPBACK}:{self._port('metrics_port')}/metrics"

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
        wheel = triton_wheel.find_triton_wheel()
        try:
            for attempt in range(1, START_ATTEMPTS + 1):
                self._ports = _choose_ports(self._wanted_ports)
                self._launch(wheel)
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
        if self._keeper is None or self._log is None or os.getpid() != self._owner_pid:
            return
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
        self._last_log = self._read_log()
        self._log.close()
        self._log = None
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
            failed = "".join(f"\n  {fault}" for fault in _models_that_failed(self._read_log()))
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
        return "\n".join(_readable_lines(self._read_log())[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _port(self, name: str) -> int:
        _ = self.pid
        return self._ports[name]

    def _launch(self, wheel: triton_wheel.TritonWheel) -> None:
        run_folder = self._run_folder = Path(tempfile.mkdtemp(prefix=RUN_FOLDER_PREFIX))
        try:
            backends = run_folder / "backends"
            triton_wheel.make_backend_folder(wheel, backends)
            environment = triton_wheel.server_environment(wheel, os.environ, run_folder)
            self._log = _open_log(self.log_file or run_folder / "server.log")
            keeper_arguments = [os.getpid(), run_folder, self.exit_timeout_seconds + STOP_MARGIN_SECONDS / 3]
            self._keeper = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", server_keeper.__file__, *map(str, keeper_arguments)),
                    *self._server_command(wheel, backends, shared_memory_prefix=run_folder.name),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us to handle; it must not reach the server directly
            )
        except BaseException:
            shutil.rmtree(run_folder, ignore_errors=True)
            raise
        atexit.register(self.stop)
        assert self._keeper.stdout is not None
        first_line = self._keeper.stdout.readline()
        if not first_line:
            raise ServerError(f"tritonserver could not be executed.\n{self._log_report()}")
        self._pid = int(first_line)

    def _server_command(
        self, wheel: triton_wheel.TritonWheel, backends: Path, *, shared_memory_prefix: str
    ) -> list[str]:
        closed = f"{UNUSED_PROTOCOLS}:closed={secrets.token_urlsafe(32)}"
        return [
            str(wheel.executable),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={backends}",
            f"--cache-directory={wheel.caches}",
            f"--http-port={self._ports['http_port']}",
            f"--grpc-port={self._ports['grpc_port']}",
            f"--metrics-port={self._ports['metrics_port']}",
            f"--http-address={LOOPBACK}",
            f"--grpc-address={LOOPBACK}",
            f"--metrics-address={LOOPBACK}",
            f"--http-restricted-api={closed}",
            f"--grpc-restricted-protocol={closed}",
            "--model-control-mode=none",
            "--exit-on-error=true",
            "--strict-readiness=true",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={self.exit_timeout_seconds}",
            # Names that are ours, so that the keeper can find what a killed server left in /dev/shm.
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
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
                loading = _models_still_loading(self._read_log())
                reason = f"still loading: {', '.join(loading)}" if loading else f"no answer from {waiting_for[0]}"
                raise ServerError(
                    f"tritonserver was not ready after {self.ready_timeout_seconds:g} s ({reason}). "
                    f"Look for the cause below, or allow more time with --ready-timeout.\n{self._log_report()}"
                )
            time.sleep(POLL_SECONDS)
        self.check()  # it was our server that answered

    def _read_log(self) -> bytes:
        if self._log is None:
            return self._last_log
        # pread: the server writes through the same file description, so a seek here would move its position.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))

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


def _choose_ports(wanted: Mapping[str, int]) -> dict[str, int]:
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
                probe.bind((LOOPBACK, port))
                probe.listen()
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise ServerError(
                    f"port {port} cannot be used on {LOOPBACK} ({reason}). "
                    f"Choose another with --{name.replace('_', '-')}, or 0 for a free one"
                ) from None
            ports[name] = probe.getsockname()[1]
    return ports


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w+b")
    except OSError as error:
        raise ServerError(f"{path}: the server's log cannot be written there ({error.strerror})") from None


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


def _readable_lines(log: bytes) -> list[str]:
    """The log's lines that tell something, with a model's traceback on lines of its own."""
    lines = log.decode(errors="replace").splitlines()
    told = "\n".join(line for line in lines if not NOISE.search(line)).replace("\\n", "\n    ")
    return [line for line in told.splitlines() if line.strip(' "')]


def _models_that_failed(log: bytes) -> list[str]:
    """One line for each model that did not load: its name, and the first line of what it said."""
    faults = re.findall(r"failed to load '([^']+)' version \d+: (.*?)(?:\\n|\"?$)", log.decode(errors="replace"), re.M)
    return [f"model {name} failed to load: {reason}" for name, reason in faults]


def _models_still_loading(log: bytes) -> list[str]:
    text = log.decode(errors="replace")
    ended = set(re.findall(r"(?:successfully loaded|failed to load) '([^']+)'", text))
    return sorted({name for name in re.findall(r'"loading: (.+):\d+"', text) if name not in ended})
