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

The scorers' counts are files of a few bytes in the server's temporary folder, one per instance, because each model runs
in a process of its own. Somebody may clean that folder up: then it is made again, and until the scorers have written
once more nothing is estimated.
"""

import math
import os
import struct
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from heapq import heapify, heapreplace
from pathlib import Path
from typing import Any, NamedTuple

QUEUE_FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"
MEMORY_SECONDS = 5.0
"""Of computing: how far back the scorer's speed looks. Long enough to average over requests of all sizes."""
ON_ITS_WAY_SECONDS = 0.02
"""A request is with an idle scorer a few milliseconds after it passed the gate; one that is not there by now is not
coming. Shorter would take requests of a burst for lost on a crowded machine, longer would refuse others for nothing."""
LARGER_CLASSES = (1_000, 8_000)
"""Tokens at which requests count as larger ones: what starting a run costs weighs on small ones many times as much, so
the speed of one class says little about another."""
FAR_BEYOND = 1.5
"""An idle server refuses a request that is estimated to take so many times the time it has: speed varies with what else
the machine does, and work stops at its deadline anyway."""
TRUSTED_SECONDS = 10.0
"""An estimate that is older than this is tried again before a request is refused for it alone."""


class RefusedError(RuntimeError):
    """The request is not taken; the message begins with Triton's words for it."""


class QueueFullError(RefusedError):
    """There is more work than can be done in time."""


class TooLongError(RefusedError):
    """The request alone takes longer than it may."""


class Speed(NamedTuple):
    """What one instance measured of requests of one class of sizes."""

    tokens_per_second: float = 0.0
    """that all instances together do when all are busy, by this one's measure; 0: nothing was measured yet"""
    measured_at: float = 0.0
    """on the monotonic clock"""


class ScorerState(NamedTuple):
    """What one instance of the scorer says of itself; this is what its file holds."""

    started: int = 0
    """requests so far"""
    running_tokens: int = 0
    """of the requests that it has taken and not yet done"""
    newest_ticket: int = 0
    """of those that it has taken"""
    idle_since: float = math.inf
    """on the monotonic clock; infinity while it has work"""
    is_busy: bool = False
    tokens_per_second: float = 0.0
    """as ``Speed`` has it, of requests of all sizes"""
    speeds: tuple[Speed, ...] = (Speed(),) * (len(LARGER_CLASSES) + 1)
    """by class of sizes, the smallest first"""

    def packed(self) -> bytes:
        return _STATE.pack(*self[:-1], *(number for speed in self.speeds for number in speed))

    @classmethod
    def unpacked(cls, data: bytes) -> "ScorerState":
        """Nothing of an instance that is just starting."""
        if len(data) != _STATE.size:
            return cls()
        values = _STATE.unpack(data)
        own, speeds = values[:_OWN_FIELDS], values[_OWN_FIELDS:]
        return cls(*own)._replace(
            speeds=tuple(Speed(*pair) for pair in zip(speeds[::2], speeds[1::2], strict=True)),
        )


_OWN_FIELDS = len(ScorerState._fields) - 1
_STATE = struct.Struct(f"<qqqd?d{2 * (len(LARGER_CLASSES) + 1)}d")


class _Waiting(NamedTuple):
    ticket: int
    admitted_at: float
    expires_at: float
    tokens: int


class Admission:
    """The gate in ``tokenize``.

    Args:
        most_waiting: requests that may wait for the scorer; one more is refused.
        longest_wait_seconds: after this an admitted request counts as lost, whatever the scorers do.
        queue_share: of its deadline, that a request may have to wait; 0 looks at no time, only at ``most_waiting``.
        folder: where the scorers count; default: a folder of this server.
        batching_seconds: that an idle scorer waits for batch mates.
    """

    def __init__(
        self,
        most_waiting: int,
        longest_wait_seconds: float,
        queue_share: float = 0.0,
        folder: Path | None = None,
        batching_seconds: float = 0.0,
    ) -> None:
        self._most_waiting = most_waiting
        self._longest_wait_seconds = longest_wait_seconds
        self._queue_share = queue_share
        self._folder = folder or counter_folder()
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
        scorers = _states(self._folder)
        self._forget_what_does_not_wait(scorers)
        now = time.monotonic()
        waiting = [request.tokens for request in self._waiting if request.expires_at > now]
        if len(waiting) >= self._most_waiting:
            raise QueueFullError(QUEUE_FULL)
        if not self._queue_share:
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
        if wait_seconds > self._queue_share * seconds_left or wait_seconds + own_seconds > seconds_left:
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

    def _check_own_work(self, scorers: list[ScorerState], seconds_left: float, tokens: int) -> None:
        measured = [speed for scorer in scorers if (speed := scorer.speeds[_class_of(tokens)]).tokens_per_second]
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

    def _forget_what_does_not_wait(self, scorers: list[ScorerState]) -> None:
        now = time.monotonic()
        newest = max((scorer.newest_ticket for scorer in scorers), default=0)
        idle_since = min((scorer.idle_since for scorer in scorers), default=math.inf)
        while self._waiting:
            first = self._waiting[0]
            was_lost = first.admitted_at < now - self._longest_wait_seconds
            was_left_lying = now - max(first.admitted_at, idle_since) > self._on_its_way_seconds
            if not (first.ticket <= newest or was_lost or was_left_lying):
                break
            self._waiting.popleft()


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


