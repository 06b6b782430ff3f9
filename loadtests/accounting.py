"""From single outcomes to the figures of a run: by second, by phase, and over all.

The schedule is the reference: everything that was due counts, whether or not it was ever sent. Latency begins when a
request was due. What is still open when the generator stops waiting is a failure, not a request that never was.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from loadtests.results import ClientHealth, FailureKind, Phase, Second, Spread, Totals
from loadtests.shapes import Plan

LARGEST_LAG_MS = 50.0
"""Largest p99 of the generator's own delay. On two cores that a saturated server shares, a sender waits its turn for
some milliseconds; a generator that is too slow for its rate falls behind by seconds."""
ALLOWED_UNSENT_SHARE = 0.001
"""Of what was due; more than that, and the load was not the one that was asked for."""
MOST_MESSAGES = 5
"""Kept of each kind of failure."""


GOLDEN, AFTERWARDS = -1, -2
"""In place of an arrival's number: of a golden request, and of events that follow a page."""


class Outcome(NamedTuple):
    """What became of one request; times in seconds since the start of the run."""

    number: int
    """of the arrival; GOLDEN or AFTERWARDS for what is none"""
    due: float
    sent: float
    ended: float
    kind: FailureKind | None
    """None: answered rightly"""
    candidates: int
    bytes: int
    level: str = ""
    """at which a gateway made the list; empty where none was made, or where it does not tell"""

    @property
    def counts(self) -> bool:
        """Golden requests count where an answer was wrong, what follows a page wherever it failed."""
        return self.number >= 0 or self.kind == "wrong" or (self.number == AFTERWARDS and self.kind is not None)

    @property
    def is_sent(self) -> bool:
        return math.isfinite(self.sent)

    @property
    def latency_ms(self) -> float:
        return 1_000 * (self.ended - self.due)

    @property
    def service_ms(self) -> float:
        return 1_000 * (self.ended - self.sent)


@dataclass
class Recorder:
    """Collects outcomes; one in each process that sends, and one where they all come together."""

    outcomes: list[Outcome] = field(default_factory=list)
    messages: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    artifact: str = ""
    steps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """milliseconds by the name of what took them, as far as the server or the visitor tells"""
    answered: int = 0
    """requests of the load that are done with, rightly or not"""

    @property
    def has_right_answers(self) -> bool:
        """Whether a request of the load was answered rightly."""
        return any(outcome.kind is None and outcome.number >= 0 for outcome in self.outcomes)

    def add(self, outcome: Outcome, message: str = "") -> None:
        self.outcomes.append(outcome)
        self.answered += outcome.number >= 0
        if outcome.kind and len(self.messages[outcome.kind]) < MOST_MESSAGES:
            self.messages[outcome.kind].append(message)

    def add_steps(self, milliseconds: Mapping[str, float]) -> None:
        for name, value in milliseconds.items():
            self.steps[name].append(value)

    def take(self) -> dict[str, object]:
        """Everything since the last time, in types that cross a process boundary."""
        outcomes, self.outcomes = self.outcomes, []
        messages, self.messages = self.messages, defaultdict(list)
        steps, self.steps = self.steps, defaultdict(list)
        return {
            "steps": dict(steps),
            "outcomes": [tuple(outcome) for outcome in outcomes],
            "messages": dict(messages),
            "artifact": self.artifact,
        }

    def put(
        self,
        outcomes: Iterable[Sequence[object]],
        messages: dict[str, list[str]],
        artifact: str,
        steps: Mapping[str, Sequence[float]],
    ) -> None:
        """What another process has taken."""
        for values in outcomes:
            outcome = Outcome._make(values)
            self.outcomes.append(outcome)
            self.answered += outcome.number >= 0
        for kind, texts in messages.items():
            self.messages[kind] = (self.messages[kind] + texts)[:MOST_MESSAGES]
        for name, values in steps.items():
            self.steps[name].extend(values)
        self.artifact = artifact or self.artifact

    def failures(self) -> list[str]:
        """The first messages of each kind, for people."""
        return [f"{kind}: {text}" for kind, texts in sorted(self.messages.items()) for text in dict.fromkeys(texts)]


