"""The verb ``simulate``: scenarios on fleets of several sizes, under every way of steering; a table and a page."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from loadtests.console import fail_plainly
from loadtests.results import RunFileError, write_whole
from loadtests.session import RUNS
from loadtests.simulate.cost import DEFAULT, Cost, CostError, read_cost
from loadtests.simulate.measure import measure
from loadtests.simulate.page import render
from loadtests.simulate.play import Result, play
from loadtests.simulate.policies import POLICIES
from loadtests.simulate.scenarios import scenarios
from loadtests.target import TargetError
from loadtests.workload import WorkloadError

LEAST_REPLICAS, MOST_REPLICAS = 4, 10_000
NO_ARTIFACTS: Path | None = None


def simulate(
    artifacts: Annotated[
        Path | None, typer.Argument(help="artifacts/<recipe>, whose cost is measured and kept beside the results")
    ] = NO_ARTIFACTS,
    cost: Annotated[Path, typer.Option(help="Cost of a replica, where none is measured")] = DEFAULT,
    replicas: Annotated[str, typer.Option(help="Sizes of the fleet, with commas between")] = "10,100,1000",
    only: Annotated[str, typer.Option(help="Scenarios, with commas between")] = "day,spike,loss",
    tick: Annotated[float, typer.Option(min=0, max=10, help="Seconds of a step; 0: each scenario's own")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals")] = 0,
    out: Annotated[Path, typer.Option(help="Results; the page lies beside")] = RUNS / "simulate.json",
) -> None:
    """Play a day, a spike of five times and the loss of a third on simulated fleets, under each way of steering."""
    sizes, names = _sizes(replicas), _names(only)
    try:
        paid = measure(artifacts) if artifacts else read_cost(cost)
    except (CostError, TargetError, WorkloadError) as error:
        fail_plainly(str(error))
    known = scenarios(tick)
    wanted = [(name, size, policy) for name in names for size in sizes for policy in POLICIES]
    shown = Console(stderr=True)
    results = [
        play(known[name], policy, size, paid, seed)
        for name, size, policy in track(wanted, "playing", console=shown, transient=True)
    ]
    page = out.with_suffix(".html")
    try:
        told = {"cost": paid.model_dump(), "results": [one.row() for one in results]}
        write_whole(out, json.dumps(told, indent=1) + "\n")
        write_whole(page, render(results, known, paid))
    except RunFileError as error:
        fail_plainly(str(error))
    show(results, paid)
    print(json.dumps({"results": str(out), "page": str(page)}))


def show(results: list[Result], cost: Cost) -> None:
    """The table."""
    out = Console(emoji=False)
    if cost.measured:
        out.print(f"Cost: {cost.measured}", highlight=False)
    names = ("refused", "degraded", "shortened", "NDCG lost", "queue p99", "replica-hours")
    table = Table("scenario", "replicas", "steering", *(Column(name, justify="right") for name in names))
    for one in results:
        shares = (one.refused, one.degraded, one.shortened, one.ndcg_lost)
        figures = [*(f"{share:.2%}" for share in shares), f"{1e3 * one.queue_p99_seconds:.0f} ms"]
        table.add_row(one.scenario, str(one.replicas), one.policy, *figures, f"{one.replica_hours:,.1f}")
    out.print(table)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(LEAST_REPLICAS <= size <= MOST_REPLICAS for size in sizes):
        fail_plainly(f"--replicas {text}: expected numbers from {LEAST_REPLICAS} to {MOST_REPLICAS}, such as 10,100")
    return sizes


def _names(text: str) -> list[str]:
    known, wanted = scenarios(), [part.strip() for part in text.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        fail_plainly(f"--only {text}: no scenario {unknown[0]!r}; there are {', '.join(known)}")
    return wanted
