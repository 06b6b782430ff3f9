"""The verbs to start with: a recipe from the user's own files, and what a build of it would do."""

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
from tritonrank.errors import RecipeError, TritonRankError

UP = "tritonrank up BAAI/bge-reranker-base"
WITHOUT_EVENTS = (
    "without events (who met which item, and when) nothing can be learnt or judged. What can be done: serve a ready "
    "reranker, which takes the items with each request, by one command: "
)
NO_COLUMNS: list[str] = []  # Typer reads it as the default and never changes it


@app.command(rich_help_panel=Panel.START)
def init(
    items: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Items: a file, a folder of parts, a pattern, or a database's URL"),
    ] = None,
    events: Annotated[str | None, typer.Option(metavar="FILE", help="Events: the same kinds")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A public data set instead, such as MovieLens")
    ] = (None),
    checkpoint: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A ranker that is trained already: a folder or a hub id")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RECIPE.yaml", help="Where to write; default: NAME.yaml")] = None,
    name: Annotated[str | None, typer.Option(help="Of the recipe and of its artifacts; default: from --out")] = None,
    column: Annotated[
        list[str],
        typer.Option(
            "--column",
            metavar="MEANING=COLUMN",
            help="Say what a column is: item_id (or ITEMS:EVENTS), user_id, timestamp, query, label, text",
        ),
    ] = NO_COLUMNS,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="What training may take on this machine; sizes the examples")
    ] = 20.0,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, also on a terminal")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there")] = False,
    example: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a generated, dirty shop there to try everything on")
    ] = None,
) -> None:
    """Write a recipe from your own tables: guess their columns, show why, size everything to data and machine.

    Asks on a terminal only. For example: tritonrank init --items products.csv --events events.csv.gz
    """
    if example:
        _write_example(example)
        return
    asks = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    if data is None and asks:
        items = items or typer.prompt("Items: a file, a folder or a database's URL")
        events = events or typer.prompt("Events: a file, a folder or a database's URL")
    if data is None and not events:
        serve = f"tritonrank up {shlex.quote(checkpoint)}" if checkpoint else UP
        raise RecipeError(f"{WITHOUT_EVENTS}{serve}\nWith events: tritonrank init --items FILE --events FILE")
    if data is None and not items:
        raise RecipeError("events alone have no texts to rank; name the items as well: --items FILE")
    from tritonrank.pipeline.start import name_from

    name = name or (name_from(out) if out else data.resolve().name.casefold() if data else "shop")
    out = out or Path(f"{name}.yaml")
    if out.exists() and not force:
        raise RecipeError(f"{out} is there already; name another one with --out, or replace it with --force")
    text = (
        _from_folder(data, out, name, minutes)
        if data
        else _from_tables(str(items), str(events), out, name, column, minutes, asks)
    )
    if checkpoint:
        text += model_section(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    typer.echo(f"\nwritten: {out}\nNext: tritonrank check {shlex.quote(str(out))}")


def model_section(checkpoint: str) -> str:
    """The lines of a recipe for a ranker that is trained already; of a language model on this machine as a decoder."""
    from tritonrank.rankers.checkpoint_decoder import is_decoder
    from tritonrank.rankers.checkpoint_source import is_hub_id

    lines = [
        "",
        "model:",
        f"  checkpoint: {json.dumps(checkpoint)}  # trained already: it is judged and served as it is",
    ]
    with contextlib.suppress(TritonRankError):  # what is wrong with it, check says
        if not is_hub_id(checkpoint) and is_decoder(checkpoint):
            lines.append("  architecture: decoder  # a language model; its prompt comes from the checkpoint")
    return "\n".join(lines) + "\n"


def _write_example(folder: Path) -> None:
    from tritonrank.data.dirty_shop import write_dirty_shop

    products, events = (shlex.quote(str(path)) for path in write_dirty_shop(folder))
    recipe = shlex.quote(str(folder / "shop.yaml"))
    typer.echo(
        f"written: {products}, {events}\nNext: tritonrank init --items {products} --events {events} --out {recipe}"
    )


def _from_tables(items: str, events: str, out: Path, name: str, columns: list[str], minutes: float, asks: bool) -> str:
    from tritonrank.pipeline.start import draft, location_of
    from tritonrank.pipeline.start_recipe import recipe_text
    from tritonrank.pipeline.start_tables import show_draft

    named = {}
    for one in columns:
        meaning, sign, chosen = one.partition("=")
        if not sign:
            raise RecipeError(f"--column {one}: expected MEANING=COLUMN, such as user_id=customer_no")
        named[meaning] = chosen
    of_items, of_events = location_of(items), location_of(events)
    console = Console()
    while True:
        with contextlib.redirect_stdout(sys.stderr):  # what reading the data says by itself
            drafted = draft(of_items, of_events, name, named, minutes)
        show_draft(drafted, console)
        asked = {"user_id", "timestamp"} - set(named)
        doubtful = [guess for guess in drafted.guess.columns if guess.unsure and guess.meaning in asked]
        if not asks or not doubtful:
            return recipe_text(drafted, out, of_items, of_events)
        for guess in doubtful:
            named[guess.meaning] = typer.prompt(f"{guess.meaning} ({guess.unsure})", default=guess.column)


def _from_folder(folder: Path, out: Path, name: str, minutes: float) -> str:
    from tritonrank.pipeline.start_recipe import folder_recipe_text

    return folder_recipe_text(folder, out, name, minutes)


@app.command(rich_help_panel=Panel.START)
def check(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object on stdout")] = False,
) -> None:
    """Read the data of a recipe and say what a build would do: counts, what is cut, how long it takes. Nothing is made.

    Exit code 1: a build would stop. Suggestions come as options of the command, such as --set text.candidate_tokens=48.
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    from tritonrank.pipeline.check import check_recipe
    from tritonrank.pipeline.check_tables import show_check

    with contextlib.redirect_stdout(sys.stderr):  # what reading the data says by itself
        found = check_recipe(loaded, workspace, str(recipe))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    elif found["ok"]:
        show_check(found, Console())
        typer.echo(f"\nNext: tritonrank build {shlex.quote(str(recipe))}")
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
