"""The verb ``adapt``: a spike of five times the steady rate, with ``--adapt act`` and without, in one run.

Both gateways stand before a Triton of the same build, use the same store and get the same arrivals. Every answer tells
at which level its list was made; what a level is worth was measured when the build was made (``blend/levels.json``).
"""

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table
from tritonrank_gateway.adapt import Level, ladder_of
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_recommend.blend import BlendError, open_levels

from loadtests.adapt_page import render
from loadtests.console import fail
from loadtests.dialects import VISITS
from loadtests.levels_ledger import Ledger, ledger_of, verdicts
from loadtests.recommend import RAMP, prepared
from loadtests.recommend import SLO as RECOMMEND_SLO
from loadtests.results import NO_ROOM, Run, RunFileError, Verdict, write_run, write_whole
from loadtests.session import (
    NO_FILE,
    RUNS,
    WARM_UP_SECONDS,
    ProcessesOption,
    SaturationOption,
    Session,
    WorkloadOption,
    objectives_or_exit,
    open_session,
    requests_or_exit,
    show_measured,
)
from loadtests.shapes import plan_of

MODES = ("off", "act")


def adapt(
    artifacts: Annotated[Path, typer.Argument(help="artifacts/<recipe>, with a catalogue and a blend")],
    workload: WorkloadOption = NO_FILE,
    slo: Annotated[Path, typer.Option(help="Objectives, of which the load is taken")] = RECOMMEND_SLO,
    users: Annotated[int, typer.Option(min=1, help="In the store")] = 10_000,
    store: Annotated[str, typer.Option(help="As for `recommend`")] = "",
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of saturation: the steady rate")] = 0.3,
    times: Annotated[float, typer.Option(min=1.1, max=100, help="Of the steady rate: the spike")] = 5.0,
    seconds: Annotated[float, typer.Option(min=4, help="Before, in and after the spike together")] = 90.0,
    saturation: SaturationOption = None,
    processes: ProcessesOption = 0,
    out: Annotated[Path, typer.Option(help="Results; the page lies beside")] = RUNS / "adapt.json",
) -> None:
    """Send a spike of five times the steady rate to a gateway that adapts and to one that does not.

    Exits with 1 when, with --adapt act, a list found no room, what was served is worth less than 0.95 of full lists, or
    lists are not all in full again 10 s after the spike.
    """
    objectives, levels = objectives_or_exit(slo), levels_of(artifacts)
    requests_or_exit(str(artifacts), workload, objectives.load.candidates)
    runs: dict[str, Run] = {}
    most = saturation
    with prepared(str(artifacts), store, users) as (options, visitors):
        for mode in MODES:
            with open_session(
                str(artifacts),
                workload,
                protocol="http",
                deadline_ms=objectives.load.deadline_ms,
                candidates=objectives.load.candidates,
                processes=processes,
                dialect=VISITS,
                gateway_options=[*options, "--adapt", mode],
                visitors=visitors,
            ) as session:
                most = most or session.saturation_per_second(RAMP)
                run = _spike(session, mode, share * most, times, seconds)
                runs[mode] = run.model_copy(update={"saturation_per_second": most})
    ledgers = {mode: ledger_of(run, levels) for mode, run in runs.items()}
    _finish(runs, ledgers, levels, out)


def levels_of(artifacts: Path) -> list[Level]:
    """The levels of a gateway with default settings before a build; ends the program where their worth is unknown."""
    try:
        file = open_levels(artifacts / "blend")
    except BlendError as error:
        fail(str(error))
    if file is None:
        fail(f"{artifacts}/blend: no levels.json. Make it: tritonrank build RECIPE, with a retrieval section")
    settings = GatewaySettings()
    return ladder_of(settings.candidates, settings.adapt_floor, file=file)


def _spike(session: Session, mode: str, rate: float, times: float, seconds: float) -> Run:
    plan = plan_of("spike", rate=rate, seconds=seconds, warm_up_seconds=WARM_UP_SECONDS, peak=times)
    run = session.send(plan, name=f"adapt-{mode}", verb="adapt")
    show_measured(run)
    return run


def _finish(runs: dict[str, Run], ledgers: dict[str, Ledger], levels: list[Level], out: Path) -> NoReturn:
    """Write results and page, show the ledger, end the program."""
    found = verdicts(ledgers["act"])
    short = [reason for run in runs.values() if not run.client.valid for reason in run.shortcomings]
    is_passed = all(one.met for one in found) and not short
    told = {
        "passed": is_passed,
        "valid": not short,
        "why": short,
        "verdicts": [one.model_dump() for one in found],
        "ledgers": {mode: _summary(one) for mode, one in ledgers.items()},
        "saturation_per_second": runs["act"].saturation_per_second,
    }
    page = out.with_suffix(".html")
    try:
        for mode, run in runs.items():
            write_run(run, out.with_name(f"{out.stem}-{mode}.json"))
        write_whole(out, json.dumps(told, indent=1) + "\n")
        write_whole(page, render(runs, ledgers, levels, found))
    except RunFileError as error:
        fail(str(error), valid=not short)
    show(ledgers, levels, found)
    print(json.dumps(told | {"results": str(out), "page": str(page)}))
    sys.exit(0 if is_passed else 1)


def show(ledgers: dict[str, Ledger], levels: list[Level], found: list[Verdict]) -> None:
    """The ledger of both runs, and the verdicts."""
    out = Console(emoji=False)
    names = [*(level.name for level in levels), NO_ROOM]
    table = Table("adapt", "phase", *(Column(name, justify="right") for name in (*names, "NDCG of full")))
    for mode, ledger in ledgers.items():
        for phase, lists in ledger.by_phase.items():
            table.add_row(mode, phase, *(str(lists.get(name, 0)) for name in names), "")
        told = "-" if ledger.quality is None else f"{ledger.quality:.3f}"
        table.add_row(mode, "together", *(str(ledger.lists[name]) for name in names), told)
    out.print(table)
    for one in found:
        met = "met" if one.met else "MISSED"
        out.print(f"{met}: {one.objective}, wanted {one.wanted}, found {one.found} {one.why}", highlight=False)


def _summary(ledger: Ledger) -> dict[str, object]:
    return {
        "by_phase": {phase: dict(lists) for phase, lists in ledger.by_phase.items()},
        "failed": ledger.failed,
        "quality": ledger.quality,
        "recovery_seconds": ledger.recovery_seconds,
    }
