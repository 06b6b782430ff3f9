"""``python -m loadtests report``: the files of one or two runs become a page for a browser."""

from pathlib import Path
from typing import Annotated

import typer

from loadtests.console import fail_plainly
from loadtests.page import headline, render
from loadtests.results import Run, RunFileError, read_run, write_whole


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The JSON file of a run")],
    baseline: Annotated[Path | None, typer.Option(help="Another run, laid beside it with ratios")] = None,
    perf: Annotated[Path | None, typer.Option(help="A perf.json, whose levels join the plot and have a table")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; default: RUN with the ending .html")] = None,
) -> None:
    """Write one self-contained HTML page: verdicts, plots, the server's side, failures, how it was made."""
    try:
        measured = read_run(run)
        page = write_page(
            measured,
            out or run.with_suffix(".html"),
            read_run(baseline) if baseline else None,
            read_run(perf) if perf else None,
        )
    except RunFileError as error:
        fail_plainly(str(error))
    typer.echo(f"{headline(measured)[1]}\n{page}")


def write_page(run: Run, path: Path, baseline: Run | None = None, perf: Run | None = None) -> Path:
    """Write the page, whole or not at all.

    Raises:
        RunFileError: it cannot be written.
    """
    write_whole(path, render(run, baseline, perf))
    return path
