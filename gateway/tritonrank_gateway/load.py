"""How much work waits, and whether a request may still come in.

Triton refuses by its own estimate, request by request. What is bounded here is the gateway's share: how many requests
wait for an answer, and how many seconds of work they are, whole requests only.

Work is counted in characters, and a candidate counts as some more, because its tokens are not known yet. How much is
done in a second is what was done lately while anything waited; what is older counts for less.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tritonrank_gateway.refusal import Refusal

CHARACTERS_PER_CANDIDATE = 40
"""What a candidate costs besides its characters: its special tokens, its row."""
MEMORY_SECONDS = 10.0
"""Of busy time: after so much of it, what was measured before counts for a third."""
LEAST_BUSY_SECONDS = 0.5
"""Of busy time before an estimate is believed."""


class Totals(NamedTuple):
    """Of everything since the start: whoever looks twice has what happened between."""

    busy_seconds: float
    """during which anything waited"""
    request_seconds: float
    """that requests waited, all together"""


class Load:
    """The requests that wait for an answer. Used from one event loop.

    ``in_flight`` counts them, ``held_bytes`` those of the bodies that are here, ``waiting_units`` their work.
    ``is_draining``: the gateway is about to end; it serves, and tells balancers to send nothing more.

    Args:
        max_in_flight: requests at once.
        max_queued_s: estimated seconds of work at once.
        clock: seconds, for tests.
    """

    def __init__(self, max_in_flight: int, max_queued_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_in_flight, self.max_queued_s, self._clock = max_in_flight, max_queued_s, clock
        self.in_flight = 0
        self.is_draining = False
        self.held_bytes = 0
        self.waiting_units = 0
        self._busy_in_all = self._request_in_all = 0.0
        self._done_units = self._busy_seconds = 0.0
        self._looked_at = clock()

    @property
    def queued_seconds(self) -> float:
        """Estimated seconds until all that waits is done; 0 while nothing is known."""
        self._look()
        if not self._done_units or self._busy_seconds < LEAST_BUSY_SECONDS:
            return 0.0
        return self.waiting_units * self._busy_seconds / self._done_units

    @property
    def totals(self) -> Totals:
        """Of everything until now."""
        self._look()
        return Totals(self._busy_in_all, self._request_in_all)

    @contextmanager
    def admitted(self, units: int, seconds_left: float) -> Iterator[float]:
        """Count a request in while it waits; gives the estimated seconds of what waits before it.

        Args:
            units: of work, see `units_of`.
            seconds_left: until its deadline.

        Raises:
            Refusal: there is no room for it, or not in its time.
        """
        queued = self.queued_seconds
        if self.in_flight >= self.max_in_flight:
            said = f"{self.in_flight} requests are waiting already; the request was refused as a whole"
            raise Refusal("overloaded", said, queued)
        if self.in_flight and queued > min(self.max_queued_s, seconds_left):
            said = f"{queued:.1f} s of work are waiting already; the request was refused as a whole"
            raise Refusal("overloaded", said, queued)
        self.in_flight += 1
        self.waiting_units += units
        is_done = False
        try:
            yield queued
            is_done = True
        finally:
            self._look()
            self.in_flight -= 1
            self.waiting_units -= units
            if is_done:  # what was refused or given up says nothing about how fast work is done
                self._done_units += units

    def _look(self) -> None:
        now = self._clock()
        if self.in_flight:
            passed = now - self._looked_at
            kept = 0.5 ** (passed / MEMORY_SECONDS / 0.63)
            self._done_units *= kept
            self._busy_seconds = self._busy_seconds * kept + passed
            self._busy_in_all += passed
            self._request_in_all += passed * self.in_flight
        self._looked_at = now


def units_of(characters: int, candidates: int, context_characters: int) -> int:
    """The work of a request: what its candidates hold, and its context once."""
    return characters + context_characters + CHARACTERS_PER_CANDIDATE * candidates
