"""One request on its way: how much time is left of it, how long each step took, what was missing."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

RESERVE_SHARE = 0.1
"""Of the whole time, which the ranker leaves to blend, rules and page."""
LEAST_RESERVE_SECONDS = 0.004
MOST_RESERVE_SECONDS = 0.1
SpanOfStep = Callable[[str], AbstractContextManager[object]]


def no_span(_: str) -> AbstractContextManager[object]:
    """Of a request that is in no trace."""
    return nullcontext()


class Course:
    """Times and losses of one request.

    Args:
        seconds: until nobody waits any more.
        ranking_seconds: that a ranking may take where that is less.
        span: opens the span of a step in the request's trace.
    """

    def __init__(self, seconds: float, ranking_seconds: float = math.inf, span: SpanOfStep = no_span) -> None:
        self._span = span
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.reserve = min(
            MOST_RESERVE_SECONDS, max(LEAST_RESERVE_SECONDS, RESERVE_SHARE * min(seconds, ranking_seconds))
        )
        self._ranked_by = self.started + ranking_seconds
        self.milliseconds: dict[str, float] = {}
        self.reasons: list[str] = []

    @property
    def seconds_left(self) -> float:
        """Until the deadline; never below 0."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def seconds_for_ranking(self) -> float:
        """What is left when the steps after the ranker have their share."""
        left = min(self.deadline, self._ranked_by) - time.monotonic()
        return max(0.0, left - self.reserve)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take the time of a step."""
        began = time.monotonic()
        try:
            with self._span(name):
                yield
        finally:
            spent = 1_000 * (time.monotonic() - began)
            self.milliseconds[name] = round(self.milliseconds.get(name, 0.0) + spent, 3)

    def lost(self, part: str, why: str) -> None:
        """The answer is made without a part; said once."""
        reason = f"{part}: {why}"
        if reason not in self.reasons:
            self.reasons.append(reason)

    def reason_of(self, part: str) -> str:
        """Why the answer is made without a part; "" where it is not."""
        return next((said.partition(": ")[2] for said in self.reasons if said.startswith(f"{part}: ")), "")

    def finish(self) -> None:
        """Take the time of the whole."""
        self.milliseconds["total"] = round(1_000 * (time.monotonic() - self.started), 3)
