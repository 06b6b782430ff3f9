"""What the kernel says of a server's processes: /proc alone, as the image that serves has no psutil."""

import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

STOPPED = "T"
TRACED = "t"
"""By a debugger: it is meant so."""
ENDED = frozenset("ZXx")
"""Also a process whose parent has not taken note of it yet."""
TICKS = os.sysconf("SC_CLK_TCK")
"""Of the clock in a second."""
STUB_MODEL = "model.py"
STUB = "the stub of "
KILL_SECONDS = 3.0
"""For killed processes to be gone: milliseconds, unless a disk or a driver keeps them."""


class ProcessState(NamedTuple):
    """One look at a process."""

    letter: str
    """R, S, D, T ...; proc(5)"""
    parent: int
    started: int
    """clock ticks since boot: with the number it names one process for ever"""


def process_state(pid: int) -> ProcessState | None:
    """What a process does; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    words = stat[stat.rindex(")") + 2 :].split()  # a program's name may hold blanks and brackets
    return ProcessState(words[0], int(words[1]), int(words[19]))


def worked_seconds(pid: int, thread: int | None = None) -> float:
    """How long the threads of a process, or one of them, have used a core, or waited for one that others used."""
    nanoseconds = 0
    for schedule in Path(f"/proc/{pid}/task").glob(f"{thread or '*'}/schedstat"):
        with suppress(OSError):  # the thread has ended
            used, waited, _ = map(int, schedule.read_text().split())
            nanoseconds += used + waited
    return nanoseconds / 1e9


def with_descendants(pids: Iterable[int]) -> set[int]:
    """Processes, and each that these or their children started and that still has its parent."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (state := process_state(int(entry.name))):
            children[state.parent].append(int(entry.name))
    found: set[int] = set()
    left = [*pids]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children[pid]
    return found


def youngest_seconds(pids: Collection[int]) -> float:
    """The age of the process that these, or their children, started last; infinity where they have none."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    states = map(process_state, with_descendants(pids) - set(pids))
    return min((now - state.started / TICKS for state in states if state), default=math.inf)


def worked_by(pids: Iterable[int]) -> dict[int, float]:
    """What ``worked_seconds`` says of each process, and of each that these or their children started."""
    return {pid: worked_seconds(pid) for pid in with_descendants(pids)}


def worked_between(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Seconds of work; what a process did that has ended since is not known, and counts for nothing."""
    return sum(max(0.0, seconds - before.get(pid, 0.0)) for pid, seconds in after.items())


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM; 0 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@dataclass(frozen=True)
class Part:
    """A process that a server cannot do without."""

    name: str
    pid: int
    started: int

    @classmethod
    def of(cls, name: str, pid: int) -> Self | None:
        """The process as it is; None when it has ended."""
        state = process_state(pid)
        return cls(name, pid, state.started) if state and state.letter not in ENDED else None

    def state(self) -> ProcessState | None:
        """None when it has ended, though another process may have its number."""
        state = process_state(self.pid)
        return state if state and state.started == self.started and state.letter not in ENDED else None

    def send(self, number: signal.Signals) -> None:
        """A signal to this process; does nothing when it has ended."""
        if self.state() is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


def children_of(parent: int) -> list[Part]:
    """The living children of a process; a stub is called by its model."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            state = process_state(pid)
            if state is not None and state.parent == parent and (part := Part.of(_name_of(pid), pid)):
                found.append(part)
    return sorted(found, key=lambda part: part.pid)


def kill_parts(parts: Sequence[Part], wake: Callable[[], None]) -> None:
    """End a server and its stubs at once, and see them gone.

    Args:
        parts: the server first; what it has started since they were noted is killed with them.
        wake: called in between, so that who waits for their end can.
    """
    killed = list(parts)
    for part in killed[:1]:
        part.send(signal.SIGSTOP)  # so that it starts nothing any more
        killed += children_of(part.pid)
    for part in killed:
        part.send(signal.SIGKILL)
    with suppress(ProcessLookupError):
        wake()
    deadline = time.monotonic() + KILL_SECONDS
    while any(part.state() for part in killed) and time.monotonic() < deadline:
        time.sleep(0.01)
    for part in killed:  # where we are a container's first process, those without a parent are ours
        with suppress(ChildProcessError):
            os.waitpid(part.pid, os.WNOHANG)


def wake(parts: Iterable[Part]) -> None:
    """Tell those that somebody stopped to go on."""
    for part in parts:
        if (state := part.state()) and state.letter == STOPPED:
            part.send(signal.SIGCONT)


def stubs_of(parts: Iterable[Part], models: Collection[str]) -> list[Part]:
    """Those that compute for models."""
    return [part for part in parts if part.name.removeprefix(STUB) in models and part.name.startswith(STUB)]


def _name_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    # triton_python_backend_stub REPOSITORY/MODEL/VERSION/model.py ...
    model = next((Path(word).parts[-3] for word in words if word.endswith(f"/{STUB_MODEL}")), None)
    return f"{STUB}{model}" if model else Path(words[0] if words else "").name or "a child"
