"""What all verbs that send load have in common: the target, the workload, the file at the end, the exit code.

with open_session(target, workload, protocol=..., deadline_ms=...) as session:
    run = session.send(plan)
finish(run, out)

``measure`` does this for verbs whose run is judged by the objectives.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table

from loadtests.checks import GOLDEN_FILE
from loadtests.console import fail
from loadtests.dialects import Dialect, Visits, open_gateway
from loadtests.generator import GeneratorError, generate
from loadtests.machine import Machine, describe_machine
from loadtests.objectives import (
    DEFAULT_FILE,
    SUSTAINED,
    Objectives,
    ObjectivesError,
    judged,
    read_objectives,
    saturation,
)
from loadtests.report import write_page
from loadtests.results import Run, RunFileError, Verb, write_run
from loadtests.settings import LoadSettings
from loadtests.shapes import RAMP_START, Plan, PlanError, plan_of
from loadtests.target import LiveServer, Protocol, TargetError, open_target, protocol_of
from loadtests.workload import WorkloadError, workload_of

RUNS = Path("artifacts/loadtests")
CAPACITY_CLIENTS = 4
CAPACITY_SECONDS = 6.0
RAMP_SECONDS = 56.0
WARM_UP_SECONDS = 5.0
RAMP_BEYOND = 1.3
"""Highest step of a ramp, as a multiple of what a few clients get answered: certainly beyond saturation."""

TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="artifacts/<recipe>, which is served meanwhile, or a server's URL")
]
WorkloadOption = Annotated[
    Path | None, typer.Option(help="What `tritonrank workload` wrote; default: workload.jsonl of the artifacts")
]
SloOption = Annotated[Path, typer.Option(help="Objectives")]
OutOption = Annotated[Path | None, typer.Option(help="Where the results go; default: artifacts/loadtests/NAME.json")]
SaturationOption = Annotated[
    float | None, typer.Option(min=0.001, help="Requests per second, where known; default: a ramp finds it")
]
ProtocolOption = Annotated[Protocol, typer.Option(help="grpc or http; of a URL, its own")]
ProcessesOption = Annotated[int, typer.Option(min=0, help="Locust's workers; 0: one process that does everything")]
DialectOption = Annotated[
    Dialect | None, typer.Option(help="Load a gateway before the server, in this dialect; default: tensors, no gateway")
]
GoldenOption = Annotated[
    Path | None, typer.Option(help="golden.json or its folder, whose scores must be right; default: the artifacts'")
]
NO_FILE: Path | None = None
NO_DIALECT: Dialect | None = None
SLO = DEFAULT_FILE

FAULTS = (TargetError, WorkloadError, PlanError, ObjectivesError, RunFileError, GeneratorError)
"""What a verb says in one message, without a traceback."""


@dataclass(frozen=True)
class Ramp:
    """How saturation is looked for.

    Attributes:
        clients: that wait for their answers, to know where about it is.
        seconds: of the ramp.
        start: of its highest rate, where it begins.
        sustained: share of the requests that have to be answered rightly within the deadline.
    """

    clients: int = CAPACITY_CLIENTS
    seconds: float = RAMP_SECONDS
    start: float = RAMP_START
    sustained: float = SUSTAINED


@dataclass
class Session:
    """A server that is ready, and the load's settings but for its plan.

    Its loads go through the workload one after the other, so that none meets contexts that another one has left in the
    server's cache.
    """

    server: LiveServer
    protocol: Protocol
    settings: LoadSettings
    processes: int = 0
    sent: int = 0
    """requests of the workload, in all loads so far"""
    machine: Machine = field(default_factory=describe_machine)
    """before the first of them"""

    def send(self, plan: Plan, *, name: str = "", verb: Verb = "run") -> Run:
        """Follow a plan to its end.

        Raises:
            GeneratorError: Locust could not.
        """
        settings = replace(self.settings, plan=plan, name=name, sent_before=self.sent)
        run = generate(self.server, self.protocol, settings, processes=self.processes, machine=self.machine)
        self.sent += run.workload.sent or 0
        return run.model_copy(update={"verb": verb})

    def capacity_per_second(self, clients: int = CAPACITY_CLIENTS) -> float:
        """What a few clients that wait for their answers get: near saturation, and quickly known.

        Raises:
            GeneratorError: nothing was answered.
        """
        run = self.send(plan_of("closed", rate=1, seconds=CAPACITY_SECONDS, clients=clients))
        if not run.totals.answered:
            reasons = "\n".join(run.failures) or "nothing was sent"
            raise GeneratorError(f"{self.server.url(self.protocol)}: no request was answered.\n{reasons}")
        return run.totals.answered_per_second

    def saturation_per_second(self, ramp: Ramp = Ramp()) -> float:
        """The highest rate that is sustained, by a ramp.

        Raises:
            GeneratorError: not even its first step was.
        """
        rate = RAMP_BEYOND * self.capacity_per_second(ramp.clients)
        run = self.send(plan_of("ramp", rate=rate, seconds=ramp.seconds, start=ramp.start), name="ramp")
        show_measured(run)  # nothing to pass: the ramp only looks for the rate
        if (found := saturation(run, ramp.sustained)) is None:
            raise GeneratorError(
                "not even the first step of the ramp was sustained; see the table, and the server's log"
            )
        return found


@contextmanager
def open_session(
    target: str,
    workload: Path | None,
    *,
    protocol: Protocol = "grpc",
    deadline_ms: float = 2_000.0,
    candidates: int | None = None,
    golden: Path | None = None,
    senders: int | None = None,
    processes: int = 0,
    dialect: Dialect | Visits | None = None,
    gateway_options: Sequence[str] = (),
    visitors: int = 1,
) -> Iterator[Session]:
    """A session; ends the program with a message where there is nothing to test or to send.

    Args:
        target: artifacts/<recipe> or a URL.
        workload: None takes the artifacts' own.
        protocol: of the clients, unless a URL says it itself.
        deadline_ms: of each request.
        candidates: of each request; None: as the workload has them.
        golden: None takes the artifacts' own.
        senders: None: as many as the deadline asks for.
        processes: of Locust.
        dialect: send this to a gateway before the server, which is started here unless the URL is one's. Others than
            our own carry no history, so golden requests are not sent with them.
        gateway_options: more flags of the gateway that is started here.
        visitors: of visits, see `LoadSettings`.
    """
    folder = None if "://" in target else Path(target)
    try:
        settings = LoadSettings(
            workload=workload_of(target, workload),
            plan=plan_of("closed", rate=1, seconds=1),
            deadline_seconds=deadline_ms / 1_000,
            candidates=candidates,
            golden=golden or (_golden_of(folder) if dialect in (None, "own") else None),
            senders=senders,
            visitors=visitors,
        )
        settings.read_requests()
        settings.read_golden()
        machine = describe_machine()
        with ExitStack() as stack:
            server = stack.enter_context(open_target(target))
            if dialect is not None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loadtest-")))
                started = open_gateway(server, scratch / "gateway.log", *gateway_options)
                url = target if folder is None else stack.enter_context(started)
                settings = replace(settings, dialect=dialect, gateway=url)
            yield Session(server, protocol_of(target, protocol), settings, processes, machine=machine)
    except FAULTS as error:
        fail(str(error))


def requests_or_exit(target: str, workload: Path | None, candidates: int | None) -> None:
    """End the program where the workload cannot be sent, before anything is started or filled for it."""
    try:
        plan = plan_of("closed", rate=1, seconds=1)
        LoadSettings(workload=workload_of(target, workload), plan=plan, candidates=candidates).read_requests()
    except FAULTS as error:
        fail(str(error))


def measure(
    target: str,
    workload: Path | None,
    slo: Path,
    send: Callable[[Session, Objectives], Run],
    *parts: str,
    protocol: Protocol,
    processes: int,
    out: Path | None,
    dialect: Dialect | None = None,
) -> NoReturn:
    """Send what a verb sends, judge it by the objectives, and end the program as ``finish`` does.

    Args:
        target: artifacts/<recipe> or a URL.
        workload: None takes the artifacts' own.
        slo: file of objectives.
        send: the load.
        parts: of the objectives, of which at least one has to say something.
        protocol: of the clients.
        processes: of Locust.
        out: file of the run.
        dialect: of a gateway; None: tensors.
    """
    objectives = objectives_or_exit(slo)
    if not objectives.has_any(*parts):
        fail(f"{slo}: has no limits in {' or '.join(parts)}, which judge this load. There are some in {DEFAULT_FILE}")
    load = objectives.load
    with open_session(
        target,
        workload,
        protocol=protocol,
        deadline_ms=load.deadline_ms,
        candidates=load.candidates,
        processes=processes,
        dialect=dialect,
    ) as session:
        run = send(session, objectives)
    finish(run, out, objectives)


def send_at_saturation(session: Session, saturation: float | None, verb: Verb, plan: Callable[[float], Plan]) -> Run:
    """Send a plan that is made for the server's saturation, which is found first unless it is given."""
    most = saturation or session.saturation_per_second()
    run = session.send(plan(most), name=verb, verb=verb)
    return run.model_copy(update={"saturation_per_second": most})


