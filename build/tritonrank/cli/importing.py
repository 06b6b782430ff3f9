"""The verb that fills a store with the events that a shop has already."""

from pathlib import Path
from typing import Annotated

import typer

from tritonrank.cli.completion import complete_recipe
from tritonrank.cli.options import DEFAULT_ARTIFACTS, NO_OVERRIDES, Overrides, app, open_recipe
from tritonrank.cli.panels import Panel
from tritonrank.errors import RecipeError

NO_COLUMNS: list[str] = []  # Typer reads it as the default and never changes it


@app.command("import-events", rich_help_panel=Panel.SERVE)
def import_events(
    store: Annotated[str, typer.Option(metavar="URL", help="As the gateway's: sqlite:FILE or redis://HOST:PORT/DB")],
    events: Annotated[
        str | None,
        typer.Argument(metavar="EVENTS", help="A file, a folder of parts, a pattern, or a database's URL"),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            help="Says what the columns are; without EVENTS its own events are taken",
            autocompletion=complete_recipe,
        ),
    ] = None,
    overrides: Overrides = NO_OVERRIDES,
    column: Annotated[
        list[str],
        typer.Option(
            "--column",
            metavar="MEANING=COLUMN",
            help="Without a recipe, say what a column is: item_id, user_id, timestamp, query, label",
        ),
    ] = NO_COLUMNS,
    kind: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Of events that say no other: click, purchase ...")
    ] = "click",
) -> None:
    """Fill the gateway's store with events that you have already, so that it knows your users from the first request.

    Types are known by their words (view, add_to_cart, purchase ...), numbers are ratings. What is imported again counts
    once, for a week. For example: tritonrank import-events events.csv.gz --store sqlite:store.db
    """
    named = dict(_split(one) for one in column)
    from tritonrank.retrieval.event_types import TYPES

    if kind not in TYPES:
        raise RecipeError(f"--type {kind}: expected one of {', '.join(TYPES)}")
    from tritonrank.data.loading import load_tables
    from tritonrank.pipeline.start import location_of
    from tritonrank.recipe import TablesData
    from tritonrank.retrieval.import_events import import_events as send
    from tritonrank.retrieval.imported_events import TOLERATE, EventColumns, events_of, read_events

    if recipe is None:
        if events is None:
            raise RecipeError("name the events, or a recipe: tritonrank import-events EVENTS --store URL")
        table = location_of(events)
        read = read_events(table, EventColumns.guessed(table, named), default=kind, tolerate=TOLERATE)
    else:
        loaded, _ = open_recipe(recipe, overrides, DEFAULT_ARTIFACTS)
        data = loaded.data
        if isinstance(data, TablesData):
            location = location_of(events) if events else data.events
            read = read_events(location, EventColumns.of(data), default=kind, tolerate=data.tolerate)
        elif events:
            raise RecipeError(f"{recipe}: its source {data.source} names no columns; leave out EVENTS or --recipe")
        else:
            read = events_of(load_tables(data, loaded.seed), kind)
    for one in read.dropped:
        typer.echo(one)
    done = send(read.frame, store)
    known = f"; {done.duplicates:,} known already" if done.duplicates else ""
    typer.echo(f"{done.accepted:,} events of {done.users:,} users imported{known}\n{_next(store)}")


def _split(text: str) -> tuple[str, str]:
    meaning, sign, chosen = text.partition("=")
    if not sign:
        raise RecipeError(f"--column {text}: expected MEANING=COLUMN, such as user_id=customer_no")
    return meaning, chosen


def _next(store: str) -> str:
    shown = store if store.startswith("sqlite:") else "URL"  # a URL may hold a password
    return f"Next: python -m tritonrank_gateway --catalogue artifacts/NAME/catalogue --store {shown}"
