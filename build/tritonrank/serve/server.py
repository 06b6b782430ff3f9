"""Start and stop a real tritonserver on this machine: in development, in tests, and inside the container.

    with LocalTriton(repository) as server:
        ...  # server.http_url, server.grpc_url and server.metrics_url answer, every model is ready

The server is a container's own or the one in the ``nvidia-pytriton`` wheel (``triton_install.py``); both get the same
options, from here. It loads models at start only, refuses the protocols that security advisories were about, and
listens on the loopback address unless a container's server is told otherwise. Leaving the block, a crash and
``kill -9`` all end the same way: no process, no shared memory and no temporary folder remains (``server_keeper.py``
sees to it). Nobody brings a lost server back here: ``supervisor.py`` does.
"""

import atexit
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tritonrank.errors import ServerError
from tritonrank.serve import server_keeper
from tritonrank.serve.grpc_tls import check_tls
from tritonrank.serve.ports import answers, choose_ports
from tritonrank.serve.run_folder import MoreModels, link_repository, make_run_folder
from tritonrank.serve.running import POLL_SECONDS
from tritonrank.serve.server_command import server_command
from tritonrank.serve.server_log import (
    FileLog,
    RelayedLog,
    ServerLog,
    models_that_failed,
    readable_lines,
    still_loading,
)
from tritonrank.serve.server_processes import Part, children_of, kill_parts, stubs_of, wake
from tritonrank.serve.triton_install import LOOPBACK, check_host, is_container, prepare_triton

