"""Which panels of the dashboards have data? Asks a Prometheus everything that they ask, and draws it on one page."""

import datetime
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loadtests.console import fail_plainly
from loadtests.dashboards.ask import Asked, Period, ask, filled_variables
from loadtests.dashboards.boards import BoardError, Dashboard, read_boards
from loadtests.dashboards.draw import draw
from loadtests.dashboards.page import DrawnBoard, DrawnRow, render
from loadtests.dashboards.prometheus import Prometheus, PrometheusError
from loadtests.results import RunFileError, write_whole

FOLDER = Path("deploy/grafana/dashboards")
SHORTEST_MINUTES = 0.1


def dashboards(
    url: Annotated[str, typer.Argument(help="Of a Prometheus, such as http://127.0.0.1:9090")],
    folder: Annotated[Path, typer.Option(help="Grafana's dashboards")] = FOLDER,
    minutes: Annotated[float, typer.Option(min=SHORTEST_MINUTES, help="To look back")] = 60.0,
    until: Annotated[datetime.datetime | None, typer.Option(help="From when, in UTC; default: now")] = None,
    page: Annotated[Path | None, typer.Option(help="Draw everything there, as HTML")] = None,
) -> None:
    """Ask a Prometheus everything that the dashboards ask. Exit code 1 where a query brings nothing."""
    try:
        boards = read_boards(folder)
        prometheus = Prometheus(url)
        end = until.replace(tzinfo=datetime.UTC) if until else datetime.datetime.now(datetime.UTC)
        period = Period.before(end.timestamp(), 60 * minutes, prometheus.scrape_seconds())
        drawn = [draw_board(board, prometheus, period) for board in boards]
        if page is not None:
            write_whole(page, render(drawn, period))
    except (BoardError, PrometheusError, RunFileError) as error:
        fail_plainly(str(error))
    asked = {board.name: [one.asked for row in board.rows for one in row.pictures] for board in drawn}
    empty = {name: [one.panel.title for one in panels if one.empty] for name, panels in asked.items()}
    Console().print(_table(asked))
    print(json.dumps({"panels": sum(map(len, asked.values())), "without_data": empty, "page": str(page or "")}))
    if any(empty.values()):
        raise typer.Exit(1)


def draw_board(board: Dashboard, prometheus: Prometheus, period: Period) -> DrawnBoard:
    """Ask for all panels of a dashboard.

    Raises:
        PrometheusError: Prometheus does not answer, a query is wrong, or a variable has no values.
    """
    variables = filled_variables(board, prometheus)
    rows = [
        DrawnRow(row.title, [draw(ask(panel, variables, prometheus, period), period) for panel in row.panels])
        for row in board.rows
    ]
    return DrawnBoard(board.name, board.title, board.asks, rows)


def _table(asked: dict[str, list[Asked]]) -> Table:
    table = Table("dashboard", "panels", "without data", "queries that brought nothing")
    for name, panels in asked.items():
        without = [one for one in panels if one.empty]
        told = "\n".join(f"{one.panel.title}: {query}" for one in without for query in one.empty)
        table.add_row(name, str(len(panels)), str(len(without)), told)
    return table
