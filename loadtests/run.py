"""The verb ``run``: one shape at one rate, and what came of it."""

from pathlib import Path
from typing import Annotated

import typer

from loadtests.session import (
    NO_DIALECT,
    NO_FILE,
    DialectOption,
    GoldenOption,
    OutOption,
    ProcessesOption,
    ProtocolOption,
    TargetArgument,
    WorkloadOption,
    finish,
    objectives_or_exit,
    open_session,
)
from loadtests.shapes import ShapeName, plan_of


def run(
    target: TargetArgument,
    workload: WorkloadOption = NO_FILE,
    shape: Annotated[ShapeName, typer.Option(help="How the rate changes")] = "steady",
    rate: Annotated[float, typer.Option(help="Requests per second; of overload: saturation")] = 4.0,
    seconds: Annotated[float, typer.Option(help="Of all phases that count")] = 60.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before, which do not count")] = 5.0,
    peak: Annotated[float, typer.Option(help="Times the rate, of spike and overload")] = 3.0,
    clients: Annotated[int, typer.Option(min=1, help="Of the shape closed, each waiting for its answers")] = 1,
    protocol: ProtocolOption = "grpc",
    dialect: DialectOption = NO_DIALECT,
    candidates: Annotated[int | None, typer.Option(min=1, help="Cut every request to so many")] = None,
    deadline_ms: Annotated[float, typer.Option(min=1, help="Of each request")] = 2_000.0,
    golden: GoldenOption = NO_FILE,
    senders: Annotated[int | None, typer.Option(min=1, help="Requests in flight at once at the most")] = None,
    processes: ProcessesOption = 0,
    slo: Annotated[Path | None, typer.Option(help="Judge by these objectives; default: only report")] = None,
    name: Annotated[str, typer.Option(help="Of the run; default: its shape")] = "",
    out: OutOption = NO_FILE,
) -> None:
    """Send a workload in one shape. Exits with 1 when the generator fell behind, or when an objective was missed."""
    objectives = objectives_or_exit(slo) if slo else None
    with open_session(
        target,
        workload,
        protocol=protocol,
        deadline_ms=deadline_ms,
        candidates=candidates,
        golden=golden,
        senders=senders,
        processes=processes,
        dialect=dialect,
    ) as session:
        plan = plan_of(shape, rate=rate, seconds=seconds, warm_up_seconds=warm_up, peak=peak, clients=clients)
        found = session.send(plan, name=name)
    finish(found, out, objectives)
