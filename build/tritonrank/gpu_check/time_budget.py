"""Seconds that each part of gpu-check may take: a machine with a GPU is lent for minutes, and whatever hangs must not
take the other parts' time.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tritonrank.errors import TritonRankError

SECONDS = 460.0
"""Of the whole: under eight minutes."""


class TimeUpError(TritonRankError):
    """A part took longer than it may."""


class TimeBudget:
    """Counts from now on.

    Args:
        seconds: of the whole.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._began = time.monotonic()

    def left(self, share: float = 1.0) -> float:
        """Seconds until so large a share of the whole has passed; negative behind it."""
        return self._began + share * self._seconds - time.monotonic()

    @contextmanager
    def part(self, seconds: float, share: float = 1.0) -> Iterator[None]:
        """A part that may take so many seconds, and ends before a share of the whole has passed.

        Stops Python code of the main thread; in others nothing is stopped.

        Args:
            seconds: at the most.
            share: of the whole.

        Raises:
            TimeUpError: it is over, or was before the part began.
        """
        allowed = min(seconds, self.left(share))
        if allowed <= 0:
            raise TimeUpError("left out: its share of the time was over; allow more with --seconds")
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            raise TimeUpError(f"stopped after {allowed:.0f} s; allow more with --seconds")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, allowed)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
