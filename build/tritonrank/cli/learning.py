"""The verb that learns on: one night, or nights on and on."""

import json
import os
import sys
from typing import Annotated

import typer

from tritonrank.cli.options import (
    DEFAULT_ARTIFACTS,
    NO_OVERRIDES,
    ArtifactsRoot,
    Overrides,
    RecipePath,
    app,
    open_recipe,
)
from tritonrank.cli.panels import Panel
from tritonrank.cli.rolling import DEFAULT_URL, Controller

REFUSED_EXIT_CODE, FAILED_EXIT_CODE = 1, 2


@app.command(rich_help_panel=Panel.OPERATE)
def learn(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    once: Annotated[bool, typer.Option("--once", help="One night, now; the default")] = False,
    every: Annotated[
        str,
        typer.Option(
            "--every", metavar="PERIOD", help="A night now and after each period, such as 24h or 1h, until SIGTERM"
        ),
    ] = "",
    show: Annotated[bool, typer.Option("--show", help="Only show what nights did")] = False,
    as_of: Annotated[
        float | None,
        typer.Option("--as-of", metavar="SECONDS", help="Unix seconds to take for now, for a log of another time"),
    ] = None,
    controller: Controller = DEFAULT_URL,
) -> None:
    """Learn from the new hours of the training log; what is proved not to be worse becomes the next version.

    collect, inspect, examples, finetune (from the last accepted ranker), judge (against it), build (with its gates),
    publish (to the model store), release (a rollout). docs/learn.md tells what each does. A night that was cut off goes
    on where it was.

    Exits with 1 when the night was refused, with what serves left alone, and with 2 after a fault.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise typer.BadParameter(
            "a night is one process, which starts those that train: "
            f"tritonrank learn {recipe} --set learn.processes={os.environ['WORLD_SIZE']}",
            param_hint="torchrun",
        )
    if every and (once or show or as_of is not None):
        raise typer.BadParameter("goes without --once, --show and --as-of", param_hint="--every")
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    if every:
        from tritonrank.learn.schedule import every as take_nights
        from tritonrank.learn.schedule import period_seconds

        words = [sys.executable, "-m", "tritonrank", "learn", str(recipe), "--once", "--artifacts", str(artifacts)]
        words += ["--controller", controller, *(word for one in overrides for word in ("--set", one))]
        take_nights(period_seconds(every), words)
        return
    from tritonrank.learn.ledger import Ledger
    from tritonrank.learn.page import PAGE_FILE, result, show_night
    from tritonrank.learn.page import show as show_nights

    ledger = Ledger(workspace.root)
    if show:
        nights = ledger.nights()
        show_nights(nights)
        if nights:
            show_night(nights[-1])
            typer.echo(json.dumps([result(night) for night in nights]))
        return
    from tritonrank.learn.night import run_night
    from tritonrank.learn.steps import ALL, next_command

    night = run_night(loaded, workspace, ALL, controller=controller, now=as_of)
    show_nights(ledger.nights())
    show_night(night)
    typer.echo(f"Page: {ledger.folder / PAGE_FILE}\nNext: {next_command(night, recipe, workspace)}")
    typer.echo(json.dumps(result(night)))
    if night.outcome == "refused" or night.decision == "back":
        raise typer.Exit(REFUSED_EXIT_CODE)
    if night.outcome == "failed":
        raise typer.Exit(FAILED_EXIT_CODE)
