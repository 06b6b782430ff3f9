"""The verb ``loadtest``: at the agreed rate, up to saturation and through a burst, in a few minutes, with a verdict."""

from typing import Annotated

import typer

from loadtests.objectives import Objectives
from loadtests.results import Run
from loadtests.session import (
    NO_DIALECT,
    NO_FILE,
    RAMP_BEYOND,
    SLO,
    DialectOption,
    OutOption,
    ProcessesOption,
    ProtocolOption,
    Session,
    SloOption,
    TargetArgument,
    WorkloadOption,
    measure,
)
from loadtests.shapes import Plan, PlannedPhase, plan_of, warm_up

WARM_UP_SHARE = 0.05
STEADY_SHARE = 0.35
RAMP_SHARE = 0.35
SPIKE_SHARE = 0.25


def loadtest(
    target: TargetArgument,
    workload: WorkloadOption = NO_FILE,
    slo: SloOption = SLO,
    seconds: Annotated[float, typer.Option(min=4, help="Of all phases together")] = 180.0,
    protocol: ProtocolOption = "grpc",
    dialect: DialectOption = NO_DIALECT,
    processes: ProcessesOption = 0,
    out: OutOption = NO_FILE,
) -> None:
    """Steady load, a ramp to saturation and a spike, judged by the objectives. Exits with 1 when one is missed."""

    def send(session: Session, objectives: Objectives) -> Run:
        plan = loadtest_plan(objectives, session.capacity_per_second(), seconds)
        return session.send(plan, name="loadtest", verb="loadtest")

    measure(
        target,
        workload,
        slo,
        send,
        "steady",
        "ramp",
        "spike",
        protocol=protocol,
        processes=processes,
        out=out,
        dialect=dialect,
    )


def loadtest_plan(objectives: Objectives, capacity: float, seconds: float) -> Plan:
    """Steady, ramp and spike one after the other, each after a moment of calm that does not count.

    Args:
        objectives: name the rate.
        capacity: requests per second that the server is known to answer.
        seconds: of all phases together.
    """
    rate = objectives.load.rate
    calm = WARM_UP_SHARE * seconds / 3
    steady = plan_of("steady", rate=rate, seconds=STEADY_SHARE * seconds).phases
    ramp = plan_of("ramp", rate=RAMP_BEYOND * max(capacity, rate), seconds=RAMP_SHARE * seconds).phases
    spike = plan_of("spike", rate=rate, seconds=SPIKE_SHARE * seconds, peak=objectives.load.spike).phases
    settle = PlannedPhase(name="settle", seconds=calm, rate=rate / 2, counts=False)
    return Plan(shape="loadtest", phases=[warm_up(2 * calm, rate), *steady, *ramp, settle, *spike])
