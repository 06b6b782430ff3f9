"""The verbs that tell what a recipe can say, and which recipes there are."""

import json
import shutil
import textwrap
from itertools import groupby
from typing import Annotated

import typer

from tritonrank.cli.completion import complete_setting
from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel

JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


@app.command(rich_help_panel=Panel.START)
def settings(
    word: Annotated[
        str | None,
        typer.Argument(
            metavar="WORD",
            help="A setting, which is explained; or a section, or any word: settings that have it",
            autocompletion=complete_setting,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All, as the page docs/settings.md")] = False,
    schema: Annotated[bool, typer.Option("--json", help="All, as a JSON Schema for editors")] = False,
) -> None:
    """List the settings of a recipe with their defaults, their reasons, and where they have an effect.

    For example: tritonrank settings serve.deadline_ms, tritonrank settings serve, tritonrank settings tokens. A setting
    that the chosen target does not use is refused by build, assemble and compile.

    Editors complete and check recipes by the schema: tritonrank settings --json > recipe.schema.json, and as the first
    line of a recipe: # yaml-language-server: $schema=recipe.schema.json
    """
    from tritonrank.recipe import Recipe, explanation, find_settings, setting_rows, settings_page

    if schema:
        named = {"$schema": JSON_SCHEMA, "title": "A recipe of tritonrank"}
        typer.echo(json.dumps(named | Recipe.model_json_schema() | named, indent=2))
        return
    if markdown:
        typer.echo(settings_page(), nl=False)
        return
    rows = find_settings(word) if word else list(setting_rows())
    if len(rows) == 1:
        typer.echo(typer.style(rows[0].key, bold=True))
        for heading, text in explanation(rows[0]):
            _print_wrapped(text, f"  {heading:<13}", 15 * " ")
        return
    for section, of_section in groupby(rows, lambda row: row.key.rpartition(".")[0]):
        typer.echo(typer.style(f"\n{section or 'at the top'}", bold=True, underline=True))
        for row in of_section:
            name = row.key.removeprefix(f"{section}.")
            _print_wrapped(str(row.default), f"  {typer.style(name, bold=True)} = ", 6 * " ")
            _print_wrapped(row.description + (f" [{row.used}]" if row.used else ""), 6 * " ", 6 * " ")
    if not word:
        typer.echo("\nOne explained: tritonrank settings serve.deadline_ms; a section: settings serve")


def _print_wrapped(text: str, first: str, further: str) -> None:
    """As wide as the terminal. No table: in 80 columns that cuts values and file names, or breaks every sentence."""
    width = shutil.get_terminal_size().columns
    for line in textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    ):
        typer.echo(line)


@app.command(rich_help_panel=Panel.START)
def recipes() -> None:
    """List the recipes that come with tritonrank: each can be built by its name, from any folder."""
    from tritonrank.recipe import shipped_recipes

    for name, path in shipped_recipes().items():
        opening = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        typer.echo(typer.style(name, bold=True) + f"  {path}")
        typer.echo(textwrap.fill(opening, initial_indent="    ", subsequent_indent="    "))
    typer.echo("\nBuild one: tritonrank build demo. Change one: copy its file.")
