"""The verb that ranks a whole table without a server."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel
from tritonrank.errors import RecipeError

if TYPE_CHECKING:
    from tritonrank.system.database_url import Location

NO_COLUMNS: list[str] = []  # Typer reads it as the default and never changes it


@app.command(rich_help_panel=Panel.SERVE)
def rank(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>, or a repository folder")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="The requests: Parquet, CSV, JSON lines, a folder of these, or a database's URL",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="What to write, .parquet or .csv; default: FILE's name with .ranked.parquet")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Items of a request to give; 0 is all")] = 0,
    column: Annotated[
        list[str],
        typer.Option(
            metavar="MEANING=NAME",
            help="What a column is called, such as items=candidates. Meanings: request_id, query, history, "
            "history_ids, items, item_ids; in a table with an item per row: item, item_id",
        ),
    ] = NO_COLUMNS,
    item_table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Where the texts of items are that are named by their ids")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Do not rank a request with an item that cannot be scored")
    ] = False,
    processes: Annotated[int, typer.Option(min=0, help="0 is one per core")] = 0,
    build: Annotated[str | None, typer.Option(help="ID, served or newest; default: the build that is served")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what another run has left")] = False,
) -> None:
    """Rank the requests of a table, on all cores, without a server. A run that was stopped goes on where it was.

    Wide: a row is a request, with the lists items (texts or fields) or item_ids. Long: a row is one item of a request,
    with request_id and item, item_id or the fields of the template; the rows of a request stand together. Written is a
    row per ranked item: request_id, rank, index, item_id, score, unscored. Exits with 1 where no request was ranked.

    For example: tritonrank rank artifacts/demo requests.parquet --top-k 10
    """
    from tritonrank.serve.batch.ranking import Options, rank_table
    from tritonrank.serve.batch.requests_table import COLUMNS
    from tritonrank.serve.servable import repository_of
    from tritonrank.system.database_url import DatabaseUrl

    names = {}
    for one in column:
        meaning, equals, name = one.partition("=")
        if not equals or meaning not in COLUMNS:
            raise RecipeError(f"--column {one}: expected MEANING=NAME with one of {', '.join(COLUMNS)}")
        names[meaning] = name
    source, repository = _location(file), repository_of(artifacts, build)
    if out is None:
        if isinstance(source, DatabaseUrl):
            raise RecipeError("--out: say what to write, such as --out ranked.parquet; a database's URL gives no name")
        out = source.with_name(f"{source.name.partition('.')[0] or 'requests'}.ranked.parquet")
    table = _location(item_table) if item_table is not None else None
    outcome = rank_table(repository, source, out, Options(names, table, top_k, strict, processes, restart))
    outcome.show()
    typer.echo(json.dumps(outcome.told))
    if outcome.counts.requests and not outcome.counts.ranked:
        raise typer.Exit(1)


def _location(text: str) -> "Location":
    from tritonrank.system.database_url import DatabaseUrl, is_url

    try:
        return DatabaseUrl.parse(text) if is_url(text) else Path(text)
    except ValueError as error:
        raise RecipeError(str(error)) from error
