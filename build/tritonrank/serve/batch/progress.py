"""How far a long ranking has come: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

FIRST_LINE_SECONDS = 2.0
LINE_SECONDS = 20.0


class Progress:
    """Shows rows done, rows per second and the time left.

    Args:
        rows: of the whole table.
        left: those that this run has to do; the others were done before.
    """

    def __init__(self, rows: int, left: int) -> None:
        self._rows, self._before, self._left = rows, rows - left, left
        self._began = time.monotonic()
        self._next_line = self._began + FIRST_LINE_SECONDS
        console = Console(stderr=True)
        self._bar = Bar(BarColumn(), TextColumn("{task.description}"), console=console) if console.is_terminal else None
        self._task = self._bar.add_task("", total=max(1, rows), completed=self._before) if self._bar else None
        if self._before:
            print(f"{self._before:,} of {rows:,} rows were ranked before and are kept", file=sys.stderr)

    def show(self, done: int) -> None:
        """So many rows were done by this run."""
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._before + done, description=self._said(done, now))
        elif now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            print(self._said(done, now), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _said(self, done: int, now: float) -> str:
        rate = done / max(1e-9, now - self._began)
        share = (self._before + done) / max(1, self._rows)
        left = f"{_in_words((self._left - done) / rate)} left" if rate else "time left unknown"
        return f"{share:4.0%} of {self._rows:,} rows, {rate:,.1f} rows/s, {left}"


def _in_words(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5_400
        else f"{seconds / 3600:.1f} h"
    )
