"""Service-level objectives, and whether a run has met them.

``slo.yaml`` says under which load what has to hold. Each part of it belongs to a phase of a run; the parts whose phases
the run has are judged, each limit is one verdict with the number that was found. A run in which there is nothing to
measure meets nothing, and one whose generator could not keep its own schedule is no evidence at all.
"""

from collections.abc import Callable, Iterator, Sequence
from math import isclose
from pathlib import Path
from statistics import median
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtests.results import ERROR_RATE, GOODPUT, GOODPUT_OF_PEAK, OWN_STEPS, SATURATION, Phase, Run, Second, Verdict
from loadtests.shapes import SPIKE, STEADY

SUSTAINED = 0.95
"""Share of the offered requests answered within the deadline up to which a rate counts as sustained."""
FIRST_MINUTE_SECONDS = 60.0
SETTLED_SECONDS = 5.0
"""Of a phase's end: what memory is held then."""
RECOVERED_SHARE = 0.99
"""Of the requests due in a second: answered in time, and the server has recovered; Poisson leaves few in a second."""
DEFAULT_FILE = Path(__file__).with_name("slo.yaml")


class ObjectivesError(ValueError):
    """The file of objectives cannot be used; the message names file and key."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoadPart(_Part):
    """The load under which the objectives hold."""

    rate: float = Field(gt=0, description="requests per second at which latency is judged")
    candidates: int = Field(ge=1, le=1_000, description="in every request")
    deadline_ms: float = Field(gt=0, description="a later answer is no good")
    spike: float = Field(3.0, gt=1, le=100, description="times the rate")


class SteadyPart(_Part):
    """At the named rate."""

    p50_ms: float | None = Field(None, gt=0)
    p99_ms: float | None = Field(None, gt=0)
    error_rate: float | None = Field(None, ge=0, le=1, description="failed of offered")
    goodput: float | None = Field(None, ge=0, le=1, description="answered rightly within the deadline, of offered")


class RampPart(_Part):
    """While the rate climbs."""

    saturation: float = Field(gt=0, description="requests per second that are still answered in time")


class SpikePart(_Part):
    """During a burst and after it."""

    answered_p99_ms: float | None = Field(None, gt=0, description="of the requests that were taken")
    goodput: float | None = Field(None, ge=0, le=1, description="during the spike, of offered")
    recovery_seconds: float | None = Field(None, gt=0, description="after its end, until all are answered in time")


class SoakPart(_Part):
    """For a long time."""

    error_rate: float | None = Field(None, ge=0, le=1)
    memory_growth: float | None = Field(None, ge=0, description="share, from the end of the first minute to the last")


class OverloadPart(_Part):
    """Beyond saturation."""

    goodput_of_peak: float | None = Field(None, ge=0, le=1, description="goodput, of the best of any phase")
    p99_of_saturation: float | None = Field(None, gt=0, description="p99 of what was taken, of that at saturation")
    rejection_ms: float | None = Field(None, gt=0, description="p99 of the time until a refusal")
    memory_growth: float | None = Field(None, ge=0, description="share, from saturation to the end")
    recovery_seconds: float | None = Field(None, gt=0, description="after its end, until all are answered in time")


class StepsPart(_Part):
    """Of a gateway that recommends, as its answers tell."""

    own_p50_ms: float | None = Field(None, gt=0, description="store, retrieval and blend together, without the ranker")
    events_p99_ms: float | None = Field(None, gt=0, description="until a batch of events is acknowledged")


class Objectives(_Part):
    """A file of objectives."""

    load: LoadPart
    steady: SteadyPart | None = None
    ramp: RampPart | None = None
    spike: SpikePart | None = None
    soak: SoakPart | None = None
    overload: OverloadPart | None = None
    steps: StepsPart | None = None

    @model_validator(mode="after")
    def _limits_can_be_missed(self) -> Self:
        """Nothing comes back after the deadline: neither an answer nor a refusal can be slower than that."""
        limits = {
            "steady.p50_ms": self.steady and self.steady.p50_ms,
            "steady.p99_ms": self.steady and self.steady.p99_ms,
            "spike.answered_p99_ms": self.spike and self.spike.answered_p99_ms,
            "overload.rejection_ms": self.overload and self.overload.rejection_ms,
        }
        deadline = self.load.deadline_ms
        if beyond := [f"{key} {limit:g}" for key, limit in limits.items() if limit and limit >= deadline]:
            raise ValueError(
                f"{', '.join(beyond)}: nothing is slower than load.deadline_ms {deadline:g}, so it could not be missed"
            )
        return self

    def has_any(self, *parts: str) -> bool:
        """Whether one of these parts has a limit."""
        found = [getattr(self, part) for part in parts]
        return any(part is not None and any(limit is not None for _, limit in part) for part in found)


def read_objectives(path: Path = DEFAULT_FILE) -> Objectives:
    """Read and check a file of objectives.

    Raises:
        ObjectivesError: missing, not YAML, or with faults; all of them, each with its key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ObjectivesError(f"{path}: {error.strerror}. There is one to copy: {DEFAULT_FILE}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ObjectivesError(f"{path}: not valid YAML: {error}") from None
    try:
        return Objectives.model_validate(values)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, fault['loc'])) or 'file'}: {_told(fault)}" for fault in error.errors()]
        raise ObjectivesError(f"{path} has {len(faults)} fault(s):\n" + "\n".join(faults)) from None


