"""When requests are due: phases with a wanted rate each, and the workload's own arrivals stretched to fit them.

A workload holds arrival times: Poisson gaps, a day's curve, a burst. What they look like is kept, how fast they come is
the plan's business. Counted in requests instead of seconds the workload is a process of mean rate 1; request number u
of it is due when the plan's cumulative rate has reached u. So a steady plan replays the workload at another speed, a
ramp speeds it up, and no arrival waits for an answer (an open loop).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

WARM_UP = "warm-up"
STEADY = "steady"
SPIKE = "spike"
ShapeName = Literal["steady", "ramp", "spike", "soak", "overload", "closed"]
SHAPES: tuple[ShapeName, ...] = get_args(ShapeName)

SPIKE_SHARE = 0.3
"""Of a spike plan's time; half of the rest lies before it and half behind it."""
OVERLOAD_SHARES = (0.25, 0.45, 0.3)
"""Of an overload plan's time: at saturation, beyond it, and recovering."""
RECOVERY_RATE = 0.5
"""Of saturation: what comes in while the server recovers."""
RAMP_STEPS = 8
RAMP_START = 0.4
"""Of the highest rate: where a ramp begins."""


class PlanError(ValueError):
    """A plan that cannot be followed; the message names the option or the key."""


class PlannedPhase(BaseModel):
    """A part of a run: for so long at one rate, or from one rate to another in a straight line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    seconds: float = Field(gt=0, le=86_400)
    rate: float = Field(ge=0, le=1_000_000, description="requests per second; at the start, where it changes")
    last_rate: float | None = Field(None, ge=0, le=1_000_000, description="at the end; None: as at the start")
    counts: bool = Field(True, description="False for a warm-up")

    @property
    def requests(self) -> float:
        """How many are due in it, not rounded."""
        return self.seconds * (self.rate + self.end_rate) / 2

    @property
    def end_rate(self) -> float:
        return self.rate if self.last_rate is None else self.last_rate

    def seconds_until(self, requests: float) -> float:
        """When so many requests of the phase are due, since its start: the inverse of its cumulative rate."""
        growth = (self.end_rate - self.rate) / self.seconds
        if growth == 0:
            return requests / self.rate
        # rate * t + growth * t^2 / 2 = requests, in the form that does not cancel where growth is small.
        return 2 * requests / (self.rate + math.sqrt(max(0.0, self.rate**2 + 2 * growth * requests)))


class Plan(BaseModel):
    """All phases of a run, one after the other; or ``clients`` that each wait for their answers (a closed loop)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: str = Field(min_length=1, description="what the phases are together")
    phases: list[PlannedPhase] = Field(min_length=1)
    clients: int | None = Field(None, ge=1, description="a closed loop of so many; the rates then say nothing")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [phase.name for phase in self.phases]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two phases are called {sorted(twice)[0]!r}; an objective could not tell them apart")
        if self.clients is None and not any(phase.requests for phase in self.phases):
            raise ValueError("no request is due in any phase; give one of them a rate above 0")
        return self

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def most_per_second(self) -> float:
        return max(max(phase.rate, phase.end_rate) for phase in self.phases)

    def spans(self) -> Iterator[tuple[PlannedPhase, float, float]]:
        """Each phase with its start and end in seconds."""
        ends = list(itertools.accumulate(phase.seconds for phase in self.phases))
        yield from zip(self.phases, [0.0, *ends], ends, strict=False)


class Arrival(NamedTuple):
    """One request that is due."""

    due: float
    """seconds since the start of the run"""
    place: int
    """of the request in the workload"""
    number: int
    """of the arrival, from 0"""


def arrivals(plan: Plan, times: Sequence[float]) -> Iterator[Arrival]:
    """Every request of the plan in the order in which it is due; the workload starts again where it is too short.

    Args:
        plan: an open loop.
        times: the workload's own arrival times, ascending, at least one.
    """
    clock = _unit_rate(times)
    number, turn = 0, next(clock)
    passed = 0.0
    for phase, start, _ in plan.spans():
        while turn < passed + phase.requests:
            yield Arrival(start + phase.seconds_until(turn - passed), number % len(times), number)
            number, turn = number + 1, next(clock)
        passed += phase.requests


def _unit_rate(times: Sequence[float]) -> Iterator[float]:
    """The workload's times as a process of mean rate 1 that never ends."""
    scale = len(times) / times[-1] if times[-1] > 0 else 0.0
    for lap in itertools.count():
        for place, time in enumerate(times):
            yield lap * len(times) + (time * scale if scale else float(place))


def plan_of(
    shape: ShapeName,
    *,
    rate: float,
    seconds: float,
    warm_up_seconds: float = 0.0,
    peak: float = 3.0,
    clients: int = 1,
    start: float = RAMP_START,
) -> Plan:
    """The phases behind a shape's name.

    Args:
        shape: steady and soak keep to one rate; ramp climbs to it in steps; spike jumps to ``peak`` times the rate and
            back; overload takes the rate for saturation, goes to ``peak`` times that and lets the server recover;
            closed has ``clients`` that wait for their answers.
        rate: requests per second.
        seconds: of all phases that count.
        warm_up_seconds: before them, at half of the first rate.
        peak: how many times the rate a spike or an overload is.
        clients: of a closed loop.
        start: of the rate, where a ramp begins.

    Raises:
        PlanError: a number is out of range.
    """
    phases = {
        "steady": [(STEADY, 1.0, 1.0)],
        "soak": [("soak", 1.0, 1.0)],
        "closed": [("closed", 1.0, 1.0)],
        "ramp": ramp_steps(rate, start=start),
        "spike": [
            ("before", (1 - SPIKE_SHARE) / 2, 1.0),
            (SPIKE, SPIKE_SHARE, peak),
            ("after", (1 - SPIKE_SHARE) / 2, 1.0),
        ],
        "overload": [
            ("saturation", OVERLOAD_SHARES[0], 1.0),
            ("overload", OVERLOAD_SHARES[1], peak),
            ("recovery", OVERLOAD_SHARES[2], RECOVERY_RATE),
        ],
    }[shape]
    try:
        planned = [PlannedPhase(name=name, seconds=share * seconds, rate=part * rate) for name, share, part in phases]
        if warm_up_seconds:
            planned.insert(0, warm_up(warm_up_seconds, planned[0].rate))
        return Plan(shape=shape, phases=planned, clients=clients if shape == "closed" else None)
    except ValidationError as error:
        raise PlanError(f"shape {shape}: {_faults(error)}") from None


def warm_up(seconds: float, first_rate: float) -> PlannedPhase:
    """What comes before the phases that count."""
    return PlannedPhase(name=WARM_UP, seconds=seconds, rate=first_rate / 2, counts=False)


def ramp_steps(highest: float, steps: int = RAMP_STEPS, start: float = RAMP_START) -> list[tuple[str, float, float]]:
    """Rising steps of equal length as (name, share of the time, share of the highest rate), by equal factors."""
    factor = (1 / start) ** (1 / (steps - 1))
    shares = [start * factor**step for step in range(steps)]
    return [(f"ramp {share * highest:.4g}/s", 1 / steps, share) for share in shares]


def read_plan(path: Path) -> Plan:
    """A plan from its JSON file.

    Raises:
        PlanError: missing, not JSON, or not a plan; all faults with their keys.
    """
    try:
        return Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise PlanError(f"{path}: {_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'plan'}: {fault['msg']}" for fault in error.errors())
