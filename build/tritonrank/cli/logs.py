"""The verb for a gateway's training log."""

import time
from pathlib import Path
from typing import Annotated

import typer
from tritonrank_recommend.log import layout

from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel
from tritonrank.errors import DataError

SECONDS_PER_DAY = 86_400


@app.command("sweep-log", rich_help_panel=Panel.OPERATE)
def sweep_log_command(
    folder: Annotated[Path, typer.Argument(help="The folder that the gateway's --events-log names", metavar="LOG")],
    keep_days: Annotated[
        float | None,
        typer.Option(min=1, help="Remove what was written longer ago than that; without it all days are kept"),
    ] = None,
) -> None:
    """Take erased users out of all files of a training log; `prepare` passes them over until that is done.

    With --keep-days it also ends what is kept: run it every day, as by cron.

    The gateway may go on meanwhile: it takes them out of the running hour by itself.
    """
    if not any((folder / kind).is_dir() for kind in layout.KINDS):
        raise DataError(f"{folder}: no log of events; expected the folder that the gateway's --events-log names")
    try:
        from tritonrank_recommend.log.upkeep import forget, sweep
    except ImportError as error:
        message = f"without {error.name} no file of a log can be written; pip install 'tritonrank[recommend]'"
        raise DataError(message) from None
    if keep_days is not None:
        removed = forget(folder, time.time() - keep_days * SECONDS_PER_DAY)
        typer.echo(f"files older than {keep_days:g} days, removed: {removed}")
    erased = len(layout.tombstones(folder))
    typer.echo(f"users erased so far: {erased}; files that still held some of them, and no longer do: {sweep(folder)}")
