"""The verb that lists the settings of a recipe."""

import shutil
import textwrap

import typer

from tritonrank.cli.options import app


@app.command()
def settings() -> None:
    """List every setting of a recipe with its default and the reason for it."""
    from tritonrank.recipe import setting_rows

    # Not a table: in 80 columns that cuts values and file names, or breaks every sentence after three words.
    indent = 4 * " "
    meanings = textwrap.TextWrapper(
        shutil.get_terminal_size().columns,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for key, default, meaning in setting_rows():
        typer.echo(typer.style(key, bold=True) + f" = {default}")
        for line in meanings.wrap(meaning):
            typer.echo(line)
