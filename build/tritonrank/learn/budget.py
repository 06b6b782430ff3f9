"""A night's bounds on memory and on time, watched from beside it.

Who passes a bound is ended at once, wherever it is: a step that is cut off leaves nothing half done. The night has
failed then, and not just stopped: begun again, it would come to the same.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

LOOK_SECONDS = 1.0
GIGABYTE = 1e9
FAILED_EXIT_CODE = 2


@contextmanager
def bounded(
    memory_gb: float | None,
    seconds: float,
    failed: Callable[[str], None],
    look_seconds: float = LOOK_SECONDS,
) -> Iterator[None]:
    """Watch this process and its children while the block runs.

    Args:
        memory_gb: that they may hold together, as resident memory; None: no bound.
        seconds: that the block may take.
        failed: is told the reason, from another thread, before the process ends; it writes it down.
        look_seconds: between two looks.
    """
    over, until = threading.Event(), time.monotonic() + seconds

    def watch() -> None:
        while not over.wait(look_seconds):
            reason = _passed(memory_gb, until, seconds)
            if reason and not over.is_set():
                failed(reason)
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        child.kill()
                os._exit(FAILED_EXIT_CODE)

    watcher = threading.Thread(target=watch, name="budget", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def held_bytes() -> int:
    """Resident memory of this process and its children; what they share counts for each."""
    held = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended meanwhile
            held += process.memory_info().rss
    return held


def _passed(memory_gb: float | None, until: float, seconds: float) -> str:
    """Which bound was passed, in words; empty: none."""
    if memory_gb is not None and (held := held_bytes()) > memory_gb * GIGABYTE:
        return (
            f"its processes held {held / GIGABYTE:.1f} GB, learn.memory_gb allows {memory_gb:g}. Lower "
            "finetune.examples_per_step, or raise finetune.accumulation, or the bound"
        )
    if time.monotonic() > until:
        return f"its time is over, after {seconds / 60:,.0f} more minutes: raise learn.hours, or lower learn.minutes"
    return ""
