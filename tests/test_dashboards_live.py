"""Every panel of every dashboard has data: a real Prometheus looks at a real service under load, and is asked for all.

In a browser the page that draws them shows every panel, and asks nobody for anything.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import promql_parser
import pytest
from browser import open_browser
from test_dashboards import metrics_of
from tritonrank.artifacts.workspace import Workspace
from typer.testing import CliRunner
from watched_shop import WatchedShop, watched_shop

from deploy.grafana.__main__ import FOLDER
from loadtests.__main__ import app
from loadtests.dashboards.ask import Period, fill, filled_variables
from loadtests.dashboards.boards import read_boards
from loadtests.dashboards.page import DrawnBoard, render
from loadtests.dashboards.prometheus import Prometheus, PrometheusError
from loadtests.dashboards.verb import draw_board

pytestmark = pytest.mark.slow
SEEN_SECONDS = 12.0
BOARDS = {board.name: board for board in read_boards(FOLDER)}
MINUTES = "0.5"


@dataclass(frozen=True)
class Seen:
    """What a Prometheus had seen of a service, and the dashboards of that time."""

    shop: WatchedShop
    prometheus: Prometheus
    period: Period
    boards: dict[str, DrawnBoard]


@pytest.fixture(scope="module")
def seen(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with watched_shop(workspace, tmp_path_factory.mktemp("watched"), SEEN_SECONDS) as shop:
        prometheus = Prometheus(shop.prometheus)
        period = Period.until_now(60 * float(MINUTES), prometheus.scrape_seconds())
        yield Seen(
            shop, prometheus, period, {name: draw_board(one, prometheus, period) for name, one in BOARDS.items()}
        )


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_of_every_panel_brings_data(seen: Seen, name: str) -> None:
    pictures = [picture for row in seen.boards[name].rows for picture in row.pictures]
    assert pictures
    assert [(one.asked.panel.title, one.asked.empty) for one in pictures if one.asked.empty] == []
    assert [one.asked.panel.title for one in pictures if not (one.drawn or one.number)] == []


@pytest.mark.parametrize("name", BOARDS)
def test_every_metric_exists(seen: Seen, name: str) -> None:
    variables = filled_variables(BOARDS[name], seen.prometheus)
    asked = {
        metric
        for row in BOARDS[name].rows
        for panel in row.panels
        for target in panel.targets
        for metric in metrics_of(promql_parser.parse(fill(target.expression, variables, seen.period)))
    }
    assert asked
    assert asked - seen.prometheus.names() == set()


def test_the_dots_of_the_heat_map_are_traces(seen: Seen) -> None:
    board = json.loads((FOLDER / "service.json").read_text("utf-8"))
    targets = [target for panel in board["panels"] for target in panel.get("targets", ()) if target["exemplar"]]
    variables = filled_variables(BOARDS["service"], seen.prometheus)
    assert targets
    for target in targets:
        asked = {"query": fill(target["expr"], variables, seen.period)}
        asked |= {"start": str(seen.period.start), "end": str(seen.period.end)}
        answer = httpx.get(f"{seen.shop.prometheus}/api/v1/query_exemplars", params=asked, timeout=20)
        traces = [dot["labels"]["trace_id"] for series in answer.json()["data"] for dot in series["exemplars"]]
        assert traces
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in traces)


def test_the_verb_asks_for_all_and_draws_a_page_that_needs_nobody(seen: Seen, tmp_path: Path) -> None:
    page = tmp_path / "dashboards.html"
    command = ["dashboards", seen.shop.prometheus, "--minutes", MINUTES, "--page", str(page), "--folder", str(FOLDER)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["without_data"] == {name: [] for name in BOARDS}
    panels = sum(len(row.panels) for board in BOARDS.values() for row in board.rows)
    assert told["panels"] == panels
    with open_browser() as browser:
        tab = browser.new_page()
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert tab.locator("figure").count() == panels
        assert tab.locator("figure > svg, figure > .number").count() == panels
        assert tab.locator(".empty").count() == 0
        assert asked == [page.as_uri()]


def test_a_panel_without_data_is_named_and_a_wrong_query_is_an_error(seen: Seen, tmp_path: Path) -> None:
    made = (FOLDER / "ranker.json").read_text("utf-8").replace("tritonrank_runs_total", "tritonrank_walks_total")
    (tmp_path / "ranker.json").write_text(made, "utf-8")
    command = ["dashboards", seen.shop.prometheus, "--minutes", MINUTES, "--folder", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout.splitlines()[-1])["without_data"] == {
        "ranker": ["Requests per run", "Requests per run"]
    }
    assert "tritonrank_walks_total" in done.stdout.replace("\n", "")
    with pytest.raises(PrometheusError, match="no_such_function"):
        seen.prometheus.now("no_such_function(up)", seen.period.end)
    (tmp_path / "ranker.json").write_text(made.replace("nv_inference_count", "nv_inference_counted"), "utf-8")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "nv_inference_counted" in done.stderr


def test_the_page_escapes_what_labels_say(seen: Seen) -> None:
    board = seen.boards["service"]
    named = DrawnBoard("service", "<b>service</b>", board.asks, board.rows)
    assert "&lt;b&gt;service" in render([named], seen.period)
