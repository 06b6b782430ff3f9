"""The verbs that tell what a recipe can say, and which recipes there are."""

import json
import shutil
import textwrap
from typing import Annotated

import typer

from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel


@app.command(rich_help_panel=Panel.START)
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/settings.md")] = False,
    schema: Annotated[bool, typer.Option("--json", help="As a JSON Schema, for editors that check YAML")] = False,
) -> None:
    """List every setting of a recipe with its default, the reason for it, and where it has an effect.

    A setting that the chosen target does not use is refused by build, assemble and compile.
    """
    from tritonrank.recipe import Recipe, setting_rows, settings_page

    if schema:
        typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    if markdown:
        typer.echo(settings_page(), nl=False)
        return
    # Not a table: in 80 columns that cuts values and file names, or breaks every sentence after three words.
    indent = 4 * " "
    meanings = textwrap.TextWrapper(
        shutil.get_terminal_size().columns,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for row in setting_rows():
        typer.echo(typer.style(row.key, bold=True) + f" = {row.default}")
        for line in meanings.wrap(row.description + (f" [{row.used}]" if row.used else "")):
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
