"""The JSON file of a run: what was asked of which server, and what came back, second by second.

One model, written by the generator and read by the judge and the report, so that a figure in a page can be followed
back to the seconds it is made of. All latencies are milliseconds. ``latency`` counts from the moment at which a request
was due, ``service`` from the moment at which it was really sent: where a server stalls, only the first shows what
everybody behind the stalled request waits for (coordinated omission: Gil Tene, "How NOT to Measure Latency").
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tritonrank import artifacts
from tritonrank.errors import ArtifactError

from loadtests.machine import Machine

RANKER = "ranker"
FLOW = ("rank", RANKER, "tokenize", "score", "select")
"""The ensemble, the model that does every step, and the steps."""

FailureKind = Literal["wrong", "rejected", "expired", "unavailable", "fault", "invalid", "unanswered"]
"""What a failed request met:

wrong        an answer that is not a ranking of the request, or not the known scores of a golden request
rejected     the server refused it because it has too much to do (UNAVAILABLE: the client's Overloaded)
expired      no answer within the deadline, here or in the server's queue (DeadlineExceeded)
unavailable  no connection, or the model is not served (Unavailable)
fault        the server failed (ServerFault that is not a wrong answer)
invalid      the server refused the request itself (InvalidRequest)
unanswered   due within the run, and neither answered nor failed when the generator stopped waiting
"""

NO_ROOM = "no room"
"""In place of a level: the ranker was asked in vain, and the page was shown in retrieval's order."""
LATER_PAGE = "later page"
"""In place of a level: a further page of a list that was shown without the ranker."""
OWN_STEPS = "store + retrieval + blend"
"""Of a recommendation: what is not the ranker's."""
ERROR_RATE, GOODPUT, GOODPUT_OF_PEAK, SATURATION = "error rate", "goodput", "goodput, of its peak", "saturation"
LIMITS_OF_FAILURES = (ERROR_RATE, GOODPUT, GOODPUT_OF_PEAK, SATURATION)
"""Objectives that say how many requests may fail."""

Verb = Literal["run", "loadtest", "soak", "overload", "perf", "tune", "recommend", "adapt"]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunFileError(ValueError):
    """A run's file cannot be used; the message names file and key."""


class Spread(Record):
    """Milliseconds of some requests; percentiles by nearest rank, None of no request."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None
    mean: float | None = None

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Self:
        """Not interpolated: of few values p99 is the worst one, and that is what it should say."""
        if not milliseconds:
            return cls()
        ordered = sorted(milliseconds)

        def at(share: float) -> float:
            return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3)

        mean = round(sum(ordered) / len(ordered), 3)
        return cls(p50=at(0.5), p90=at(0.9), p99=at(0.99), max=at(1), mean=mean)


class Second(Record):
    """One second of the run, as the clients saw it.

    Offered and everything about answers belong to the second in which a request was **due**, so a stall shows where it
    began; ``sent`` and ``in_flight`` belong to the second itself.
    """

    second: int = Field(ge=0, description="since the first request was due; 0 covers 0.0 to 1.0")
    phase: str = Field(description="name of the phase in which it lies")
    offered: int = Field(description="requests that were due")
    sent: int = Field(description="requests that the generator sent in this second")
    answered: int = Field(description="of those due: answered rightly, whenever that was")
    good: int = Field(description="of those due: answered rightly within the deadline, from the moment they were due")
    failed: dict[FailureKind, int] = Field(default_factory=dict, description="of those due, by kind; none: no key")
    latency: Spread = Field(description="answered requests, since they were due")
    service: Spread = Field(description="answered requests, since they were sent")
    rejection: Spread = Field(description="rejected requests, since they were due: how fast the server says no")
    candidates: int = Field(description="of the answered requests")
    bytes: int = Field(description="request and answer as tensors, of the answered requests")
    in_flight: int = Field(description="sent and not yet answered, at the end of the second")
    levels: dict[str, int] = Field(
        default_factory=dict, description="of those due: lists by the level at which a gateway made them, as it tells"
    )


class Totals(Record):
    """Many seconds together; rates are per second of ``seconds``."""

    seconds: float
    offered: int
    sent: int
    answered: int
    good: int
    failed: dict[FailureKind, int] = Field(default_factory=dict)
    offered_per_second: float
    answered_per_second: float
    goodput_per_second: float = Field(description="answered rightly and within the deadline")
    candidates_per_second: float
    error_rate: float = Field(description="failed of offered, 0 to 1; a rejection is a failure too")
    latency: Spread
    service: Spread
    rejection: Spread


class Phase(Record):
    """A part of the run at one wanted rate or one curve of rates."""

    name: str = Field(description="warm-up, steady, ramp 12/s, spike, before, recovery ...")
    start_second: float
    end_second: float
    rate: float | None = Field(None, description="wanted requests per second; None where it changes within the phase")
    counts: bool = Field(True, description="False for the warm-up, which no total and no objective looks at")
    totals: Totals


class ModelSecond(Record):
    """What Triton did for one composing model in one sample interval; microseconds are sums over its requests."""

    model: str = Field(description="tokenize, score, select, or the ensemble rank")
    requests: int
    failures: int = 0
    executions: int
    inferences: int = Field(0, description="batch dimensions computed: requests, or rows of a joint ranker")
    duration_us: float = Field(0.0, description="from arrival to answer; what is no queue and no compute is overhead")
    queue_us: float
    compute_input_us: float = 0.0
    compute_us: float
    compute_output_us: float = 0.0
    batch_sizes: dict[int, int] = Field(default_factory=dict, description="batch size -> executions, where known")


class ServerSecond(Record):
    """What the server did between the sample before and this one, and what it holds now."""

    second: float = Field(description="since the first request was due; before 0 while it warms up")
    interval_seconds: float = Field(description="since the sample before")
    models: list[ModelSecond] = Field(default_factory=list)
    context_cache_hits: int = 0
    context_cache_misses: int = 0
    cpu_seconds: float | None = Field(None, description="of all the server's processes in the interval; None: unknown")
    rss_bytes: int | None = Field(None, description="of all the server's processes together; None: unknown")
    counters: dict[str, float] = Field(default_factory=dict, description="other counters' growth, by metric name")


class PerfModel(Record):
    """What perf_analyzer says of one model: microseconds of the mean request."""

    model: str = Field(description="the ensemble, or one of its composing models")
    queue_us: float
    compute_input_us: float
    compute_us: float
    compute_output_us: float
    overhead_us: float | None = Field(None, description="None of the ensemble, for which it is not told")

    @property
    def computing_us(self) -> float:
        """Input, inference and output together."""
        return self.compute_input_us + self.compute_us + self.compute_output_us


class PerfLevel(Record):
    """One load that perf_analyzer sent. Latency counts from the sending: it charges nobody for waiting to be sent."""

    mode: Literal["concurrency", "rate"]
    value: float = Field(description="requests in flight, or wanted requests per second")
    requests: int = Field(0, description="answered")
    seconds: float = Field(0.0, description="from the first request sent to the last answer")
    answered_per_second: float = 0.0
    latency: Spread = Spread()
    client_send_us: float = 0.0
    network_us: float = Field(0.0, description="network, and the server's sending and receiving")
    client_receive_us: float = 0.0
    models: list[PerfModel] = Field(default_factory=list)
    failed: str = Field("", description="why there are no figures; the server refused a request, say")


class Verdict(Record):
    """One objective, held against what was measured."""

    objective: str = Field(description="name, such as 'p99 latency'")
    phase: str = Field(description="where it was looked for")
    wanted: str = Field(description="for people, such as '<= 400 ms'")
    limit: float | None = None
    found: float | None = Field(None, description="in the unit of the limit; None: nothing to measure")
    unit: str = ""
    met: bool
    why: str = Field("", description="what decided, where the two numbers do not say it all")

    @property
    def limits_failures(self) -> bool:
        """Whether it says how many requests may fail."""
        return self.objective in LIMITS_OF_FAILURES


class ClientHealth(Record):
    """Whether the generator kept its own schedule; where it did not, the run says nothing about the server."""

    lag: Spread = Field(description="milliseconds from the moment a request was due to the moment it was sent")
    allowed_lag_ms: float = Field(description="largest p99 of the lag at which the run counts")
    unsent: int = Field(0, description="requests that were due and never sent")
    senders: int = Field(description="requests that can be in flight at once, all processes together")
    most_in_flight: int
    processes: int = 1
    cpu_share: float | None = Field(None, description="CPU seconds of the generator per second of the run")
    valid: bool
    why: str = Field("", description="why not valid")


class WorkloadFile(Record):
    path: str
    sha256: str
    requests: int = Field(description="in the file")
    sent: int | None = Field(None, description="requests of it that this run went through; None: an older file")
    sent_before: int = Field(0, description="that loads before it went through, such as one that finds saturation")
    laps: float = Field(description="how often both went through it; above 1 contexts repeat, and caches help")
    candidates_p50: int
    candidates_max: int


class Shape(Record):
    """How requests arrive: the name, and the numbers that make it up."""

    name: Literal["steady", "ramp", "spike", "soak", "overload", "closed", "loadtest"]
    parameters: dict[str, float] = Field(default_factory=dict)


class Target(Record):
    url: str
    protocol: Literal["grpc", "http"]
    model: str = "rank"
    artifact: str = Field(description="identity that the answers carried; empty: no answer")
    artifacts: str | None = Field(None, description="folder served for this run; None: a server that ran already")
    settings: dict[str, str] = Field(default_factory=dict, description="parameters of the models' configurations")


class Run(Record):
    """The whole file."""

    format: Literal[1] = Field(1, description="goes up when a reader of older files would misread newer ones")
    name: str
    verb: Verb = "run"
    started: datetime = Field(description="UTC, when the first request was due")
    seconds: float = Field(description="from the first to the end of the last phase")
    machine: Machine
    versions: dict[str, str] = Field(description="python, tritonrank, locust, tritonclient ...")
    command: list[str] = Field(default_factory=list)
    workload: WorkloadFile
    shape: Shape
    target: Target
    deadline_ms: float = Field(description="that each request was given, and beyond which an answer is no good")
    seed: int = Field(0, exclude=True, description="of older files, where it never meant anything")
    phases: list[Phase]
    totals: Totals = Field(description="all phases that count")
    per_second: list[Second]
    server: list[ServerSecond] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list, description="the first messages of each kind, for people")
    saturation_per_second: float | None = Field(None, description="highest rate of the ramp that was sustained")
    verdicts: list[Verdict] = Field(default_factory=list)
    client: ClientHealth
    steps: dict[str, Spread] = Field(
        default_factory=dict, description="milliseconds of a recommendation's steps, as its answers tell, and of events"
    )
    perf: list[PerfLevel] = Field(default_factory=list, description="what perf_analyzer found, level by level")

    @property
    def missed(self) -> list[Verdict]:
        """The objectives that were not met."""
        return [verdict for verdict in self.verdicts if not verdict.met]

    @property
    def shortcomings(self) -> list[str]:
        """Why this is no success, whatever the objectives say; for people, one sentence each.

        No answer at all is never a success. Failed requests are one only where an objective says how many may fail.
        """
        if not self.totals.answered:  # which no slow generator explains
            return [f"nothing was answered: {self.totals.offered} requests were due"]
        if not self.client.valid:
            return [f"this run says nothing about the server: {self.client.why or 'its generator was too slow'}"]
        found = [f"{name}: none of {offered} requests was answered" for name, offered in self._silent_phases()]
        if lost := [level for level in self.perf if level.failed]:
            found.append(f"{len(lost)} of {len(self.perf)} levels have no figures")
        failed = sum(self.totals.failed.values())
        if failed and not any(verdict.limits_failures for verdict in self.verdicts):
            found.append(
                f"{failed} of {self.totals.offered} requests failed, and no objective says how many may: give --slo a "
                "file with an error_rate or a goodput"
            )
        return found

    @property
    def passed(self) -> bool:
        """Every objective was met by a run that counts, and in which nothing was lost that no objective allows."""
        return not self.missed and not self.shortcomings

    def _silent_phases(self) -> Iterator[tuple[str, int]]:
        """(name, requests that were due) of counted phases without any answer; the steps of a ramp are one phase."""
        offered: Counter[str] = Counter()
        answered: Counter[str] = Counter()
        for phase in self.phases:
            name = "ramp" if phase.name.startswith("ramp ") else phase.name
            offered[name] += phase.totals.offered if phase.counts else 0
            answered[name] += phase.totals.answered
        return ((name, due) for name, due in offered.items() if due and not answered[name])

    def phase(self, name: str) -> Phase | None:
        return next((phase for phase in self.phases if phase.name == name), None)


def step_counter(step: str) -> str:
    """The counter of a step's seconds, where one process does every step."""
    return f"tritonrank_{step}_seconds_total"


def in_order_of_flow(models: Iterable[str]) -> list[str]:
    """Models as a request passes them; those that are not ours last, by name."""
    return sorted(models, key=lambda name: (FLOW.index(name) if name in FLOW else len(FLOW), name))


def write_run(run: Run, path: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        RunFileError: it cannot be written.
    """
    write_whole(path, run.model_dump_json(indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file of results, whole or not at all.

    Raises:
        RunFileError: it cannot be written.
    """
    try:
        artifacts.write_whole(path, text, "choose another with --out")
    except ArtifactError as error:
        raise RunFileError(str(error)) from error


def read_run(path: Path) -> Run:
    """Read a run's file.

    Raises:
        RunFileError: missing, not JSON, or not a run; all faults with their keys.
    """
    try:
        return Run.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunFileError(f"{path}: {error.strerror}. Make one: python -m loadtests run --help") from None
    except ValidationError as error:
        faults = "\n".join(
            f"  {'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()
        )
        raise RunFileError(f"{path}: not the file of a run:\n{faults}") from None
