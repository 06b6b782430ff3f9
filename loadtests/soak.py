"""The verb ``soak``: well below saturation for a long time, looking for errors and for memory that grows."""

import math
from typing import Annotated

import typer
from rich.console import Console

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
    send_at_saturation,
)
from loadtests.shapes import Plan, plan_of


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
        def plan(most: float) -> Plan:
            found = plan_of("soak", rate=share * most, seconds=60 * minutes, warm_up_seconds=WARM_UP_SECONDS)
            say_what_repeats(found, len(session.settings.read_requests()), session.sent)
            return found

        return send_at_saturation(session, saturation, "soak", plan)

    measure(target, workload, slo, send, "soak", protocol=protocol, processes=processes, out=out)


def say_what_repeats(plan: Plan, workload_requests: int, sent_before: int) -> None:
    """A workload that starts over repeats its bursts: one that is too much is met in every lap."""
    needed = sent_before + math.ceil(sum(phase.requests for phase in plan.phases))
    if needed > workload_requests:
        Console(emoji=False, stderr=True).print(
            f"[yellow]The workload's {workload_requests} requests will be sent {needed / workload_requests:.1f} times "
            f"over: contexts and bursts repeat. A longer one: tritonrank workload ARTIFACTS --requests {needed}[/]",
            highlight=False,
        )
