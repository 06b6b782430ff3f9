"""Nights on and on: each in a process of its own, at times that stay the same however long a night takes.

What a night holds (memory, threads, descriptors) ends with its process, and so does whatever goes wrong in it. Due
times are counted from the beginning, so that nights every 24 hours stay at their hour; one that was overslept, because
the night before took too long or the machine was off, is taken once, at the next due time.
"""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from rich.console import Console

from tritonrank.errors import RecipeError

SECONDS = {"m": 60.0, "h": 3_600.0, "d": 86_400.0}
SHORTEST_SECONDS = 60.0
STOP_SECONDS = 30.0
"""For a night to end after SIGTERM before it is killed; it loses the step that it is at."""
LOOK_SECONDS = 0.5

console = Console()


def period_seconds(written: str) -> float:
    """Such as 24h, 90m or 1d.

    Raises:
        RecipeError: it is none, or shorter than a minute.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", written.strip())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if seconds < SHORTEST_SECONDS:
        raise RecipeError(f"--every {written}: expected a number and m, h or d, a minute or more, such as 24h")
    return seconds


def next_due(began: float, period: float, now: float) -> float:
    """When the next night begins, unix seconds: the first of began, began + period, ... that is not over."""
    passed = max(0, int((now - began) // period) + 1)
    return began + passed * period


def every(
    period: float,
    command: Sequence[str],
    *,
    stopping: threading.Event | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Take a night now and at each due time, until SIGTERM or SIGINT. A night that fails costs that night alone.

    Args:
        period: seconds between beginnings.
        command: of one night; its exit code is told.
        stopping: set to end; by default what the two signals set.
        clock: unix seconds.
    """
    stop = stopping or _stopped_by_signals()
    began = clock()
    while not stop.is_set():
        code = _one_night(command, stop)
        if stop.is_set():
            break
        due = next_due(began, period, clock())
        how = {0: "ended well", 1: "was refused"}.get(code, f"came upon a fault (exit code {code})")
        _say(f"the night {how}; the next one begins at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(due))} UTC")
        while clock() < due and not stop.wait(min(LOOK_SECONDS, max(0.0, due - clock()))):
            pass  # the clock may be set meanwhile
    _say("stopped; a night that was cut off goes on with the next run")


def _one_night(command: Sequence[str], stop: threading.Event) -> int:
    """Its exit code; a night that is told to stop gets SIGTERM, and is waited for."""
    with subprocess.Popen(command) as night:
        try:
            while not stop.wait(LOOK_SECONDS):
                if (code := night.poll()) is not None:
                    return code
            night.terminate()
            try:
                return night.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                night.kill()
                return night.wait()
        except BaseException:
            night.kill()
            raise


def _stopped_by_signals() -> threading.Event:
    stop = threading.Event()

    def note(_: int, __: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return stop


def _say(text: str) -> None:
    console.print(f"{'learn':<10} {text}", markup=False, highlight=False, soft_wrap=True)
