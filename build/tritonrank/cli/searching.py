"""The verb that searches settings of a recipe."""

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tritonrank.cli.completion import complete_setting
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
from tritonrank.search.choices import Pruner, Sampler

NOTHING_SEARCHED: list[str] = []  # Typer reads it as the default and never changes it


def _complete_over(incomplete: str) -> list[str]:
    sections = ("finetune.", "prune.", "distill.", "quantize.")
    return (
        [f"{key}=" for key in complete_setting(incomplete) if key.startswith(sections)] if "=" not in incomplete else []
    )


@app.command(rich_help_panel=Panel.BUILD)
def search(
    recipe: RecipePath,
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            metavar="KEY=VALUES",
            help="A setting of finetune, prune, distill or quantize, and what it may be: a range (1e-6..1e-3:log, "
            "1..4:step=1, 1e-5..1e-3:log:points=5), values (4,8,16), or @FILE with a YAML mapping of such; repeatable",
            autocompletion=_complete_over,
        ),
    ] = NOTHING_SEARCHED,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials of the whole study, whoever runs them; default: 20, of grid and each all"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.05, help="After that nothing is begun, and a training ends at its next evaluation"),
    ] = None,
    sampler: Annotated[
        Sampler,
        typer.Option(
            help="What is tried next: tpe learns from the trials so far, random does not, grid tries every point, each "
            "changes one setting of the recipe at a time"
        ),
    ] = Sampler.TPE,
    pruner: Annotated[
        Pruner,
        typer.Option(
            help="Which trainings end early, by their validation NDCG@10: median: those below the others' median; "
            "halving: all but the better half, again and again"
        ),
    ] = Pruner.MEDIAN,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the study is kept, for several processes: a file (study.db; on a shared folder study.journal) "
            "or a database (postgresql://user:${PASSWORD}@host/database). Default: study.db beside the trials",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Default: the recipe's name and a hash of what is searched, from what"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The winner as a recipe; default: best.yaml beside the trials")
    ] = None,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
) -> None:
    """Search for settings that rank better, and write the best as a recipe.

    Each trial trains (or prunes, or quantizes) with other settings and is judged by NDCG@10 on the validation users.
    The dataset is prepared once for all, and of the trained rankers only the best is kept. The first trial is the
    recipe as it is; at the end the test users, by whom nothing was chosen, judge the best beside it.

    For example: tritonrank search movielens-small --over finetune.learning_rate=1e-5..1e-3:log --over
    finetune.examples_per_step=4,8,16 --trials 12 --minutes 60

    The same command goes on after an interruption, also in the middle of a training. Run twice at the same time, or on
    machines that share --storage, both work at the same study; nothing is tried twice, and what a process that died
    left behind is tried again. Settings that exclude each other fail alone; the search goes on. See docs/search.md.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise typer.BadParameter(
            "trials are trained by one process each: start `tritonrank search` several times rather than torchrun",
            param_hint="torchrun",
        )
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    from tritonrank.search.command import Request, run_search

    asked = Request(
        recipe=recipe,
        overrides=overrides,
        over=over,
        trials=trials,
        minutes=minutes,
        sampler=sampler,
        pruner=pruner,
        storage=storage,
        study=study,
        out=out,
        artifacts=artifacts,
    )
    outcome = run_search(asked, loaded, workspace)
    if outcome.build is not None:
        typer.echo(f"Build it: {shlex.join(outcome.build)}{outcome.remark}")
    typer.echo(json.dumps(outcome.result))
    raise typer.Exit(0 if outcome.build is not None else 1)