def objectives_or_exit(path: Path) -> Objectives:
    """The objectives, before anything is started."""
    try:
        return read_objectives(path)
    except ObjectivesError as error:
        fail(str(error))


def finish(run: Run, out: Path | None, objectives: Objectives | None = None) -> NoReturn:
    """Judge the run, write the file and its page, show what was found, and end the program: 0 if nothing was missed.

    The file is written before anything else: a load of many minutes must not be lost to a fault of its judging.
    """
    path = out or RUNS / f"{run.name}-{run.started:%Y%m%d-%H%M%S}.json"
    try:
        write_run(run, path)
        if objectives is not None:
            run = judged(run, objectives)
            write_run(run, path)
        page = write_page(run, path.with_suffix(".html"))
    except ObjectivesError as error:
        fail(f"{error}\nThe run is kept: {path}", valid=run.client.valid)
    except RunFileError as error:
        fail(str(error))
    show(run)
    summary = {
        "run": str(path),
        "page": str(page),
        "passed": run.passed,
        "valid": run.client.valid,
        "why": run.shortcomings,
        "missed": [f"{verdict.phase}: {verdict.objective}" for verdict in run.missed],
        "saturation_per_second": run.saturation_per_second,
        "error_rate": run.totals.error_rate,
        "latency_ms": run.totals.latency.model_dump(),
    }
    print(json.dumps(summary))
    sys.exit(0 if run.passed else 1)