def judged(run: Run, objectives: Objectives) -> Run:
    """The run with its saturation and a verdict for each objective that it can say something about.

    Raises:
        ObjectivesError: the run has no phase that any objective is about.
    """
    run = run.model_copy(update={"saturation_per_second": run.saturation_per_second or saturation(run)})
    verdicts = [_load_is_as_agreed(run, objectives.load), *_verdicts(run, objectives)]
    if len(verdicts) == 1:
        names = ", ".join(phase.name for phase in run.phases)
        raise ObjectivesError(f"no objective is about this run, whose phases are {names}; see loadtests/slo.yaml")
    return run.model_copy(update={"verdicts": verdicts})


def saturation(run: Run, sustained_share: float = SUSTAINED) -> float | None:
    """Requests per second offered in the highest step of the ramp that was sustained, and all steps below it too.

    Args:
        run: with a ramp.
        sustained_share: of the offered requests, that have to be answered rightly within the deadline.
    """
    sustained = None
    for phase in _ramp(run):
        if not phase.totals.offered or phase.totals.good < sustained_share * phase.totals.offered:
            break
        sustained = phase.totals.offered_per_second
    return sustained


def recovery_seconds(run: Run, after: float) -> float | None:
    """How long after a moment, in seconds of the run, requests still went wrong, to a whole second of the run.

    None: until the run's end, or nothing was offered afterwards.
    """
    seconds = _offered_after(run, after)
    bad = [row.second + 1 for row in seconds if row.good < RECOVERED_SHARE * row.offered]
    if not seconds or (bad and bad[-1] > seconds[-1].second):
        return None
    return max(0.0, bad[-1] - after) if bad else 0.0


def memory_growth(run: Run, first: tuple[float, float], last: tuple[float, float]) -> float | None:
    """Growth of the server's resident memory between two spans of the run, as a share; None: it was not seen."""

    def held(span: tuple[float, float]) -> float | None:
        values = [row.rss_bytes for row in run.server if row.rss_bytes and span[0] <= row.second <= span[1]]
        return median(values) if values else None

    before, after = held(first), held(last)
    return None if before is None or after is None else after / before - 1


def _verdicts(run: Run, objectives: Objectives) -> Iterator[Verdict]:
    judges: Sequence[tuple[Any, Phase | None, Callable[[Run, Phase, Any], Iterator[Verdict]]]] = (
        (objectives.steady, run.phase(STEADY), _steady),
        (objectives.ramp, next(iter(_ramp(run)), None), _ramped),
        (objectives.spike, run.phase(SPIKE), _spike),
        (objectives.soak, run.phase("soak"), _soak),
        (objectives.overload, run.phase("overload"), _overload),
        (objectives.steps, run.phase(STEADY) if run.steps else None, _steps),
    )
    for part, phase, judge in judges:
        if part is not None and phase is not None:
            yield from judge(run, phase, part)


def _load_is_as_agreed(run: Run, load: LoadPart) -> Verdict:
    """Latency of shorter lists, with another deadline or at another rate is no answer to the objectives."""
    smallest, largest = run.workload.candidates_p50, run.workload.candidates_max
    met = smallest == largest == load.candidates and run.deadline_ms == load.deadline_ms
    wanted = f"{load.candidates} candidates, deadline {load.deadline_ms:g} ms"
    why = f"p50 {smallest}, most {largest} candidates; deadline {run.deadline_ms:g} ms"
    for name, rate in ((STEADY, load.rate), (SPIKE, load.rate * load.spike)):
        if phase := run.phase(name):
            met = met and phase.rate is not None and isclose(phase.rate, rate)
            wanted += f", {name} {rate:g}/s"
            why += f"; {name} " + ("at no fixed rate" if phase.rate is None else f"{phase.rate:g}/s")
    return Verdict(objective="load", phase="all", wanted=wanted, found=None, met=met, why=why)


def _steady(run: Run, phase: Phase, part: SteadyPart) -> Iterator[Verdict]:
    totals = phase.totals
    yield from _most("p50 latency", phase, totals.latency.p50, part.p50_ms, "ms")
    yield from _most("p99 latency", phase, totals.latency.p99, part.p99_ms, "ms")
    yield from _most(ERROR_RATE, phase, totals.error_rate if totals.offered else None, part.error_rate)
    yield from _least(GOODPUT, phase, _good_share(phase), part.goodput)


def _ramped(run: Run, phase: Phase, part: RampPart) -> Iterator[Verdict]:
    why = "" if run.saturation_per_second else "not even the first step was sustained"
    yield from _least(SATURATION, phase, run.saturation_per_second, part.saturation, "/s", why, where="ramp")


def _spike(run: Run, phase: Phase, part: SpikePart) -> Iterator[Verdict]:
    yield from _most("p99 latency", phase, phase.totals.latency.p99, part.answered_p99_ms, "ms")
    yield from _least(GOODPUT, phase, _good_share(phase), part.goodput)
    yield from _recovery(run, phase, part.recovery_seconds)


