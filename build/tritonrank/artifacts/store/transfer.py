"""Move parts side by side, patiently, and say how far it is."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tritonrank.artifacts.store.faults import UnreachableStoreError

PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Between tries of one request, behind those that obstore makes by itself."""
JOBS = 6

T = TypeVar("T")
Advance = Callable[[int], None]
"""Is told how many bytes more are done; negative ones have to be moved once more."""

console = Console(stderr=True)


class StoppedError(Exception):
    """Another part failed; this one is not to be gone on with."""


class Transfer:
    """What all parts of one transfer share.

    Args:
        advance: is told of bytes.
    """

    def __init__(self, advance: Advance = lambda count: None) -> None:
        self.advance = advance
        self._stop = threading.Event()

    def patient(self, ask: Callable[[], T]) -> T:
        """Ask again, after a pause, where the store does not answer.

        Raises:
            UnreachableStoreError: it did not answer any of the times.
            StoppedError: another part failed.
        """
        for pause in PAUSES_SECONDS:
            self.go_on()
            try:
                return ask()
            except UnreachableStoreError:
                self._stop.wait(pause)
        self.go_on()
        return ask()

    def go_on(self) -> None:
        """Raise StoppedError where there is no point in going on."""
        if self._stop.is_set():
            raise StoppedError

    def side_by_side(self, jobs: int, tasks: Iterable[Callable[[], None]]) -> None:
        """Run all tasks, so many at a time; the first error stops them and is raised."""
        with ThreadPoolExecutor(max(1, jobs), thread_name_prefix="store") as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [error for one in done if (error := one.exception()) is not None]
                told = [error for error in failed if not isinstance(error, StoppedError)]
                if failed:
                    raise (told or failed)[0]
            except BaseException:
                self._stop.set()
                for one in futures:
                    one.cancel()
                raise


@contextmanager
def shown_progress(what: str, total: int) -> Iterator[Advance]:
    """A bar on a terminal, and nothing elsewhere; gives what is to be told of bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since the block began."""
    started = time.monotonic()
    yield lambda: time.monotonic() - started
