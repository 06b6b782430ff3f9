"""How dashboards are read, filled and drawn, with a Prometheus that answers what it is told to."""

import json
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tritonrank.report.plots.axes import Series
from tritonrank.report.plots.over_time import heat_map, stacked_areas

from deploy.grafana.__main__ import FOLDER
from loadtests.dashboards.ask import Asked, Line, Period, fill, name_of
from loadtests.dashboards.boards import BoardError, Panel, Target, read_boards
from loadtests.dashboards.draw import draw
from loadtests.dashboards.prometheus import Found, Prometheus, PrometheusError

PERIOD = Period(1_000.0, 1_060.0, 10.0, 5.0)


def panel_of(kind: str = "timeseries", unit: str = "s", **changes: Any) -> Panel:
    told: dict[str, Any] = {
        "title": "Seconds", "kind": kind, "asks": "How long?", "unit": unit, "width": 8,
        "targets": [Target("x", "{{route}}", False)], "is_stacked": False, "limit": None, "is_bad_above": True,
    }  # fmt: skip
    return Panel(**(told | changes))


def asked(panel: Panel, *series: tuple[dict[str, str], list[tuple[float, float]]]) -> Asked:
    found = [Found(labels, points) for labels, points in series]
    return Asked(panel, ["x"], [Line(name_of(one, panel.targets[0], panel), one) for one in found], [])


def test_rates_look_at_four_scrapes_at_least_and_other_names_are_left_alone() -> None:
    assert Period.before(4_600.0, 3_600.0, 15.0).rate_interval == "60s"
    assert Period.before(90_000.0, 86_400.0, 15.0).rate_interval == "735s"
    filled = fill('rate(a{i=~"$gateway", j="$gate"}[$__rate_interval]) / $__range', {"gateway": "x|y"}, PERIOD)
    assert filled == 'rate(a{i=~"x|y", j="$gate"}[20s]) / 60s'


def test_a_line_breaks_where_nothing_was_measured_and_is_named_by_its_labels() -> None:
    picture = draw(asked(panel_of(), ({"route": "/v1/rank"}, [(1_010.0, 0.1), (1_020.0, 0.2), (1_050.0, 0.1)])), PERIOD)
    assert picture.legend == [(1, False, "/v1/rank")]
    assert picture.drawn.count("<polyline") == 1
    assert picture.drawn.count("<circle") == 1  # alone after the break
    assert ">ms<" in picture.drawn
    ElementTree.fromstring(picture.drawn)


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("s", 0.0123, "12.3 ms"),
        ("s", 90.0, "90 s"),
        ("s", 864_000.0, "10 days"),
        ("percentunit", 0.5, "50 %"),
        ("bytes", 2e6, "2 MB"),
        ("ops", 1_234.0, "1,234 / s"),
        ("short", 1e6, "1,000 thousand"),
    ],
)
def test_numbers_have_units_that_people_read(unit: str, value: float, shown: str) -> None:
    assert draw(asked(panel_of("stat", unit), ({}, [(1_050.0, 0.0), (1_060.0, value)])), PERIOD).number == shown


@pytest.mark.parametrize(("above", "value", "is_bad"), [(True, 2, True), (True, 0, False), (False, 0, True)])
def test_a_number_is_bad_on_the_bad_side_of_its_limit(above: bool, value: float, is_bad: bool) -> None:
    panel = panel_of("stat", "short", limit=1.0, is_bad_above=above)
    assert draw(asked(panel, ({}, [(1_060.0, value)])), PERIOD).is_bad is is_bad


def test_a_heat_map_shows_what_is_in_each_bucket_alone() -> None:
    panel = panel_of("heatmap", targets=[Target("x", "__auto", False)])
    buckets = [({"le": bound}, [(1_010.0, count)]) for bound, count in (("+Inf", 7.0), ("0.5", 6.0), ("0.1", 2.0))]
    drawn = draw(asked(panel, *buckets), PERIOD).drawn
    told = [one.text for one in ElementTree.fromstring(drawn).iter("title")]
    assert told == ["up to 0.1: 2 counted", "up to 0.5: 4 counted", "up to more: 1 counted"]


def test_stacked_areas_lie_on_each_other() -> None:
    points = [(0.0, 1.0), (1.0, 1.0)]
    svg = ElementTree.fromstring(
        stacked_areas([Series("a", points, 1), Series("b", [(0.0, None), (1.0, 3.0)], 2)], x_label="s", y_label="n")
    )
    first, second = (
        [tuple(map(float, p.split(","))) for p in one.attrib["points"].split()] for one in svg.iter("polygon")
    )
    assert first[0] == second[0] == second[3], "b has no value at 0, so it has no height there"
    assert first[1] == second[2], "and begins where a ends"
    assert second[1][1] < first[1][1]
    assert stacked_areas([Series("a", [(0.0, None)], 1)], x_label="s", y_label="n") == ""
    assert heat_map([(0.0, [0.0])], ["1"], x_label="s", y_label="s", unit="counted") == ""


@pytest.mark.parametrize("file", ["", "{}", '{"panels": []}', "[1]"])
def test_what_is_no_dashboard_is_named_with_what_to_type(tmp_path: Path, file: str) -> None:
    with pytest.raises(BoardError, match=str(tmp_path)):
        read_boards(tmp_path)
    (tmp_path / "odd.json").write_text(file, "utf-8")
    with pytest.raises(BoardError, match=r"odd\.json.*python -m deploy\.grafana"):
        read_boards(tmp_path)


def test_a_panel_of_another_kind_is_named(tmp_path: Path) -> None:
    made = (FOLDER / "ranker.json").read_text("utf-8").replace('"type": "stat"', '"type": "piechart"')
    (tmp_path / "ranker.json").write_text(made, "utf-8")
    with pytest.raises(BoardError, match=r"Ranked requests.*piechart"):
        read_boards(tmp_path)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_no_number_is_no_data() -> None:
    result = [{"metric": {"a": "b"}, "value": [1.0, "NaN"]}, {"metric": {}, "value": [1.0, "2.5"]}]
    with answering(200, json.dumps({"data": {"result": result}}).encode()) as url:
        assert Prometheus(url).now("x", 1.0) == [Found({}, [(1.0, 2.5)])]


def test_the_longest_scrape_counts() -> None:
    targets = [{"scrapeInterval": "15s"}, {"scrapeInterval": "1m30s"}, {"scrapeInterval": "500ms"}]
    with answering(200, json.dumps({"data": {"activeTargets": targets}}).encode()) as url:
        assert Prometheus(url).scrape_seconds() == 90.0
    with (
        answering(200, b'{"data": {"activeTargets": []}}') as url,
        pytest.raises(PrometheusError, match="scrape_configs"),
    ):
        Prometheus(url).scrape_seconds()


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b"{}"), (500, b"oh"), (400, b'{"error": "parse"}')]
)
def test_what_is_no_prometheus_is_named(status: int, body: bytes) -> None:
    with answering(status, body) as url, pytest.raises(PrometheusError, match=url):
        Prometheus(url).now("x", 1.0)


@pytest.mark.parametrize("url", ["127.0.0.1:9090", "file:///etc/passwd", "http://127.0.0.1:1"])
def test_where_nobody_answers_is_named(url: str) -> None:
    with pytest.raises(PrometheusError, match=url):
        Prometheus(url).names()
