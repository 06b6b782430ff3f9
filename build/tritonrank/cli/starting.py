"""The verbs to start with: a recipe from the user's own files, and what a build of it would do."""

import contextlib
import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from tritonrank.cli.options import DEFAULT_ARTIFACTS, NO_OVERRIDES, Overrides, RecipePath, app, open_recipe
from tritonrank.cli.panels import Panel


@app.command(rich_help_panel=Panel.START)
def check(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object on stdout")] = False,
) -> None:
    """Read the data of a recipe and say what a build would do: counts, what is cut, how long it takes. Nothing is made.

    Exit code 1: a build would stop. Suggestions come as options of the command, such as --set text.candidate_tokens=48.
    """
    loaded, _ = open_recipe(recipe, overrides, DEFAULT_ARTIFACTS)
    from tritonrank.pipeline.check import check_recipe
    from tritonrank.pipeline.check_tables import show_check

    with contextlib.redirect_stdout(sys.stderr):  # what reading the data says by itself
        found = check_recipe(loaded, str(recipe))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    elif found["ok"]:
        show_check(found, Console())
        typer.echo(f"\nNext: tritonrank build {recipe}")
    else:
        Console(stderr=True).print(
            f"{found['error']['type']}: {found['error']['message']}\nA build would stop here: nothing was made",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if not found["ok"]:
        raise typer.Exit(1)
