"""Take only work that can be done in time, and keep deadlines, without Triton's queue policies.

Any queue policy (``max_queue_size``, a default timeout) makes Triton's dynamic batcher stop preparing the next batch
while an instance is busy; a request that arrives just then can wait 500 ms for the batcher to look again (seen on
2.51: half of the requests at four in flight). So the batcher runs without a policy, and this file does its work.

How long a queue may be is a question of time, not of requests: ten candidates take a tenth of the time of a hundred.
So ``tokenize`` counts the tokens that wait for the scorer or are in work, the scorers measure how many tokens they do
in a second, and a request is refused at once when

- it would wait longer than a share of its deadline: what is accepted then has the rest of it for its own computation
  and for the way back, and a burst is refused instead of making everybody late; or
- it could not be done within its deadline at all; or
- as many requests wait as may wait at the most, however small they are.

A request waits for the scorer that is free first, so that a large request in one scorer keeps nobody from the other. On
an idle server too a request is refused that by far cannot be done in time, in the words of one that expired, because
trying again would not help. That estimate comes from requests of about the same size; where none was measured, or the
last one some time ago, the request is let through and measured, so that a wrong estimate mends itself.

Not everything that passes the gate reaches a scorer: a client may give up between the steps, and anyone may call
``tokenize`` alone. So each admitted request carries a ticket, and the scorers say which was the newest that they took.
The queue is in order: what newer tickets have overtaken waits no more, nor does what an idle scorer has left lying for
longer than a request is ever on its way. One whose deadline has passed is no work either. What comes straight to a
scorer has no ticket.

``score`` starts nothing whose deadline has passed, and stops what it works on when it passes. The words of all refusals
are Triton's.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from heapq import heapify, heapreplace
from pathlib import Path
from typing import NamedTuple

from tritonrank_runtime.scorer_counts import ScorerState, class_of, counter_folder, scorer_states

QUEUE_FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"
ON_ITS_WAY_SECONDS = 0.02
"""A request is with an idle scorer a few milliseconds after it passed the gate; one that is not there by now is not
coming. Shorter would take requests of a burst for lost on a crowded machine, longer would refuse others for nothing."""
FAR_BEYOND = 1.5
"""An idle server refuses a request that is estimated to take so many times the time it has: speed varies with what else
the machine does, and work stops at its deadline anyway."""
TRUSTED_SECONDS = 10.0
"""An estimate that is older than this is tried again before a request is refused for it alone."""


class RefusedError(RuntimeError):
    """The request is not taken; the message begins with Triton's words for it.

    Attributes:
        reason: a word for it, for metrics.
    """

    reason = "refused"


class QueueFullError(RefusedError):
    """There is more work than can be done in time."""

    reason = "queue_full"


class TooLongError(RefusedError):
    """The request alone takes longer than it may."""

    reason = "too_long"


class _Waiting(NamedTuple):
    ticket: int
    admitted_at: float
    expires_at: float
    tokens: int


class Queue(NamedTuple):
    """The queue at one moment."""

    requests: int
    """that were admitted and no scorer has taken"""
    seconds: float
    """estimated, of all work that waits or is computed; 0 while no scorer has measured its speed"""
    scorers: int
    busy_scorers: int


class Admission:
    """The gate in ``tokenize``.

    Args:
        most_waiting: requests that may wait for the scorer; one more is refused.
        longest_wait_seconds: after this an admitted request counts as lost, whatever the scorers do.
        queue_share: of its deadline, that a request may have to wait; 0 looks at no time, only at ``most_waiting``.
        folder: where scorers in processes of their own count; default: a folder of this server.
        batching_seconds: that an idle scorer waits for batch mates.
        states: gives what the scorers of this process count, instead of those in ``folder``.

    ``queue_share`` may be changed at any time.
    """

    def __init__(
        self,
        most_waiting: int,
        longest_wait_seconds: float,
        queue_share: float = 0.0,
        folder: Path | None = None,
        batching_seconds: float = 0.0,
        states: Callable[[], Sequence[ScorerState]] | None = None,
    ) -> None:
        self._most_waiting = most_waiting
        self._longest_wait_seconds = longest_wait_seconds
        self.queue_share = queue_share
        self._states = states or partial(scorer_states, folder or counter_folder())
        self._on_its_way_seconds = ON_ITS_WAY_SECONDS + batching_seconds
        self._waiting: deque[_Waiting] = deque()
        self._ticket = 0
        self._tried_at = 0.0

    def check_room(self, seconds_left: float, tokens: int = 0) -> None:
        """Raise RefusedError unless one more can be taken.

        Args:
            seconds_left: until its deadline.
            tokens: of the request, as the architecture's ``needed_tokens`` counts them; 0 where that is not known yet.
        """
        scorers = self._states()
        self._forget_what_does_not_wait(scorers)
        now = time.monotonic()
        waiting = [request.tokens for request in self._waiting if request.expires_at > now]
        if len(waiting) >= self._most_waiting:
            raise QueueFullError(QUEUE_FULL)
        if not self.queue_share:
            return
        self._check_own_work(scorers, seconds_left, tokens)
        rates = [scorer.tokens_per_second for scorer in scorers if scorer.tokens_per_second > 0]
        before = _tokens_before(waiting, [scorer.running_tokens for scorer in scorers])
        if not rates or not before:
            return
        rate = sum(rates) / len(rates)
        wait_seconds = before * len(scorers) / rate
        # Alone an instance gets all cores, but where a request has to wait all are busy, and each has its share.
        own_seconds = tokens * len(scorers) / rate
        if wait_seconds > self.queue_share * seconds_left or wait_seconds + own_seconds > seconds_left:
            raise QueueFullError(
                f"{QUEUE_FULL}: a wait of {1_000 * wait_seconds:.0f} ms and {1_000 * own_seconds:.0f} ms of work, with "
                f"{1_000 * seconds_left:.0f} ms left"
            )

    def admitted(self, tokens: int = 0, seconds_left: float = math.inf) -> int:
        """One more is on its way to the scorer; its ticket, which no other request has.

        Tickets are times: those of a gate that starts again are newer than those before, and one that somebody makes up
        cannot be newer than now (``StartedCounter``).

        Args:
            tokens: as for ``check_room``.
            seconds_left: as for ``check_room``; behind its deadline nothing is computed.
        """
        now = time.monotonic()
        self._ticket = max(self._ticket + 1, time.monotonic_ns())
        self._waiting.append(_Waiting(self._ticket, now, now + seconds_left, tokens))
        return self._ticket

    def queue(self) -> Queue:
        """What waits now. Unlike the others it may be asked from another thread, and changes nothing."""
        scorers, now = self._states(), time.monotonic()
        newest, idle_since = _newest_and_idle_since(scorers)
        waiting = [
            request.tokens
            for request in list(self._waiting)
            if request.expires_at > now and not self._waits_no_more(request, now, newest, idle_since)
        ]
        rates = [scorer.tokens_per_second for scorer in scorers if scorer.tokens_per_second > 0]
        tokens = sum(waiting) + sum(scorer.running_tokens for scorer in scorers)
        seconds = tokens * len(rates) / sum(rates) if rates else 0.0
        return Queue(len(waiting), seconds, len(scorers), sum(scorer.is_busy for scorer in scorers))

    def _check_own_work(self, scorers: Sequence[ScorerState], seconds_left: float, tokens: int) -> None:
        measured = [speed for scorer in scorers if (speed := scorer.speeds[class_of(tokens)]).tokens_per_second]
        if not tokens or not measured:
            return
        own_seconds = tokens * len(measured) / sum(speed.tokens_per_second for speed in measured)
        if own_seconds <= FAR_BEYOND * seconds_left:
            return
        now = time.monotonic()
        if now - max(self._tried_at, *(speed.measured_at for speed in measured)) > TRUSTED_SECONDS:
            self._tried_at = now
            return
        raise TooLongError(
            f"{EXPIRED}: about {1_000 * own_seconds:.0f} ms of work, with {1_000 * seconds_left:.0f} ms left; send "
            "fewer candidates, or allow more time (the server's limit is serve.deadline_ms)"
        )

    def _forget_what_does_not_wait(self, scorers: Sequence[ScorerState]) -> None:
        now = time.monotonic()
        newest, idle_since = _newest_and_idle_since(scorers)
        while self._waiting and self._waits_no_more(self._waiting[0], now, newest, idle_since):
            self._waiting.popleft()

    def _waits_no_more(self, request: _Waiting, now: float, newest: int, idle_since: float) -> bool:
        was_lost = request.admitted_at < now - self._longest_wait_seconds
        was_left_lying = now - max(request.admitted_at, idle_since) > self._on_its_way_seconds
        return request.ticket <= newest or was_lost or was_left_lying


def _newest_and_idle_since(scorers: Sequence[ScorerState]) -> tuple[int, float]:
    """The newest ticket that a scorer took, and since when one has been idle; infinity where all have work."""
    newest = max((scorer.newest_ticket for scorer in scorers), default=0)
    return newest, min((scorer.idle_since for scorer in scorers), default=math.inf)


def _tokens_before(waiting: Iterable[int], running: Iterable[int]) -> int:
    """Tokens that the scorer which is free first has to do before a request that comes now.

    Args:
        waiting: tokens of the requests that wait, in their order; each goes to the scorer that is free first then, so
            that a large one in one scorer keeps nobody from the other.
        running: what each scorer works on.
    """
    loads = [*running] or [0]
    heapify(loads)
    for tokens in waiting:
        heapreplace(loads, loads[0] + tokens)
    return loads[0]
