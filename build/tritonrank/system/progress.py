"""Progress of everything long, in one place: bars for people at a terminal, lines for logs.

At a terminal one line tells of the whole build (which stage of how many, minutes gone, minutes left), and one more of
what is being done just now. Without a terminal (CI, nohup, docker logs) nothing is redrawn: whatever runs for longer
than HEARTBEAT_SECONDS says so, how far it is and how long it will go on, and says it again after as long.

    for example in track(examples, "judging INT8"): ...

    with step("finetune", total=steps) as bar: bar.update(completed=7, note="loss 0.41")

Both may be used inside each other, and inside of ``whole``, which the pipeline opens.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn

HEARTBEAT_SECONDS = 30.0
HEARTBEAT_VARIABLE = "TRITONRANK_HEARTBEAT_SECONDS"
"""Environment variable with another number of seconds between two lines of a log."""
FIRST_GUESS = 0.02
"""Share of a step from which its speed says when it ends."""

Thing = TypeVar("Thing")


def in_words(seconds: float) -> str:
    """A time as people say it, no finer than it is known."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    if minutes >= 100:
        return f"{minutes / 60:.1f} h"
    return f"{minutes:.0f} min" if minutes >= 5 else f"{round(2 * minutes) / 2:g} min"


@dataclass(eq=False)
class Step:
    """Something with a beginning and, if it is known, an end."""

    title: str
    total: float | None
    """how much there is to do; None: not known"""
    started: float
    completed: float = 0.0
    skipped: float = 0.0
    """what was done before, by a run that was interrupted"""
    note: str = ""
    task: TaskID | None = None
    """its bar, where there are bars"""

    def advance(self, by: float = 1.0) -> None:
        self.completed += by

    def resume(self, completed: float) -> None:
        """Go on from here: what was done before says nothing about how fast it goes."""
        self.completed = self.skipped = completed

    def update(self, *, completed: float | None = None, note: str | None = None) -> None:
        self.completed = self.completed if completed is None else completed
        self.note = self.note if note is None else note

    @property
    def share(self) -> float | None:
        return min(1.0, self.completed / self.total) if self.total else None

    def counts(self) -> str:
        return f"{self.completed:,.0f} of {self.total:,.0f}" if self.total else ""

    def seconds_left(self, now: float) -> float | None:
        """By the speed so far; None where that says nothing yet."""
        if not self.total or (done := self.completed - self.skipped) < FIRST_GUESS * self.total:
            return None
        return (now - self.started) * max(0.0, self.total - self.completed) / done


@dataclass
class Whole:
    """A build: its stages, and how long each is expected to take."""

    stages: Sequence[str]
    expected: Mapping[str, float]
    """seconds by stage; of those that are not in it nothing is known"""
    started: float
    stage_started: float = 0.0
    place: int = -1
    """of the stage that runs"""
    taken: dict[str, float] = field(default_factory=dict)
    """seconds of stages that have ended"""
    task: TaskID | None = None

    def begin(self, stage: str, now: float) -> None:
        self.place, self.stage_started = self.stages.index(stage), now

    def end(self, now: float) -> None:
        self.taken[self.stages[self.place]] = now - self.stage_started

    def title(self) -> str:
        return f"stage {self.place + 1} of {len(self.stages)}, {self.stages[self.place]}" if self.place >= 0 else ""

    def seconds_left(self, now: float, step: Step | None) -> float | None:
        """What the stages that are left are expected to take, corrected by what those before took.

        Args:
            now: the time.
            step: what is being done, whose speed says more than what was expected.
        """
        if self.place < 0 or any(stage not in self.expected for stage in self.stages[self.place + 1 :]):
            return None
        known = [stage for stage in self.taken if stage in self.expected]
        foreseen = sum(self.expected[stage] for stage in known)
        slower = sum(self.taken[stage] for stage in known) / foreseen if foreseen else 1.0
        later = slower * sum(self.expected[stage] for stage in self.stages[self.place + 1 :])
        of_step = step.seconds_left(now) if step and step.started >= self.stage_started else None
        expected = self.expected.get(self.stages[self.place])
        if expected is None and of_step is None:
            return None
        of_stage = max(0.0, slower * (expected or 0.0) - (now - self.stage_started))
        # A step is a part of its stage: the stage cannot end before it, and may go on after it.
        return later + max(of_stage, of_step or 0.0)


