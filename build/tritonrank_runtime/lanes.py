"""A queue and the threads that work on what waits in it: so many lanes beside each other.

One process tokenizes, computes and answers. Its main thread reads requests and puts them here; a lane takes the one
that waits longest, and where that pays, those behind it as well, up to a budget of tokens. While a lane computes, which
leaves Python's lock to others, the next request is read.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Lanes(Generic[Job]):
    """Threads that take jobs in the order in which they came.

    Args:
        lanes: how many threads.
        work: does some jobs; is told the lane, from 0 on, and what it took. It must not raise.
        most_tokens: of the jobs that are taken together; 0 = one job at a time. May be changed at any time.
    """

    def __init__(self, lanes: int, work: Callable[[int, list[Job]], None], most_tokens: int = 0) -> None:
        self._work = work
        self.most_tokens = most_tokens
        self._waiting: deque[tuple[Job, int]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"lane {lane}", daemon=True) for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: Job, tokens: int) -> None:
        """One more waits, of so many tokens."""
        with self._changed:
            self._waiting.append((job, tokens))
            self._changed.notify()

    def close(self) -> None:
        """Let the lanes do what waits, and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, lane: int) -> None:
        while jobs := self._take():
            self._work(lane, jobs)

    def _take(self) -> list[Job]:
        """The next jobs; none when the lanes are closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return []
            job, total = self._waiting.popleft()
            taken = [job]
            while self._waiting and total + self._waiting[0][1] <= self.most_tokens:
                job, tokens = self._waiting.popleft()
                taken.append(job)
                total += tokens
            return taken
