"""What the scorers tell the gate (``admission.py``): what they have taken, what they work on, and how fast they are.

Where tokenizer and scorers are one process (``lanes.py``) the gate looks at their counts as they are. Where each model
runs in a process of its own they are files of a few bytes in the server's temporary folder, one per instance. Somebody
may clean that folder up: then it is made again, and until the scorers have written once more nothing is estimated.
"""

import math
import os
import struct
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

MEMORY_SECONDS = 5.0
"""Of computing: how far back the scorer's speed looks. Long enough to average over requests of all sizes."""
LARGER_CLASSES = (1_000, 8_000)
"""Tokens at which requests count as larger ones: what starting a run costs weighs on small ones many times as much, so
the speed of one class says little about another."""


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


class ScorerCounter(ABC):
    """The scorer's side: what it has taken, what it works on, and how fast it is.

    It also says whether it computes at the moment, so that scorers can share out the cores: one alone takes them all.
    """

    def __init__(self) -> None:
        self._speeds = [_Speed() for _ in range(len(LARGER_CLASSES) + 1)]
        self._speed = _Speed()
        self.state = ScorerState(idle_since=time.monotonic())

    def add(self, requests: int, tokens: int = 0, newest_ticket: int = 0) -> None:
        """So many requests were taken, with so many tokens together.

        A ticket from the future is none of the gate's: it would let everybody pass.
        """
        is_real = newest_ticket <= time.monotonic_ns()
        self._note(
            started=self.state.started + requests,
            running_tokens=tokens,
            newest_ticket=max(self.state.newest_ticket, newest_ticket if is_real else 0),
            idle_since=math.inf,
        )

    def skip(self, tokens: int) -> None:
        """Some of the tokens taken need no work any more."""
        self._note(running_tokens=max(0, self.state.running_tokens - tokens), is_busy=False)

    def rest(self) -> None:
        """All that was taken is done."""
        self._note(running_tokens=0, is_busy=False, idle_since=time.monotonic())

    @contextmanager
    def busy(self, tokens: int = 0, done: Callable[[], int] | None = None) -> Iterator[int]:
        """Inside the block this scorer counts as busy, working on so many of the tokens that it has taken.

        Gives the number of busy scorers, itself included.

        Args:
            tokens: that it will work on.
            done: how many of them it has worked on, asked at the end; default: all.
        """
        self._note(is_busy=True)
        scorers = max(1, sum(state.is_busy for state in self._all_states()))
        began = time.monotonic()
        try:
            yield scorers
            # Each busy scorer has its share of the cores, so together they do so many times as much.
            worked = scorers * (tokens if done is None else done())
            for speed in (self._speed, self._speeds[class_of(tokens)]):
                speed.note(worked, time.monotonic() - began)
        finally:
            self.skip(tokens)

    def _note(self, **changes: Any) -> None:
        self.state = self.state._replace(
            **changes,
            tokens_per_second=self._speed.tokens_per_second,
            speeds=tuple(Speed(one.tokens_per_second, one.measured_at) for one in self._speeds),
        )

    @abstractmethod
    def _all_states(self) -> Sequence[ScorerState]:
        """Of all scorers that share the cores with this one."""


class LaneCounter(ScorerCounter):
    """Of a scorer in the gate's own process (``lanes.py``): there is nothing to write.

    Args:
        lanes: the counters of all of them, this one included once it is made.
    """

    def __init__(self, lanes: Sequence["LaneCounter"]) -> None:
        super().__init__()
        self._lanes = lanes

    def _all_states(self) -> Sequence[ScorerState]:
        return [lane.state for lane in self._lanes]


class StartedCounter(ScorerCounter):
    """Of a scorer in a process of its own: a small file tells the gate, and the other scorers.

    Args:
        instance: its name.
        folder: of the files; default: a folder of this server.
    """

    def __init__(self, instance: str, folder: Path | None = None) -> None:
        super().__init__()
        self._folder = folder or counter_folder()
        self._path = self._folder / instance
        self._file = -1
        self._note()

    def _all_states(self) -> Sequence[ScorerState]:
        return scorer_states(self._folder)

    def _note(self, **changes: Any) -> None:
        """Tell the gate; where nothing can be written it has to do without."""
        super()._note(**changes)
        with suppress(OSError):
            if self._file < 0 or not os.fstat(self._file).st_nlink:  # somebody cleaned up
                self._open()
            os.pwrite(self._file, self.state.packed(), 0)

    def _open(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        make_private(self._folder)
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


def class_of(tokens: int) -> int:
    """Which of ``ScorerState.speeds`` a request of so many tokens belongs to."""
    return sum(tokens >= fewest for fewest in LARGER_CLASSES)


def counter_folder(queue: str = "") -> Path:
    """A folder that the models of one ensemble find: those of one server are children of the same process.

    Args:
        queue: the ensemble, which has a queue of its own.
    """
    folder = Path(tempfile.gettempdir()) / f"tritonrank-queue-{os.getppid()}" / queue
    make_private(folder)
    return folder


def make_private(folder: Path) -> None:
    """Make a folder that only this user can read; without it there are no counts, and nothing else is lost."""
    with suppress(OSError):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


def scorer_states(folder: Path) -> list[ScorerState]:
    """What the instances say; nothing of one that is just gone."""
    states = []
    try:
        paths = [*folder.iterdir()]
    except OSError:
        make_private(folder)
        return []
    for path in paths:
        with suppress(OSError):
            states.append(ScorerState.unpacked(path.read_bytes()))
    return states
