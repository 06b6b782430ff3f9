"""What the kernel says of a server's processes: /proc alone, as the image that serves has no psutil."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

STOPPED = "T"
TRACED = "t"
"""By a debugger: it is meant so."""
ENDED = frozenset("ZXx")
"""Also a process whose parent has not taken note of it yet."""
STUB_MODEL = "model.py"


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


def _name_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    # triton_python_backend_stub REPOSITORY/MODEL/VERSION/model.py ...
    model = next((Path(word).parts[-3] for word in words if word.endswith(f"/{STUB_MODEL}")), None)
    return f"the stub of {model}" if model else Path(words[0] if words else "").name or "a child"
