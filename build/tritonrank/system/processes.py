"""Which process is meant, among all that may share a study or a model store, and whether it still runs."""

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

SAME_START_SECONDS = 5.0
"""How far two readings of when a process began may differ, as the clock is set; a number is given again much later."""


def this_process() -> str:
    """Names this process: MACHINE/NAMESPACE:PID:START."""
    return f"{this_machine()}:{os.getpid()}:{psutil.Process(os.getpid()).create_time():.0f}"


def is_alive(named: str) -> bool | None:
    """Whether the process that ``this_process`` named runs; None: it is of another machine, or not known."""
    machine, _, rest = named.partition(":")
    if machine != this_machine():
        return None
    pid, _, started = rest.partition(":")
    try:
        process = psutil.Process(int(pid))
        is_same = abs(process.create_time() - float(started)) < SAME_START_SECONDS
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    except ValueError:
        return None


def pid_of(named: str) -> int:
    """The number in a name that ``this_process`` gave on this machine."""
    return int(named.rsplit(":", 2)[1])


@cache
def this_machine() -> str:
    """Its name, and what tells apart containers with the same name: the start of the kernel, and the namespace of
    process numbers."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    with suppress(OSError):
        return f"{platform.node()}/{boot.read_text().strip()[:8]}-{namespace.stat().st_ino}"
    return f"{platform.node()}/{psutil.boot_time():.0f}"