def show(run: Run) -> None:
    """What was measured, and why it is not passed."""
    show_measured(run)
    out = Console(soft_wrap=False, emoji=False)
    for reason in run.shortcomings:
        out.print(f"Not passed: {reason}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def show_measured(run: Run) -> None:
    """Phases, what was held against objectives, and one failure of each kind."""
    out = Console(soft_wrap=False, emoji=False)
    names = ("offered/s", "answered/s", "good/s", "p50 ms", "p99 ms", "failed")
    phases = Table("phase", *(_right(name) for name in names))
    for phase in run.phases:
        totals = phase.totals
        kinds = ", ".join(f"{count} {kind}" for kind, count in totals.failed.items())
        phases.add_row(
            phase.name if phase.counts else f"({phase.name})",
            f"{totals.offered_per_second:.2f}",
            f"{totals.answered_per_second:.2f}",
            f"{totals.goodput_per_second:.2f}",
            *("-" if value is None else f"{value:.0f}" for value in (totals.latency.p50, totals.latency.p99)),
            kinds or "0",
        )
    out.print(phases)
    if run.verdicts:
        verdicts = Table("objective", "phase", _right("wanted"), _right("found"), "", "why")
        for verdict in run.verdicts:
            found = "-" if verdict.found is None else f"{verdict.found:.4g} {verdict.unit}".strip()
            met = "[green]met[/]" if verdict.met else "[bold red]MISSED[/]"
            verdicts.add_row(verdict.objective, verdict.phase, verdict.wanted, found, met, verdict.why)
        out.print(verdicts)
    shown: set[str] = set()
    for text in run.failures:
        kind = text.partition(":")[0]
        if kind not in shown:
            out.print(text, style="yellow", markup=False, highlight=False)
        shown.add(kind)


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _golden_of(folder: Path | None) -> Path | None:
    places = [] if folder is None else [folder / "repository" / GOLDEN_FILE, folder / GOLDEN_FILE]
    return next((place for place in places if place.is_file()), None)