def _soak(run: Run, phase: Phase, part: SoakPart) -> Iterator[Verdict]:
    yield from _most(ERROR_RATE, phase, phase.totals.error_rate if phase.totals.offered else None, part.error_rate)
    seconds = phase.end_second - phase.start_second
    # A minute at the beginning settles caches and allocators; of a shorter soak a fifth.
    settled, span = min(FIRST_MINUTE_SECONDS, seconds / 5), min(FIRST_MINUTE_SECONDS, seconds / 5)
    first = (phase.start_second + settled, phase.start_second + settled + span)
    growth = memory_growth(run, first, (phase.end_second - span, phase.end_second))
    yield from _most("memory growth", phase, growth, part.memory_growth, why=_unseen(growth))


def _overload(run: Run, phase: Phase, part: OverloadPart) -> Iterator[Verdict]:
    totals, at_saturation = phase.totals, run.phase("saturation")
    peak = max(one.totals.goodput_per_second for one in run.phases)
    share = totals.goodput_per_second / peak if peak else None
    why = f"{totals.goodput_per_second:.3g} of {peak:.3g} requests/s"
    yield from _least(GOODPUT_OF_PEAK, phase, share, part.goodput_of_peak, why=why)
    before = at_saturation.totals.latency.p99 if at_saturation else None
    after = totals.latency.p99
    ratio = after / before if before and after else None
    why = f"{after:.0f} ms, at saturation {before:.0f} ms" if before and after else "nothing was answered"
    yield from _most("p99 of accepted, of that at saturation", phase, ratio, part.p99_of_saturation, why=why)
    refused = totals.failed.get("rejected", 0)
    expired = totals.failed.get("expired", 0)
    # Who refuses nobody and answers everybody in time is quick enough; who lets them wait in vain is not.
    found = totals.rejection.p99 if refused else None if expired else 0.0
    why = f"{refused} refused, {expired} expired, of {totals.offered}"
    yield from _most("p99 of refusals", phase, found, part.rejection_ms, "ms", why)
    # By the end of saturation everything that keeps things, such as the cache of contexts, has had its share.
    before_it = (phase.start_second - SETTLED_SECONDS, phase.start_second)
    growth = memory_growth(run, before_it, (phase.end_second - SETTLED_SECONDS, run.seconds))
    yield from _most("memory growth", phase, growth, part.memory_growth, why=_unseen(growth))
    yield from _recovery(run, phase, part.recovery_seconds)


def _steps(run: Run, phase: Phase, part: StepsPart) -> Iterator[Verdict]:
    own, events = run.steps.get(OWN_STEPS), run.steps.get("events")
    yield from _most("p50 of store, retrieval and blend", phase, own.p50 if own else None, part.own_p50_ms, "ms")
    yield from _most("p99 of events", phase, events.p99 if events else None, part.events_p99_ms, "ms")


def _recovery(run: Run, phase: Phase, limit: float | None) -> Iterator[Verdict]:
    found = recovery_seconds(run, phase.end_second)
    why = ""
    if found is None:
        went_on = bool(_offered_after(run, phase.end_second))
        why = "requests went wrong until the end of the run" if went_on else "nothing was offered afterwards"
    yield from _most("recovery", phase, found, limit, "s", why)


def _offered_after(run: Run, moment: float) -> list[Second]:
    return [row for row in run.per_second if row.second + 1 > moment and row.offered]


def _most(
    objective: str, phase: Phase, found: float | None, limit: float | None, unit: str = "", why: str = ""
) -> Iterator[Verdict]:
    if limit is not None:
        yield _verdict(objective, phase.name, "<=", found, limit, unit, found is not None and found <= limit, why)


def _least(
    objective: str,
    phase: Phase,
    found: float | None,
    limit: float | None,
    unit: str = "",
    why: str = "",
    where: str = "",
) -> Iterator[Verdict]:
    if limit is not None:
        is_met = found is not None and found >= limit
        yield _verdict(objective, where or phase.name, ">=", found, limit, unit, is_met, why)


def _verdict(
    objective: str, phase: str, sign: str, found: float | None, limit: float, unit: str, met: bool, why: str
) -> Verdict:
    return Verdict(
        objective=objective,
        phase=phase,
        wanted=f"{sign} {limit:g} {unit}".strip(),
        limit=limit,
        found=None if found is None else round(found, 4),
        unit=unit,
        met=met,
        why=why or ("nothing to measure" if found is None else ""),
    )


def _good_share(phase: Phase) -> float | None:
    return phase.totals.good / phase.totals.offered if phase.totals.offered else None


def _unseen(growth: float | None) -> str:
    return "the server's memory could not be seen from here" if growth is None else ""


def _ramp(run: Run) -> list[Phase]:
    return [phase for phase in run.phases if phase.name.startswith("ramp ")]


def _told(fault: Any) -> str:
    given = "" if isinstance(fault["input"], dict) else f" (found {fault['input']!r})"
    return f"{fault['msg']}{given}"
