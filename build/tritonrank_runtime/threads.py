"""Runs of a graph side by side, one thread each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait


class Threads:
    """Calls side by side: in the calling thread and in helpers that wait for work, which several callers may share."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._helpers = ThreadPoolExecutor(max(1, most - 1))

    def run(self, calls: Sequence[Callable[[], None]], threads: int) -> None:
        """Make all calls, on so many threads at the most (0 = all); raises what a call raised."""
        remaining = iter(calls)  # taking the next one from a list is atomic

        def work() -> None:
            for call in remaining:
                call()

        helpers = min(threads or self._most, self._most, len(calls)) - 1
        futures = [self._helpers.submit(work) for _ in range(helpers)]
        try:
            work()
        finally:
            # Another caller's work may keep the helpers busy: what they have not begun by now nobody need wait for.
            started = [future for future in futures if not future.cancel()]
            wait(started)
        for future in started:
            future.result()
