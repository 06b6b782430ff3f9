"""The verb ``waiting``: what p50 and p99 of a page follow from its work alone, on threads that pages share.

A page is some work of the gateway, the ranker's, which takes all threads while it is alone, and some more of the
gateway; behind it comes work that nobody waits for, such as events and the load generator's own. Arrivals are Poisson.
Whatever can run shares the machine evenly (processor sharing), as an operating system does it; two hardware threads of
one core do together hardly more than one. Nothing is in it that could be mended by another order of the same work: what
is measured beyond it has another cause, and what is not can only become faster by less work.
"""

import json
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

Stage = Literal["before", "ranker", "after", "other"]
WARM_UP = 0.02
"""Of the pages, which are not counted: the machine is empty at first."""
DONE = 1e-9


@dataclass(frozen=True)
class Work:
    """Milliseconds of one thread that has a core for itself.

    Attributes:
        before, after: of the gateway, before and after the ranker.
        ranker: shared out among the threads while no other page is ranked.
        other: that the page's answer does not wait for.
    """

    before: float
    ranker: float
    after: float
    other: float

    @property
    def total(self) -> float:
        return self.before + self.ranker + self.after + self.other


@dataclass(frozen=True)
class Machine:
    """Attributes:
    threads: of the hardware.
    together: what all of them do in the time in which one alone does 1.
    lanes: lists that are ranked at once.
    """

    threads: int = 2
    together: float = 1.25
    lanes: int = 2

    def speed(self, running: int) -> float:
        """What each of so many does in the time in which one alone does 1."""
        if running <= 1:
            return 1.0
        busy = min(running, self.threads)
        return (1 + (self.together - 1) * (busy - 1) / max(1, self.threads - 1)) / running


@dataclass
class _Running:
    left: float
    page: int
    stage: Stage


@dataclass
class _Played:
    """One run; milliseconds."""

    work: Work
    machine: Machine
    now: float = 0.0
    running: list[_Running] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
    parts: dict[int, int] = field(default_factory=dict)
    line: deque[int] = field(default_factory=deque)
    took: list[float] = field(default_factory=list)

    def until(self, moment: float) -> bool:
        """Go on until then, or to the end of what ends first; whether it was the moment."""
        speed = self.machine.speed(len(self.running))
        first = min((one.left for one in self.running), default=float("inf")) / speed
        step = min(first, moment - self.now)
        self.now += step
        for one in self.running:
            one.left -= step * speed
        if step < first:
            return True
        ended = [one for one in self.running if one.left <= DONE]
        self.running = [one for one in self.running if one.left > DONE]
        for one in ended:
            self._end(one)
        return False

    def come(self, page: int) -> None:
        self.began[page] = self.now
        self.running.append(_Running(self.work.before, page, "before"))

    def _end(self, one: _Running) -> None:
        if one.stage == "before":
            self.line.append(one.page)
        elif one.stage == "ranker":
            self.parts[one.page] -= 1
            if not self.parts[one.page]:
                del self.parts[one.page]
                self.running.append(_Running(self.work.after, one.page, "after"))
        elif one.stage == "after":
            self.took.append(self.now - self.began.pop(one.page))
            if self.work.other:
                self.running.append(_Running(self.work.other, one.page, "other"))
        while self.line and len(self.parts) < self.machine.lanes:
            self._rank(self.line.popleft())

    def _rank(self, page: int) -> None:
        parts = max(1, self.machine.threads // (len(self.parts) + 1))
        self.parts[page] = parts
        self.running += [_Running(self.work.ranker / parts, page, "ranker") for _ in range(parts)]


def waited(work: Work, machine: Machine, rate: float, pages: int, seed: int = 0) -> list[float]:
    """Milliseconds that pages took, rising.

    Args:
        work: of a page.
        machine: that does it.
        rate: pages per second.
        pages: to be played.
        seed: of arrivals.
    """
    dice, played, next_at = random.Random(seed), _Played(work, machine), 0.0
    for page in range(pages):
        next_at += dice.expovariate(rate / 1_000)
        while not played.until(next_at):
            pass
        played.come(page)
    while len(played.took) < pages:
        played.until(float("inf"))
    return sorted(played.took[int(WARM_UP * pages) :])


def waiting(
    ranker: Annotated[float, typer.Option(min=0.1, help="Milliseconds of one thread that the ranker takes")] = 45.0,
    own: Annotated[float, typer.Option(min=0.1, help="Of the gateway, two thirds of them before the ranker")] = 9.0,
    other: Annotated[float, typer.Option(min=0, help="Behind a page: events, and the load generator's own")] = 14.0,
    rate: Annotated[float, typer.Option(min=0, help="Pages per second; 0: half of what the machine can do")] = 0.0,
    together: Annotated[float, typer.Option(min=1, help="What all threads do, in what one alone does")] = 1.25,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Of the hardware")] = 2,
    pages: Annotated[int, typer.Option(min=100, max=1_000_000, help="To be played")] = 40_000,
) -> None:
    """What p50 and p99 of a page follow from its work alone: no order of the same work makes them less."""
    work = Work(2 * own / 3, ranker, own / 3, other)
    most = 1_000 * (together if threads > 1 else 1.0) / work.total
    chosen = rate or most / 2
    if chosen >= most:
        raise typer.BadParameter(
            f"{chosen:g} pages per second are more than the {most:.1f} that can be done", param_hint="--rate"
        )
    table = Table("lists ranked at once", *(Column(name, justify="right") for name in ("p50", "p90", "p99")))
    told: dict[str, list[float]] = {}
    for lanes in (threads, 1):
        took = waited(work, Machine(threads, together, lanes), chosen, pages)
        told[str(lanes)] = [round(took[int(share * len(took))], 1) for share in (0.5, 0.9, 0.99)]
        table.add_row(str(lanes), *(f"{value:.0f} ms" for value in told[str(lanes)]))
    Console(emoji=False).print(f"{chosen:.1f} of {most:.1f} pages per second", highlight=False)
    Console(emoji=False).print(table)
    print(json.dumps({"rate": round(chosen, 2), "most": round(most, 2), "milliseconds": told}))
