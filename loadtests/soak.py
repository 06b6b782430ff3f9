"""The verb ``soak``: well below saturation for a long time, looking for errors and for memory that grows."""

from typing import Annotated

import typer

from loadtests.objectives import Objectives
from loadtests.results import Run
from loadtests.session import (
    NO_FILE,
    SLO,
    WARM_UP_SECONDS,
    OutOption,
    ProcessesOption,
    ProtocolOption,
    SaturationOption,
    Session,
    SloOption,
    TargetArgument,
    WorkloadOption,
    measure,
)
from loadtests.shapes import plan_of


def soak(
    target: TargetArgument,
    workload: WorkloadOption = NO_FILE,
    slo: SloOption = SLO,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long")] = 20.0,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of saturation")] = 0.7,
    saturation: SaturationOption = None,
    protocol: ProtocolOption = "grpc",
    processes: ProcessesOption = 0,
    out: OutOption = NO_FILE,
) -> None:
    """Load for 20 minutes at 70% of saturation. Exits with 1 when a request failed or memory grew."""

    def send(session: Session, _: Objectives) -> Run:
        most = saturation or session.saturation_per_second()
        plan = plan_of("soak", rate=share * most, seconds=60 * minutes, warm_up_seconds=WARM_UP_SECONDS)
        run = session.send(plan, name="soak", verb="soak")
        return run.model_copy(update={"saturation_per_second": most})

    measure(target, workload, slo, send, protocol=protocol, processes=processes, out=out)
