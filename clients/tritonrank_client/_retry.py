"""How long a call may go on, and whether it may try again. Knows time and chance, but no network.

A `Call` is one call of the caller's: it counts the attempts, knows the time left, and after a failure says how
long to pause or that it is over. The blocking and the asyncio client differ only in how they wait.
"""

import math
import random
import threading
import time

from ._errors import InvalidRequest, RankError, Unavailable
from ._fork import watch_forks
from ._options import OVERLOAD_ATTEMPTS, Retry

# An attempt is never given less: the server takes a timeout of 0 microseconds as "none".
LEAST_SECONDS = 0.001

# The pauses of an outage end at the deadline and not after some attempts, so none may be nothing.
LEAST_PAUSE_SECONDS = 0.01

MOST_DOUBLINGS = 30  # of a pause; also what a float can take


class RetryBudget:
    """A token bucket shared by the calls of one client: calls fill it a little, retries empty it."""

    def __init__(self, ratio: float, burst: float) -> None:
        self._ratio = ratio
        self._burst = burst
        self._tokens = burst
        self._lock = threading.Lock()
        watch_forks(self)

    def deposit(self) -> None:
        """Credit one call."""
        with self._lock:
            self._tokens = min(self._burst, self._tokens + self._ratio)

    def withdraw(self) -> bool:
        """Pay for one retry; False if the budget does not allow it."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def before_fork(self, deadline: float) -> None:
        """Nothing: the lock is held for a moment only."""

    def after_fork_in_parent(self) -> None:
        """Nothing was changed."""

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


class Call:
    """One call: its attempts, its deadline, its retries."""

    def __init__(self, retry: Retry, budget: RetryBudget, timeout: float) -> None:
        self.attempts = 0
        self._refusals = 0
        self._retry = retry
        self._budget = budget
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        budget.deposit()

    @property
    def seconds(self) -> float:
        """Time since the call began."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float:
        """Time until the deadline, never quite 0."""
        return max(LEAST_SECONDS, self._deadline - time.monotonic())

    def begin_attempt(self) -> float:
        """Count an attempt; the seconds it may take, which is all that is left of the call."""
        self.attempts += 1
        return self.seconds_left

    def pause_after(self, failure: RankError) -> float:
        """The seconds to wait before the next attempt.

        Raises:
            RankError: `failure` itself, with the reason for giving up added, when there is to be no other attempt.
        """
        failure.attempts = self.attempts
        if not failure.retryable:
            raise failure
        is_outage = isinstance(failure, Unavailable)
        self._refusals += not is_outage
        pause = max(LEAST_PAUSE_SECONDS, self._draw_pause()) if is_outage else self._draw_pause()
        if self._is_last(is_outage):
            why = "no attempts left"
        elif pause >= self.seconds_left:
            why = "no time left"
        elif not is_outage and not self._budget.withdraw():
            why = "the client's retry budget is spent"
        else:
            return pause
        plural = "" if self.attempts == 1 else "s"
        failure.args = (f"{failure} Gave up after {self.attempts} attempt{plural} in {self.seconds:.2f} s: {why}.",)
        raise failure

    def _is_last(self, is_outage: bool) -> bool:
        if self._retry.attempts is not None:
            return self.attempts >= self._retry.attempts
        return not is_outage and self._refusals >= OVERLOAD_ATTEMPTS

    def _draw_pause(self) -> float:
        doublings = min(self.attempts - 1, MOST_DOUBLINGS)
        longest = min(self._retry.max_seconds, self._retry.initial_seconds * 2.0**doublings)
        return longest * (1 - self._retry.jitter * random.random())


def check_timeout(timeout: float | None, default: float) -> float:
    """The seconds a call may take.

    Raises:
        InvalidRequest: not a finite number above 0.
    """
    if timeout is None:
        return default
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise InvalidRequest(f"timeout: expected a number of seconds above 0, got {timeout!r}")
    return float(timeout)
