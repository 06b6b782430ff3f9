"""A child process with a log: the server under test, a generator, a peer.

Every wait has a deadline, a process that dies is found while it is waited for, and the last lines of its log are the
message. A process is started in a session of its own, dies with this program, and is stopped with all its children.
"""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parents[1]
LOOPBACK = "127.0.0.1"
READY_SECONDS = 180.0
STOP_SECONDS = 60.0
"""More than a tritonserver's keeper takes on a busy machine to clean up by itself."""
POLL_SECONDS = 0.1
LOG_LINES = 8
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None)


class SystemFaultError(RuntimeError):
    """A system did not start, died, or did not answer in time."""


class Process:
    """A child process with a log file, and with pipes if asked for.

    Args:
        command: program and arguments.
        log: where its standard error (and output, without pipes) goes.
        environment: variables on top of ours.
        folder: where it runs; None: where we do, so that relative paths mean what they say.
        pipes: keep standard input and output for talking to it.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        pipes: bool = False,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as file:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env=child_environment() | dict(environment or {}),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    @property
    def stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    def wait_until(self, is_ready: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
        """Poll until ready.

        Raises:
            SystemFaultError: the process ended, or it took too long.
        """
        deadline = time.monotonic() + seconds
        while not is_ready():
            if (code := self._popen.poll()) is not None:
                raise SystemFaultError(f"{what}: ended with exit code {code}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise SystemFaultError(f"{what}: not ready after {seconds:g} s\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def log_tail(self) -> str:
        """The last lines of the log that say something."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([line.rstrip() for line in lines if line.strip()][-LOG_LINES:])

    def stop(self) -> None:
        """Ask it to end, then end it and everything it started."""
        family = _family(self.pid) if self._popen.poll() is None else []
        with suppress(OSError):  # a worker ends with its input, whether or not it got the signal
            if self._popen.stdin:
                self._popen.stdin.close()
        with suppress(ProcessLookupError):
            self._popen.terminate()
        try:
            self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=POLL_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._popen.stdout:
            self._popen.stdout.close()


def child_environment() -> dict[str, str]:
    """Our variables, with nothing fetched from a network, and this tree on the import path.

    That libraries send nothing is among ours already: see ``tritonrank.TELEMETRY_OFF``.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def resident_bytes(pid: int, below: str | None = None) -> int:
    """Proportional set size of a process and its children: memory that they share counts once.

    Args:
        pid: the root of the tree.
        below: start at the descendant of this name instead: what launched a server is not the server.

    Raises:
        SystemFaultError: there is no such process.
    """
    family = _family(pid)
    if below is not None:
        roots = [process for process in family if process.name() == below]
        family = _family(roots[0].pid) if roots else []
    if not family:
        raise SystemFaultError(f"no process {below or pid} to measure the memory of")
    total = 0
    for process in family:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def free_port() -> int:
    """A port on the loopback address that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _die_with_parent() -> None:
    """In the child, before the program: end when the thread that started it ends, which is our main thread."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