EVERY_ADDRESS = "0.0.0.0"
START_ATTEMPTS = 3
PASSING = (b"already in use", b"boost::interprocess::lock_exception")
"""In the log of a start that the next need not share: another program took a port that was found free, or on a crowded
machine server and stub met in a lock of their shared memory (triton-inference-server/server#5949)."""
RUN_FOLDER_PREFIX = "tritonrank-"
LOG_TAIL_LINES = 25
STOP_MARGIN_SECONDS = 15.0
"""Unloading the models and the keeper's own work, after the requests in flight had their exit timeout."""
KILL_SECONDS = 3.0
"""For the keeper to tidy up after a server that was killed; what it left undone by then is done here."""
TRITON_PROCESS = "tritonserver"
REPOSITORY_LINKS = "models"
"""Below the run folder: the repository as Triton sees it."""


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
        keeps_log: append to ``log_file`` instead.
        extra_arguments: further tritonserver arguments, such as ``--cache-config=local,size=1048576``.
        environment: further environment variables of the server and its models.
        ready_file: is removed with the server if it names this one's process (``supervisor.py`` writes it).
        cancelled: once it is set, start() gives up.
        tls: folder with tls.crt and tls.key of gRPC, and ca.crt where callers must show a certificate by it.
        more: what else it serves; None: the repository alone, and nothing is ever loaded later.
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
        keeps_log: bool = False,
        extra_arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ready_file: Path | None = None,
        cancelled: threading.Event | None = None,
        tls: Path | None = None,
        more: MoreModels | None = None,
    ) -> None:
        self.repository = repository
        self.host = LOOPBACK if host == "localhost" else host
        self.ready_timeout_seconds = ready_timeout_seconds
        self.exit_timeout_seconds = exit_timeout_seconds
        self.log_file = log_file
        self.shows_log = shows_log
        self.keeps_log = keeps_log
        self.extra_arguments = tuple(extra_arguments)
        self.environment = dict(environment or {})
        self.ready_file = ready_file
        self.tls = None if tls is None else tls.absolute()
        self._more = more
        self._cancelled = cancelled or threading.Event()
        self._wanted_ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
        self._ports: dict[str, int] = {}
        self._keeper: subprocess.Popen[str] | None = None
        self._log: ServerLog | None = None
        self.is_ending = False
        """it was told to stop"""
        self._run_folder: Path | None = None
        self._pid: int | None = None
        self._parts: list[Part] = []
        self._needed: Collection[str] | None = None
        self._owner_pid = os.getpid()

    @property
    def http_url(self) -> str:
        return f"http://{LOOPBACK if self.tls else self.reached_at}:{self._port('http_port')}"

    @property
    def grpc_url(self) -> str:
        return f"{'grpcs' if self.tls else 'grpc'}://{self.reached_at}:{self._port('grpc_port')}"

    @property
    def checked_at(self) -> str:
        """The URL for our own requests: without TLS as callers have it, else HTTP, which needs no certificate here."""
        return self.http_url if self.tls else self.grpc_url

    @property
    def metrics_url(self) -> str:
        return f"http://{self.reached_at}:{self._port('metrics_port')}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver itself."""
        if self._pid is None:
            raise ServerError("the server was not started: call start(), or use it in a with statement")
        return self._pid

    @property
    def parts(self) -> Sequence[Part]:
        """The processes that it cannot do without: its keeper, tritonserver and the stubs, as they were when it
        became ready, or as need() said later."""
        return tuple(self._parts)

    def need(self, models: Collection[str], leaving: Collection[Part] = ()) -> None:
        """From now on it cannot do without the stubs of these models; it can without those of others.

        Args:
            models: by name.
            leaving: processes that are ending as they should.
        """
        self._needed = models
        self._note_parts()
        self._parts = [part for part in self._parts if part not in leaving]

    @property
    def run_folder(self) -> Path:
        """What it has to itself until it ends."""
        if self._run_folder is None:
            raise ServerError("the server was not started: call start(), or use it in a with statement")
        return self._run_folder

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
        check_host(self.host)
        if self.tls is not None:
            check_tls(self.tls)
        try:
            for attempt in range(1, START_ATTEMPTS + 1):
                self._ports = choose_ports(self._wanted_ports, self.host)
                self._launch()
                try:
                    self._wait_until_ready()
                    return self
                except ServerError:
                    self.stop()
                    if attempt == START_ATTEMPTS or not any(reason in self._read_log() for reason in PASSING):
                        raise
        except BaseException:  # KeyboardInterrupt too
            self.stop()
            raise
        raise AssertionError("the last attempt returns or raises")

    def stop(self) -> None:
        """Stop the server and remove all traces of it; does nothing when it is stopped already.

        Requests in flight are answered first, within the exit timeout.
        """
        if self._may_end():
            keeper, _ = self._keeper_and_log()
            if keeper.poll() is not None:  # somebody killed it: what it kept is nobody's
                self._kill_parts()
            self._end(self.exit_timeout_seconds + STOP_MARGIN_SECONDS)

    def kill(self) -> None:
        """Remove the server and all traces of it at once, whatever state it is in; requests in flight are lost."""
        if self._may_end():
            self._kill_parts()
            self._end(KILL_SECONDS)

    def _may_end(self) -> bool:
        # A forked copy of this program (a data loader's worker, say) must not stop its parent's server.
        if self._keeper is None or self._log is None or self.is_ending or os.getpid() != self._owner_pid:
            return False
        self.is_ending = True
        return True

    def _keeper_and_log(self) -> tuple[subprocess.Popen[str], ServerLog]:
        assert self._keeper is not None
        assert self._log is not None
        return self._keeper, self._log

    def _kill_parts(self) -> None:
        """Kill tritonserver and its stubs, and let the keeper go on, should somebody have stopped it."""
        keeper, _ = self._keeper_and_log()
        servers = [part for part in self._parts if part.pid != keeper.pid]
        kill_parts(servers, lambda: keeper.send_signal(signal.SIGCONT))

    def _end(self, seconds: float) -> None:
        """Wait so long for the keeper, which stops the server and tidies up; then do what it left undone."""
        keeper, log = self._keeper_and_log()
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with suppress(BrokenPipeError):  # it has ended already
            if not keeper.stdin.closed:
                keeper.stdin.write("stop\n")
                keeper.stdin.close()
        try:
            keeper.wait(seconds)
        except subprocess.TimeoutExpired:  # not even the keeper answers
            for group in (self._pid, keeper.pid):
                with suppress(ProcessLookupError):
                    os.killpg(group or keeper.pid, signal.SIGKILL)
            keeper.wait()
        keeper.stdout.close()
        if self._run_folder is not None:  # gone already, unless somebody killed the keeper
            server_keeper.remove_traces(self._run_folder)
        log.close()
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
        tail = "\n".join(readable_lines(self._read_log())[-lines:])
        if self._run_folder is None:
            return tail
        return tail.replace(str(self._run_folder / REPOSITORY_LINKS), str(self.repository))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def reached_at(self) -> str:
        """Where a program on this machine finds it."""
        return LOOPBACK if self.host == EVERY_ADDRESS else self.host

    def _port(self, name: str) -> int:
        _ = self.pid
        return self._ports[name]

    def _launch(self) -> None:
        run_folder = self._run_folder = make_run_folder(RUN_FOLDER_PREFIX, holds_programs=not is_container())
        try:
            install = prepare_triton(run_folder)
            link_repository(self.repository, run_folder / REPOSITORY_LINKS)
            controlled = self._more.lay_out(run_folder / REPOSITORY_LINKS) if self._more else ()
            log_file = self.log_file or run_folder / "server.log"
            self._log = RelayedLog() if self.shows_log else FileLog(log_file, keeps=self.keeps_log)
            exit_seconds = self.exit_timeout_seconds + STOP_MARGIN_SECONDS / 3
            ready_file = self.ready_file.absolute() if self.ready_file else ""
            self._keeper = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(Path(server_keeper.__file__).resolve())),
                    *(str(argument) for argument in (os.getpid(), run_folder, exit_seconds, ready_file)),
                    *server_command(
                        install,
                        repository=run_folder / REPOSITORY_LINKS,
                        host=self.host,
                        ports=self._ports,
                        exit_timeout_seconds=self.exit_timeout_seconds,
                        shared_memory_prefix=run_folder.name,
                        tls=self.tls,
                        controlled=controlled,
                    ),
                    *self.extra_arguments,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log.descriptor,
                text=True,
                env=install.environment | self.environment,
                # A stub looks for modules in its working folder first: it must be one that holds none.
                cwd=run_folder,
                start_new_session=True,  # Ctrl-C is for us to handle; it must not reach the server directly
            )
        except BaseException:
            server_keeper.remove_traces(run_folder)
            raise
        self.is_ending = False
        atexit.register(self.stop)
        assert self._keeper.stdout is not None
        first_line = self._keeper.stdout.readline()
        if not first_line:
            raise ServerError(f"tritonserver could not be executed.\n{self._log_report()}")
        self._pid = int(first_line)
        self._note_parts()

    def _note_parts(self) -> None:
        keeper, _ = self._keeper_and_log()
        named = (Part.of(TRITON_PROCESS, self.pid), Part.of("the server's keeper", keeper.pid))
        children = children_of(self.pid)
        self._parts = [*filter(None, named), *(children if self._needed is None else stubs_of(children, self._needed))]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_seconds
        # The server opens HTTP once the models are loaded, and the metrics port last.
        waiting_for = [f"{self.http_url}/v2/health/ready", self.metrics_url]
        while waiting_for:
            if answers(waiting_for[0]):
                waiting_for.pop(0)
                continue
            self.check()
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready after {self.ready_timeout_seconds:g} s "
                    f"({still_loading(self._read_log()) or f'no answer from {waiting_for[0]}'}). "
                    f"Look for the cause below, or allow more time with --ready-timeout.\n{self._log_report()}"
                )
            if self._cancelled.wait(POLL_SECONDS):
                raise ServerError("the server was told to stop while it started")
            self._note_parts()
            wake(self._parts)  # stopped while it loads, one would keep us waiting in vain
        self.check()  # it was our server that answered
        self._note_parts()

    def _read_log(self) -> bytes:
        return self._log.tail() if self._log else b""

    def _log_report(self) -> str:
        where = f"; all of it: {self.log_file}" if self.log_file else ""
        return f"Last lines of its log{where}\n{textwrap.indent(self.log_tail(), '  ')}"
