"""Keep one tritonserver, and leave nothing behind when it ends.

``server.py`` runs this file as a small process of its own, between itself and tritonserver. Every ending is one path:
stop(), a crash and ``kill -9`` of the program that wanted the server all make the keeper's standard input readable;
then the keeper stops the server, kills what is left of its process group (a stub runs for each Python model), and
removes its shared memory and its run folder. A signal handler or ``atexit`` in that program could not do so, as
SIGKILL runs neither; PR_SET_PDEATHSIG there would fire too early, when the *thread* that started the server ends.

Runs on the standard library alone (``python -I -S``), so that it starts in milliseconds.
Usage: server_keeper.py PARENT_PID RUN_FOLDER EXIT_TIMEOUT_SECONDS READY_FILE COMMAND...
The run folder's name is also the prefix of the server's shared memory. The ready file, if it is not empty and holds
this server's process id, goes before everything else: nobody else may be left to take it away. Prints the server's
process id, and exits with its exit code (128 + signal number if a signal ended it).
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
READY_FILE_PROCESS = "server_process"
"""The field of the ready file that holds tritonserver's process id."""
REAP_SECONDS = 2.0
"""Killed processes are gone in milliseconds, unless a disk or a driver keeps them."""


def main(
    parent_pid: int,
    run_folder: Path,
    exit_timeout_seconds: float,
    ready_file: Path | None,
    command: list[str],
    *,
    processes: Path = Path("/proc"),
    environments: Path = Path("/tmp"),
) -> int:
    """Run a server to its end; the module says how.

    Args:
        parent_pid: of the program that wants it.
        run_folder: is removed at the end.
        exit_timeout_seconds: between asking the server to end and killing it.
        ready_file: see the module; None: there is none.
        command: the server.
        processes: where the system shows all processes.
        environments: where Python backends unpack environments. The backend has the name in its code and does not look
            at TMPDIR.

    Returns:
        The server's exit code.
    """
    stop_ordered = False

    def order_stop(_signal: int, _frame: object) -> None:
        nonlocal stop_ordered
        stop_ordered = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, order_stop)
    environments_before, servers_before = _environments(environments), _servers(processes)
    libc = ctypes.CDLL(None)
    # The stubs of a server that was killed become our children, not those of a container's first process, which may
    # not know that it has to take note of their end.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = None
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,  # the log file; our own standard output is only for the process id
            process_group=0,
            # Should the keeper itself be killed, the server ends too. Safe here: this process has one thread.
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
        print(server.pid, flush=True)
        # A forked child of the program holds a copy of our standard input's other end, so look at the parent as well.
        while server.poll() is None and not stop_ordered and os.getppid() == parent_pid:
            readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
            stop_ordered = stop_ordered or bool(readable)
        _remove_ready_file(ready_file, server.pid)
        if server.poll() is None:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(exit_timeout_seconds)
    finally:
        if server is not None:
            _kill_process_group(server)
        # Only where it can be nobody else's: a server whose folder was taken away aborts when it ends.
        if server is not None and server.returncode != 0 and _servers(processes) <= servers_before:
            left = _environments(environments) - environments_before
            if len(left) == 1:
                with suppress(OSError):  # not empty: not ours after all
                    left.pop().rmdir()
        remove_traces(run_folder)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def remove_traces(run_folder: Path) -> None:
    """Remove the folder and the shared memory of a server that has ended."""
    for region in Path("/dev/shm").glob(run_folder.name + "*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(run_folder, ignore_errors=True)


def _remove_ready_file(file: Path | None, server_process: int) -> None:
    """Unless it is already that of a server which came after this one."""
    if file is not None:
        with suppress(OSError, ValueError, AttributeError):
            if json.loads(file.read_text(encoding="utf-8")).get(READY_FILE_PROCESS) == server_process:
                file.unlink()


def _environments(folder: Path) -> set[Path]:
    """Folders that Python backends unpack environments into; a killed server leaves its own, empty in our case."""
    return set(folder.glob("python_env_*"))


def _servers(processes: Path) -> set[str]:
    """Process ids of all running tritonservers."""
    servers = set()
    for process in processes.glob("[0-9]*"):
        with suppress(OSError):  # ended while we look
            if (process / "comm").read_text() == "tritonserver\n":
                servers.add(process.name)
    return servers


def _kill_process_group(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + REAP_SECONDS
    with suppress(ChildProcessError):  # that was the last
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)


if __name__ == "__main__":
    ready_file = Path(sys.argv[4]) if sys.argv[4] else None
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), ready_file, sys.argv[5:]))