class StartedCounter:
    """The scorer's side: what it has taken, what it works on, and how fast it is.

    It also says whether it computes at the moment, so that instances can share out the cores: one alone takes them all.
    """

    def __init__(self, instance: str, folder: Path | None = None) -> None:
        self._folder = folder or counter_folder()
        self._path = self._folder / instance
        self._file = -1
        self._speeds = [_Speed() for _ in range(len(LARGER_CLASSES) + 1)]
        self._speed = _Speed()
        self._state = ScorerState(idle_since=time.monotonic())
        self._write()

    def add(self, requests: int, tokens: int = 0, newest_ticket: int = 0) -> None:
        """So many requests were taken, with so many tokens together.

        A ticket from the future is none of the gate's: it would let everybody pass.
        """
        is_real = newest_ticket <= time.monotonic_ns()
        self._write(
            started=self._state.started + requests,
            running_tokens=tokens,
            newest_ticket=max(self._state.newest_ticket, newest_ticket if is_real else 0),
            idle_since=math.inf,
        )

    def skip(self, tokens: int) -> None:
        """Some of the tokens taken need no work any more."""
        self._write(running_tokens=max(0, self._state.running_tokens - tokens), is_busy=False)

    def rest(self) -> None:
        """All that was taken is done."""
        self._write(running_tokens=0, is_busy=False, idle_since=time.monotonic())

    @contextmanager
    def busy(self, tokens: int = 0, done: Callable[[], int] | None = None) -> Iterator[int]:
        """Inside the block this instance counts as busy, working on so many of the tokens that it has taken.

        Gives the number of busy instances, itself included.

        Args:
            tokens: that it will work on.
            done: how many of them it has worked on, asked at the end; default: all.
        """
        self._write(is_busy=True)
        instances = max(1, sum(state.is_busy for state in _states(self._folder)))
        began = time.monotonic()
        try:
            yield instances
            # Each busy instance has its share of the cores, so together they do so many times as much.
            worked = instances * (tokens if done is None else done())
            for speed in (self._speed, self._speeds[_class_of(tokens)]):
                speed.note(worked, time.monotonic() - began)
        finally:
            self.skip(tokens)

    def _write(self, **changes: Any) -> None:
        """Tell the gate; where nothing can be written it has to do without."""
        self._state = self._state._replace(
            **changes,
            tokens_per_second=self._speed.tokens_per_second,
            speeds=tuple(Speed(one.tokens_per_second, one.measured_at) for one in self._speeds),
        )
        with suppress(OSError):
            if self._file < 0 or not os.fstat(self._file).st_nlink:  # somebody cleaned up
                self._open()
            os.pwrite(self._file, self._state.packed(), 0)

    def _open(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        _make(self._folder)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        with suppress(OSError):
            self._path.unlink()


class _Speed:
    """Tokens by seconds of computing, both fading, so that a long request counts for more than a short one."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self.measured_at = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0

    def note(self, tokens: int, seconds: float) -> None:
        if tokens and seconds > 0:
            kept = math.exp(-seconds / MEMORY_SECONDS)
            self._tokens = kept * self._tokens + tokens
            self._seconds = kept * self._seconds + seconds
            self.measured_at = time.monotonic()


def _class_of(tokens: int) -> int:
    return sum(tokens >= fewest for fewest in LARGER_CLASSES)


def deadline_after(asked_microseconds: int, longest_microseconds: int) -> int:
    """When a request expires, on this machine's monotonic clock in microseconds, which all processes share.

    Args:
        asked_microseconds: the request's own timeout; 0 = none.
        longest_microseconds: the server's limit, which also holds where the request asks for more.
    """
    allowed = min(asked_microseconds or longest_microseconds, longest_microseconds)
    return time.monotonic_ns() // 1_000 + allowed


def seconds_left(deadline_microseconds: int) -> float:
    """Until the deadline; negative behind it."""
    return deadline_microseconds / 1e6 - time.monotonic()


def is_expired(deadline_microseconds: int) -> bool:
    return time.monotonic_ns() // 1_000 > deadline_microseconds


def counter_folder(queue: str = "") -> Path:
    """A folder that the models of one ensemble find: those of one server are children of the same process.

    Args:
        queue: the ensemble, which has a queue of its own.
    """
    folder = Path(tempfile.gettempdir()) / f"tritonrank-queue-{os.getppid()}" / queue
    _make(folder)
    return folder


def _make(folder: Path) -> None:
    """Make a folder that only this user can read; without it there are no counts, and nothing else is lost."""
    with suppress(OSError):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


def _states(folder: Path) -> list[ScorerState]:
    """What the instances say; nothing of one that is just gone."""
    states = []
    try:
        paths = [*folder.iterdir()]
    except OSError:
        _make(folder)
        return []
    for path in paths:
        with suppress(OSError):
            states.append(ScorerState.unpacked(path.read_bytes()))
    return states
