"""The verb ``overload``: beyond saturation the server has to refuse quickly, go on working, and recover at once."""

from typing import Annotated

import typer

from loadtests.objectives import Objectives
from loadtests.results import Run
from loadtests.session import (
    NO_DIALECT,
    NO_FILE,
    SLO,
    WARM_UP_SECONDS,
    DialectOption,
    OutOption,
    ProcessesOption,
    ProtocolOption,
    SaturationOption,
    Session,
    SloOption,
    TargetArgument,
    WorkloadOption,
    measure,
    send_at_saturation,
)
from loadtests.shapes import Plan, plan_of


def overload(
    target: TargetArgument,
    workload: WorkloadOption = NO_FILE,
    slo: SloOption = SLO,
    seconds: Annotated[float, typer.Option(min=2, help="At, beyond and below saturation together")] = 90.0,
    times: Annotated[float, typer.Option(min=1.1, max=100, help="Saturation")] = 3.0,
    saturation: SaturationOption = None,
    protocol: ProtocolOption = "grpc",
    dialect: DialectOption = NO_DIALECT,
    processes: ProcessesOption = 0,
    out: OutOption = NO_FILE,
) -> None:
    """Load at saturation, then at three times that, then at half. Exits with 1 when an objective is missed."""

    def send(session: Session, _: Objectives) -> Run:
        def plan(most: float) -> Plan:
            return plan_of("overload", rate=most, seconds=seconds, warm_up_seconds=WARM_UP_SECONDS, peak=times)

        return send_at_saturation(session, saturation, "overload", plan)

    measure(target, workload, slo, send, "overload", protocol=protocol, processes=processes, out=out, dialect=dialect)
