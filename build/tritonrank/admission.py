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

A request waits for the scorer that is free first, and an idle one takes any request, so that a wrong estimate mends
itself and a large request in one scorer keeps nobody from the other. ``score`` starts nothing whose deadline has
passed. The words of both refusals are Triton's.

The scorers' counts are files of a few bytes in the server's temporary folder, one per instance, because each model runs
in a process of its own.

``assemble`` copies this file beside the server's models: it imports only the standard library.
"""

import math
import os
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

QUEUE_FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"
MEMORY_SECONDS = 5.0
"""Of computing: how far back the scorer's speed looks. Long enough to average over requests of all sizes."""


class QueueFullError(RuntimeError):
    """There is more work than can be done in time; the message begins with Triton's words for it."""


class ScorerState(NamedTuple):
    """What one instance of the scorer says of itself; this is what its file holds."""

    started: int = 0
    """requests so far"""
    running_tokens: int = 0
    """of the requests that it has taken and not yet done"""
    tokens_per_second: float = 0.0
    """that all instances together do when all are busy, by this one's measure; 0: nothing was measured yet"""
    is_busy: bool = False


_STATE = struct.Struct("<qqd?")


class Admission:
    """The gate in ``tokenize``.

    Args:
        most_waiting: requests that may wait for the scorer; one more is refused.
        longest_wait_seconds: after this an admitted request counts as lost (cancelled on its way, say).
        queue_share: of its deadline, that a request may have to wait; 0 looks at no time, only at ``most_waiting``.
        folder: where the scorers count; default: a folder of this server.
    """

    def __init__(
        self, most_waiting: int, longest_wait_seconds: float, queue_share: float = 0.0, folder: Path | None = None
    ) -> None:
        self._most_waiting = most_waiting
        self._longest_wait_seconds = longest_wait_seconds
        self._queue_share = queue_share
        self._folder = folder or counter_folder()
        self._waiting: deque[tuple[float, int]] = deque()
        """when each was admitted, and its tokens"""
        self._started = 0

    def check_room(self, seconds_left: float, tokens: int = 0) -> None:
        """Raise QueueFullError unless one more can be taken.

        Args:
            seconds_left: until its deadline.
            tokens: of the request, as ``work_tokens`` counts them; 0 where that is not known yet.
        """
        scorers = self._read_scorers()
        if len(self._waiting) >= self._most_waiting:
            raise QueueFullError(QUEUE_FULL)
        rates = [scorer.tokens_per_second for scorer in scorers if scorer.tokens_per_second > 0]
        waiting = sum(tokens_before for _, tokens_before in self._waiting)
        # The scorer that is free first takes the next request: a large one in another keeps nobody waiting.
        first_free = len(scorers) * min((scorer.running_tokens for scorer in scorers), default=0)
        if not self._queue_share or not rates or not waiting + first_free:
            return
        rate = sum(rates) / len(rates)
        wait_seconds = (waiting + first_free) / rate
        # Alone it would get all cores, but where it has to wait the others are busy, and it gets one instance's share.
        own_seconds = tokens * len(scorers) / rate
        if wait_seconds > self._queue_share * seconds_left or wait_seconds + own_seconds > seconds_left:
            raise QueueFullError(
                f"{QUEUE_FULL}: a wait of {1_000 * wait_seconds:.0f} ms and {1_000 * own_seconds:.0f} ms of work, with "
                f"{1_000 * seconds_left:.0f} ms left"
            )

    def admitted(self, tokens: int = 0) -> None:
        """One more is on its way to the scorer."""
        self._waiting.append((time.monotonic(), tokens))

    def _read_scorers(self) -> list[ScorerState]:
        """The scorers' states; what they have started waits no more."""
        scorers = [_read(path) for path in self._folder.iterdir()]
        started = sum(scorer.started for scorer in scorers)
        if started < self._started:  # a scorer was loaded again: what waited for it is gone
            self._waiting.clear()
        for _ in range(min(started - self._started, len(self._waiting))):
            self._waiting.popleft()
        self._started = started
        lost_before = time.monotonic() - self._longest_wait_seconds
        while self._waiting and self._waiting[0][0] < lost_before:
            self._waiting.popleft()
        return scorers


class StartedCounter:
    """The scorer's side: how many requests it has started or refused as expired, what it works on, and how fast it is.

    It also says whether it computes at the moment, so that instances can share out the cores: one alone takes them all.
    """

    def __init__(self, instance: str, folder: Path | None = None) -> None:
        self._folder = folder or counter_folder()
        self._path = self._folder / instance
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._started = 0
        self._running_tokens = 0
        self._speed = _Speed()
        self._write(is_busy=False)

    def add(self, requests: int, tokens: int = 0) -> None:
        """So many requests were taken, with so many tokens together."""
        self._started += requests
        self._running_tokens = tokens
        self._write(is_busy=False)

    def skip(self, tokens: int) -> None:
        """Some of the tokens taken need no work any more."""
        self._running_tokens = max(0, self._running_tokens - tokens)
        self._write(is_busy=False)

    @contextmanager
    def busy(self, tokens: int = 0) -> Iterator[int]:
        """Inside the block this instance counts as busy, working on so many of the tokens that it has taken.

        Gives the number of busy instances, itself included.
        """
        self._write(is_busy=True)
        instances = max(1, sum(_read(path).is_busy for path in self._folder.iterdir()))
        began = time.monotonic()
        try:
            yield instances
            # Each busy instance has its share of the cores, so together they do so many times as much.
            self._speed.note(instances * tokens, time.monotonic() - began)
        finally:
            self.skip(tokens)

    def _write(self, *, is_busy: bool) -> None:
        state = ScorerState(self._started, self._running_tokens, self._speed.tokens_per_second, is_busy)
        os.pwrite(self._file, _STATE.pack(*state), 0)

    def close(self) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)


class _Speed:
    """Tokens by seconds of computing, both fading, so that a long request counts for more than a short one."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0

    def note(self, tokens: int, seconds: float) -> None:
        if tokens and seconds > 0:
            kept = math.exp(-seconds / MEMORY_SECONDS)
            self._tokens = kept * self._tokens + tokens
            self._seconds = kept * self._seconds + seconds


def work_tokens(tensors: Mapping[str, Any]) -> int:
    """The tokens of a request without its padding, by its tensors' names; the measure of work on both sides.

    Args:
        tensors: numpy arrays; of a joint ranker attention_mask, else context_ids and candidate_ids.
    """
    if "attention_mask" in tensors:
        return int(tensors["attention_mask"].sum())
    return int(tensors["context_ids"].size) + int((tensors["candidate_ids"] >= 0).sum())


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


def counter_folder() -> Path:
    """A folder that all models of one server find: they are children of the same process."""
    folder = Path(tempfile.gettempdir()) / f"tritonrank-queue-{os.getppid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _read(path: Path) -> ScorerState:
    """What an instance says; nothing of one that is just starting or gone."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ScorerState()
    return ScorerState(*_STATE.unpack(data)) if len(data) == _STATE.size else ScorerState()