class Board:
    """What runs now, and how it is shown.

    Args:
        console: where to.
        bars: whether lines can be redrawn there; default: whether it is a terminal.
        clock: seconds.
        interval: seconds between two lines where there are no bars; default: the environment's, or 30.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        bars: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval: float | None = None,
    ) -> None:
        self._console = console or Console()
        self._bars = bars
        self._clock = clock
        self._interval = interval
        self._is_shown = False
        self._steps: list[Step] = []
        self._whole: Whole | None = None
        self._display: _Display | None = None

    @contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Step]:
        """Something to be shown while the block runs."""
        one = Step(title, total, self._clock())
        with self._shown() as display:
            one.task = display.add_task("", total=total, note="") if display else None
            self._steps.append(one)
            try:
                yield one
            finally:
                self._steps.remove(one)
                if display and one.task is not None:
                    display.remove_task(one.task)

    @contextmanager
    def whole(self, stages: Sequence[str], expected: Mapping[str, float]) -> Iterator[None]:
        """Work of these stages; ``stage`` says which one runs. Within another whole only the outer one is told of.

        Args:
            stages: their names in order.
            expected: seconds by stage, as far as they are known.
        """
        if self._whole is not None:
            yield
            return
        with self._shown() as display:
            self._whole = Whole(stages, expected, self._clock())
            self._whole.task = display.add_task("", total=1.0, note="") if display else None
            try:
                yield
            finally:
                if display and self._whole.task is not None:
                    display.remove_task(self._whole.task)
                self._whole = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One of the stages of ``whole``; of others nothing is shown."""
        whole = self._whole
        if whole is None or name not in whole.stages:
            yield
            return
        whole.begin(name, self._clock())
        yield
        whole.end(self._clock())

    def line(self) -> str:
        """What runs now, as a line of a log."""
        now, step, whole = self._clock(), self._steps[-1] if self._steps else None, self._whole
        said = whole.title() if whole and whole.place >= 0 else ""
        if step:
            # A stage with one long step calls it as itself: once is enough.
            is_stage = bool(said) and said.endswith(f", {step.title}")
            said = said if is_stage else ": ".join(filter(None, [said, step.title]))
            said += f" {step.share:.0%} ({step.counts()})" if step.share is not None else ""
            said += f", {step.note}" if step.note else ""
        started = whole.started if whole else step.started if step else now
        return f"  {said}; {self._times(now, started, step)}"

    def refresh(self, display: Progress) -> None:
        """Bring the bars up to date."""
        now, steps, whole = self._clock(), list(self._steps), self._whole
        with suppress(KeyError):  # a bar was removed just now
            if whole and whole.task is not None and whole.place >= 0:
                step = steps[-1] if steps else None
                left, gone = whole.seconds_left(now, step), now - whole.started
                share = gone / (gone + left) if left is not None and gone + left else 0.0
                times = self._times(now, whole.started, step)
                display.update(whole.task, description=whole.title(), completed=share, note=times)
            for one in steps:
                if one.task is not None:
                    note = ", ".join(filter(None, [one.counts(), one.note]))
                    display.update(one.task, description=f"  {one.title}", completed=one.completed, note=note)

    def _times(self, now: float, started: float, step: Step | None) -> str:
        left = self._whole.seconds_left(now, step) if self._whole else step.seconds_left(now) if step else None
        gone = f"{in_words(now - started)} gone"
        return gone if left is None else f"{gone}, about {in_words(left)} left"

    @contextmanager
    def _shown(self) -> Iterator["_Display | None"]:
        """Bars, or a heartbeat, from the outermost thing that is shown to its end; the bars, if there are any."""
        if self._is_shown or os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
            yield self._display
            return
        self._is_shown = True
        try:
            if self._has_bars():
                with _Display(self, self._console) as self._display:
                    yield self._display
            else:
                with self._heartbeat():
                    yield None
        finally:
            self._is_shown, self._display = False, None

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(ended,), name="progress", daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()

    def _beat(self, ended: threading.Event) -> None:
        interval = self._interval or _interval_of_environment()
        while not ended.wait(interval):
            if self._steps or (self._whole and self._whole.place >= 0):
                self._console.print(self.line(), markup=False, highlight=False, soft_wrap=True)

    def _has_bars(self) -> bool:
        """FORCE_COLOR makes rich take a log for a terminal; lines cannot be redrawn in it all the same."""
        if self._bars is not None:
            return self._bars
        return self._console.is_terminal and not self._console.is_dumb_terminal and sys.stdout.isatty()


class _Display(Progress):
    """Bars that vanish when they are done, and ask the board before each drawing."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        texts = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}")]
        columns = (texts[0], BarColumn(), texts[1])
        super().__init__(*columns, console=console, transient=True, refresh_per_second=4)

    def get_renderables(self) -> Iterable[RenderableType]:
        self._board.refresh(self)
        return super().get_renderables()


def _interval_of_environment() -> float:
    try:
        return max(0.05, float(os.environ.get(HEARTBEAT_VARIABLE, HEARTBEAT_SECONDS)))
    except ValueError:
        return HEARTBEAT_SECONDS


board = Board()
"""That of this process."""
step, whole, stage = board.step, board.whole, board.stage


def track(things: Iterable[Thing], title: str, *, total: float | None = None) -> Iterator[Thing]:
    """The same things one by one, while it is shown how many are done.

    Args:
        things: to go through.
        title: what is being done.
        total: how many there are, where ``len`` does not tell.
    """
    count = total if total is not None else len(things) if isinstance(things, Sized) else None
    with step(title, count) as one:
        for thing in things:
            yield thing
            one.advance()