@dataclass
class Accounts:
    """What is known about a finished run.

    Args:
        plan: what was wanted.
        due: when each request of the plan was due; empty in a closed loop, where a request is due when it is sent.
        outcomes: of all processes, golden requests included.
        deadline_seconds: an answer later than this after it was due is no good.
        stopped_at: when the run was broken off; None: it ran to its end.
    """

    plan: Plan
    due: Sequence[float]
    outcomes: Sequence[Outcome]
    deadline_seconds: float
    stopped_at: float | None = None

    @property
    def seconds(self) -> float:
        planned = self.plan.seconds
        return planned if self.stopped_at is None else min(planned, max(self.stopped_at, 0.0))

    def per_second(self) -> list[Second]:
        """Every second of the run, those without a request too."""
        rows: dict[int, list[Outcome]] = defaultdict(list)
        for outcome in self._all:
            rows[int(outcome.due)].append(outcome)
        sent = Counter(int(one.sent) for one in self._all if one.is_sent)
        in_flight = _in_flight(self._all)
        seconds = []
        for second in range(math.ceil(self.seconds)):
            figures = _Figures(rows[second], self.deadline_seconds)
            seconds.append(
                Second(
                    second=second,
                    phase=self._phase_at(second),
                    offered=len(rows[second]),
                    sent=sent[second],
                    answered=len(figures.answered),
                    good=figures.good,
                    failed=figures.failed,
                    latency=figures.latency,
                    service=figures.service,
                    rejection=figures.rejection,
                    candidates=figures.candidates,
                    bytes=sum(one.bytes for one in figures.answered),
                    in_flight=in_flight(second + 1),
                    levels=dict(Counter(one.level for one in rows[second] if one.level)),
                )
            )
        return seconds

    def phases(self) -> list[Phase]:
        """The plan's phases as far as the run came."""
        everything = sorted(self._all, key=lambda outcome: outcome.due)
        phases = []
        for planned, start, planned_end in self.plan.spans():
            end = min(planned_end, self.seconds)
            if end <= start:
                break
            inside = [outcome for outcome in everything if start <= outcome.due < end]
            phases.append(
                Phase(
                    name=planned.name,
                    start_second=round(start, 3),
                    end_second=round(end, 3),
                    rate=planned.rate if planned.last_rate is None and self.plan.clients is None else None,
                    counts=planned.counts,
                    totals=_totals(inside, end - start, self.deadline_seconds),
                )
            )
        return phases

    def totals(self) -> Totals:
        """All phases that count."""
        spans = self._counted_spans()
        return _totals(self._counted(), sum(max(0.0, end - start) for start, end in spans), self.deadline_seconds)

    def health(self, senders: int, processes: int, cpu_seconds: float | None) -> ClientHealth:
        """Whether the generator kept its own schedule.

        Args:
            senders: requests that can be in flight at once.
            processes: that sent.
            cpu_seconds: what they took together.
        """
        sent = [one for one in self._all if one.is_sent]
        lag = Spread.of([1_000 * (one.sent - one.due) for one in self._counted() if one.is_sent])
        unsent = sum(one.kind == "unanswered" and not one.is_sent for one in self._all)
        in_flight = _in_flight(sent)
        most = max((in_flight(one.sent) for one in sent), default=0)
        why = ""
        if not sent:
            why = "nothing was sent"
        elif unsent > ALLOWED_UNSENT_SHARE * len(self.due):
            why = f"{unsent} requests were due and never sent: all {senders} senders were waiting; give more --senders"
        elif lag.p99 is not None and lag.p99 > LARGEST_LAG_MS:
            why = (
                f"p99 of the generator's own delay is {lag.p99:.0f} ms (at most {LARGEST_LAG_MS:.0f}): it was too slow "
                "for this rate. Use --processes, more --senders, or a machine of its own"
            )
        return ClientHealth(
            lag=lag,
            allowed_lag_ms=LARGEST_LAG_MS,
            unsent=unsent,
            senders=senders,
            most_in_flight=most,
            processes=processes,
            cpu_share=None if cpu_seconds is None or not self.seconds else round(cpu_seconds / self.seconds, 3),
            valid=not why,
            why=why,
        )

    @cached_property
    def _all(self) -> list[Outcome]:
        """What was due until the run ended: the load, what is missing of it, and golden requests that went wrong."""
        load = [one for one in self.outcomes if one.due < self.seconds and one.counts]
        seen = {one.number for one in load}
        return load + [
            Outcome(number, due, math.nan, math.nan, "unanswered", 0, 0)
            for number, due in enumerate(self.due)
            if due < self.seconds and number not in seen
        ]

    def _counted(self) -> list[Outcome]:
        spans = self._counted_spans()
        return [one for one in self._all if any(start <= one.due < end for start, end in spans)]

    def _counted_spans(self) -> list[tuple[float, float]]:
        return [(start, min(end, self.seconds)) for phase, start, end in self.plan.spans() if phase.counts]

    def _phase_at(self, second: float) -> str:
        return next((phase.name for phase, _, end in self.plan.spans() if second < end), self.plan.phases[-1].name)


class _Figures:
    """Outcomes of a stretch of time, sorted by how they ended."""

    def __init__(self, outcomes: Sequence[Outcome], deadline_seconds: float) -> None:
        self.answered = [one for one in outcomes if one.kind is None]
        self.good = sum(one.ended - one.due <= deadline_seconds for one in self.answered)
        self.failed: dict[FailureKind, int] = dict(Counter(one.kind for one in outcomes if one.kind is not None))
        self.candidates = sum(one.candidates for one in self.answered)
        self.latency = Spread.of([one.latency_ms for one in self.answered])
        self.service = Spread.of([one.service_ms for one in self.answered])
        self.rejection = Spread.of([one.latency_ms for one in outcomes if one.kind == "rejected"])


def _totals(outcomes: Sequence[Outcome], seconds: float, deadline_seconds: float) -> Totals:
    figures = _Figures(outcomes, deadline_seconds)

    def per_second(count: int) -> float:
        return round(count / seconds, 4) if seconds else 0.0

    return Totals(
        seconds=round(seconds, 3),
        offered=len(outcomes),
        sent=sum(one.is_sent for one in outcomes),
        answered=len(figures.answered),
        good=figures.good,
        failed=figures.failed,
        offered_per_second=per_second(len(outcomes)),
        answered_per_second=per_second(len(figures.answered)),
        goodput_per_second=per_second(figures.good),
        candidates_per_second=per_second(figures.candidates),
        error_rate=round(sum(figures.failed.values()) / len(outcomes), 6) if outcomes else 0.0,
        latency=figures.latency,
        service=figures.service,
        rejection=figures.rejection,
    )


def _in_flight(outcomes: Sequence[Outcome]) -> Callable[[float], int]:
    """How many requests were sent and not yet ended at some moment."""
    begins = sorted(one.sent for one in outcomes if one.is_sent)
    ends = sorted(one.ended for one in outcomes if one.is_sent)
    return lambda moment: bisect_right(begins, moment) - bisect_right(ends, moment)
