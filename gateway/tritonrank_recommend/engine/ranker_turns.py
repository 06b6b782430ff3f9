"""Lists that the ranker has no room for now wait in turn, as long as it can still answer them within their deadline.

A ranker refuses at once what it would have to queue for too long by its own careful estimate, and a moment later it has
room. So who was refused stands in line: the first asks again whenever another answer has come back, those behind wait
for it, and who comes new stands behind them. The line is bounded: by number, and by time. Who stands so far back that
those before take all the time there is, is refused at once; nobody waits longer than until the ranker, at its fastest
lately, could no longer answer.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from tritonrank_client import Overloaded

from tritonrank_recommend.engine.ranker import Scored

MOST_WAITING = 64
ACCEPTED_SECONDS = 0.02
"""A refusal comes sooner; who has heard nothing by then was taken, and the next may ask."""
AGAIN_SECONDS = 0.05
"""After a refusal, when no answer has come back meanwhile: somebody else's work may be done."""
REMEMBERED = 32
"""Answers by which the ranker's speed is known."""
LINE_ENDED_SECONDS = 5.0
"""Times between answers say how fast a line moves while there is one, and for so long after it."""

Ask = Callable[[float], Awaitable[Scored]]
"""Asks the ranker, which has so many seconds."""


class RankerTurns:
    """One line before one ranker. Used from one event loop."""

    def __init__(self) -> None:
        self._line = asyncio.Lock()  # its waiters are woken in the order in which they came
        self._came_back = asyncio.Event()
        self._waiting = 0
        self._took: deque[float] = deque(maxlen=REMEMBERED)
        self._between: deque[float] = deque(maxlen=REMEMBERED)
        self.answered_at = 0.0
        """``time.monotonic()`` of the last answer"""

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return self._waiting

    async def ask(self, ask: Ask, seconds: float) -> Scored:
        """What the ranker says, now or when it has room.

        Args:
            ask: asks it once; called again after ``Overloaded`` that may be tried again.
            seconds: until nobody needs the answer any more.

        Raises:
            Overloaded: there is no room within that time.
        """
        until = time.monotonic() + seconds
        if not self._waiting:
            try:
                return await self._measured(ask, until)
            except Overloaded as refusal:
                if not refusal.retryable:
                    raise
        if self._waiting >= MOST_WAITING or time.monotonic() + self._seconds_of_line() > self._last_moment(until):
            raise Overloaded("those who wait already take all the time that there is", retryable=True)
        self._waiting += 1
        try:
            running = await self._in_turn(ask, until)
        finally:
            self._waiting -= 1
        try:
            return await running
        finally:
            running.cancel()

    async def _in_turn(self, ask: Ask, until: float) -> "asyncio.Task[Scored]":
        """Stand in line, and ask until it is not refused."""
        try:
            async with asyncio.timeout(max(0.0, self._last_moment(until) - time.monotonic())):
                await self._line.acquire()
        except TimeoutError:
            raise Overloaded("nobody was taken in time", retryable=True) from None
        running: asyncio.Task[Scored] | None = None
        try:
            while time.monotonic() <= self._last_moment(until):
                self._came_back.clear()
                running = asyncio.create_task(self._measured(ask, until))
                await asyncio.wait({running}, timeout=ACCEPTED_SECONDS)
                if not running.done() or not _is_refused(running):
                    taken, running = running, None
                    return taken
                left = self._last_moment(until) - time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, min(AGAIN_SECONDS, left))):
                        await self._came_back.wait()
                except TimeoutError:
                    pass
            raise Overloaded("the ranker had no room in time", retryable=True)
        finally:
            if running is not None:
                running.cancel()
            self._line.release()

    async def _measured(self, ask: Ask, until: float) -> Scored:
        began = time.monotonic()
        scored = await ask(max(0.0, until - began))
        now = time.monotonic()
        self._took.append(now - began)
        if self._waiting:
            self._between.append(min(now - self.answered_at, now - began))
        elif self._between and now - self.answered_at > LINE_ENDED_SECONDS:
            self._between.clear()
        self.answered_at = now
        self._came_back.set()
        return scored

    def _seconds_of_line(self) -> float:
        """That those who stand in line will take, by how answers came back lately; 0 where that is not known."""
        return self._waiting * sum(self._between) / len(self._between) if self._between else 0.0

    def _last_moment(self, until: float) -> float:
        """After which there is no use in asking: the ranker's fastest answer of late would come too late."""
        return until - min(self._took, default=ACCEPTED_SECONDS)


def _is_refused(task: "asyncio.Task[Scored]") -> bool:
    """Whether a task that is done was refused for now."""
    error = None if task.cancelled() else task.exception()
    return isinstance(error, Overloaded) and error.retryable
