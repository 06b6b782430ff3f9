"""The verb ``recommend``: visits to a gateway that knows its users, at half of what it can take, with a verdict."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtests.console import fail
from loadtests.dialects import VISITS
from loadtests.objectives import Objectives
from loadtests.results import Run
from loadtests.session import (
    NO_FILE,
    WARM_UP_SECONDS,
    OutOption,
    ProcessesOption,
    Ramp,
    SaturationOption,
    TargetArgument,
    WorkloadOption,
    finish,
    objectives_or_exit,
    open_session,
    requests_or_exit,
)
from loadtests.shapes import plan_of
from loadtests.users import visitors_of, write_events
from loadtests.valkey import Valkey

SLO = Path(__file__).with_name("slo-recommend.yaml")
IMPORT_SECONDS = 1_200
RAMP = Ramp(clients=2, seconds=120.0, start=0.25, sustained=0.99)
"""A page without the ranker is no page: at saturation less than 1% may be degraded or late. Two who wait keep the
ranker busy, and both are answered in time; more would wait for each other past the deadline."""


def recommend(
    target: TargetArgument,
    workload: WorkloadOption = NO_FILE,
    slo: Annotated[Path, typer.Option(help="Objectives")] = SLO,
    users: Annotated[
        int, typer.Option(min=1, help="In the store; their past is that of the dataset's users")
    ] = 100_000,
    past: Annotated[int, typer.Option(min=0, help="Events of each, the newest; 0: all that the dataset has")] = 0,
    store: Annotated[
        str,
        typer.Option(
            help="The gateway's store, filled here: its URL, or valkey for one that is started here; default: a new "
            "SQLite file"
        ),
    ] = "",
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of saturation")] = 0.5,
    seconds: Annotated[float, typer.Option(min=2, help="At that rate")] = 60.0,
    ranked: Annotated[
        int, typer.Option(min=0, max=1_000, help="Candidates that the ranker reads; 0: as the blend says, 200: all")
    ] = 0,
    saturation: SaturationOption = None,
    processes: ProcessesOption = 0,
    out: OutOption = NO_FILE,
) -> None:
    """Visitors who look, search, click, buy and page, with their events, judged at half of saturation.

    Of a folder it starts Triton and a gateway with the build's catalogue and blend, and fills a store with users. Of a
    gateway's URL it takes what is there. Exits with 1 when an objective is missed.
    """
    objectives = objectives_or_exit(slo)
    requests_or_exit(target, workload, objectives.load.candidates)
    with (
        prepared(target, store, users, ranked, past) as (options, visitors),
        open_session(
            target,
            workload,
            protocol="http",
            deadline_ms=objectives.load.deadline_ms,
            candidates=objectives.load.candidates,
            processes=processes,
            dialect=VISITS,
            gateway_options=options,
            visitors=visitors,
        ) as session,
    ):
        most = saturation or session.saturation_per_second(RAMP)
        plan = plan_of("steady", rate=share * most, seconds=seconds, warm_up_seconds=WARM_UP_SECONDS)
        run = session.send(plan, name="recommend", verb="recommend")
    run = run.model_copy(update={"saturation_per_second": most})
    show_steps(run)
    finish(run, out, at_rate(objectives, share * most))


def at_rate(objectives: Objectives, rate: float) -> Objectives:
    """The objectives at a rate that was found and not agreed on."""
    return objectives.model_copy(update={"load": objectives.load.model_copy(update={"rate": rate})})


def show_steps(run: Run) -> None:
    """What the answers tell of their steps."""
    out = Console(emoji=False)
    for name, spread in run.steps.items():
        out.print(f"{name:>26}: p50 {spread.p50 or 0:.1f} ms, p99 {spread.p99 or 0:.1f} ms", highlight=False)


@contextmanager
def prepared(
    target: str, store: str, users: int, ranked: int = 0, past: int = 0
) -> Iterator[tuple[Sequence[str], int]]:
    """Flags of the gateway, whose store is full; and how many users stand for each one of the workload."""
    if "://" in target:
        yield (), 1
        return
    folder = Path(target)
    if not (folder / "catalogue").is_dir():
        fail(f"{folder}: no catalogue. Make one: tritonrank build {SLO.with_name('recommend.yaml')}")
    with tempfile.TemporaryDirectory(prefix="loadtest-store-") as scratch, ExitStack() as stack:
        url = stack.enter_context(Valkey(Path(scratch))).url if store == "valkey" else store
        url = url or f"sqlite:{scratch}/store.db"
        visitors = visitors_of(folder, users)
        events = write_events(folder, visitors, Path(scratch) / "events.parquet", past)
        command = [sys.executable, "-m", "tritonrank", "import-events", str(events), "--store", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
        if done.returncode:
            fail(f"the store was not filled:\n{done.stdout[-500:]}{done.stderr[-500:]}")
        Console(stderr=True).print(done.stdout.strip()[-300:], highlight=False)
        flags = ["--catalogue", str(folder / "catalogue"), "--store", url, "--events-log", f"{scratch}/events"]
        flags += ["--ranked", str(ranked)]
        if (folder / "blend").is_dir():
            flags += ["--blend", str(folder / "blend")]
        yield flags, visitors
