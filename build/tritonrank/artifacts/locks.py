"""One writer per folder of artifacts: a second build of the same recipe waits for the first.

The lock is the operating system's (``fcntl.lockf``), so that it ends with the process that holds it, however that ends.
It holds among processes of one machine; on network file systems only where these pass locks on. Readers take none.

The operating system's lock is the whole process's, so which of its threads has it is noted here: a service that is
asked twice at once waits as two commands would.
"""

import fcntl
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

LOCK_FILE = ".lock"
POLL_SECONDS = 0.2

console = Console()

_guard = threading.Condition()
_held: dict[Path, "_Held"] = {}


@dataclass
class _Held:
    """A lock of this process, who of it took it, and how often."""

    descriptor: int
    thread: threading.Thread
    times: int = 1


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only one that writes into a folder; waits, and says for whom, where another process or thread does.

    A thread that holds the lock already goes on at once. Where no lock can be made (read-only folders, file systems
    without locks) there is none: what cannot be written says so itself.
    """
    taken = take(folder, wait=True)
    try:
        yield
    finally:
        if taken:
            release(folder)


def take(folder: Path, *, wait: bool) -> bool | None:
    """Take the lock of a folder for this thread; whoever got True has to ``release`` it.

    Args:
        folder: is made where it is not there.
        wait: until the lock is free, rather than to give up.

    Returns:
        True: this thread holds it. False: another thread or process does. None: there can be no lock here.
    """
    was_told = False
    with _guard:
        while isinstance(outcome := _take_now(folder), str):
            if not wait:
                return False
            if not was_told:
                waiting = f"{folder}: {outcome} writes here; waiting until it ends"
                console.print(waiting, highlight=False, markup=False, soft_wrap=True)
                was_told = True
            _guard.wait(POLL_SECONDS)  # without the guard; a thread that releases ends it, a process does not
        return outcome


def release(folder: Path) -> None:
    """Give back what ``take`` gave; any thread may."""
    place = _place(folder)
    with _guard:
        held = _held[place]
        held.times -= 1
        if held.times:
            return
        del _held[place]
        with suppress(OSError):  # before it is unlocked: whoever locks it next looks whether it is still there
            (folder / LOCK_FILE).unlink()
        os.close(held.descriptor)
        _guard.notify_all()


def _take_now(folder: Path) -> str | bool | None:
    """True: taken; a text: who holds it; None: there can be no lock."""
    place = _place(folder)
    if (held := _held.get(place)) is not None:  # to open the file again, and close it, would end the lock
        if held.thread is not threading.current_thread():
            return "another thread of this process"
        held.times += 1
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    outcome = _try(folder / LOCK_FILE)
    if isinstance(outcome, int):
        _held[place] = _Held(outcome, threading.current_thread())
        return True
    return outcome


def _place(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # the working folder is gone, or links lead in a circle
        return folder


def _try(path: Path) -> int | str | None:
    """The descriptor of the lock; or who holds it; or None where there can be none."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _holder(descriptor)
            os.close(descriptor)
            return holder
        except OSError as error:
            os.close(descriptor)
            console.print(
                f"{path}: no locks on this file system ({error.strerror})",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            return None
        if _is_there(path, descriptor):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)  # its holder removed it between our opening and our locking


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    command = " ".join(Path(word).name if number == 0 else word for number, word in enumerate(sys.argv))
    signature = {"pid": os.getpid(), "host": platform.node(), "since": since, "command": command}
    with suppress(OSError):  # a full disk does not matter: the lock holds, only the waiting ones know less
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(signature).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        signature: dict[str, Any] = json.loads(os.pread(descriptor, 65_536, 0))
        return (
            f"process {signature['pid']} on {signature['host']} ({signature['command']}), since {signature['since']},"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
