"""``tritonrank watch``: rates of two looks, plain alerts, and the page of a gateway that is really asked."""

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gateways import running_gateway
from misbehaving_server import MisbehavingServer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from rich.console import Console
from tritonrank import cli
from tritonrank.errors import ServerError
from tritonrank.serve.watch import alerts as rules
from tritonrank.serve.watch.alerts import Alerts
from tritonrank.serve.watch.page import render
from tritonrank.serve.watch.scrape import Scrape, Span, read_page
from tritonrank.serve.watch.watching import Watch, page_of
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
URL = "http://here/metrics"
Samples = dict[str, list[tuple[dict[str, str], float]]]


def span_of(earlier: Samples, later: Samples, seconds: float = 10.0) -> Span:
    return Span({URL: Scrape(URL, 0.0, earlier)}, {URL: Scrape(URL, seconds, later)})


@contextmanager
def page_server(page: bytes, status: int = 200) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


# Two looks


def test_a_counter_that_was_set_back_counts_from_nothing() -> None:
    earlier: Samples = {"calls_total": [({"route": "a"}, 100.0), ({"route": "b"}, 5.0)]}
    later: Samples = {"calls_total": [({"route": "a"}, 7.0), ({"route": "b"}, 8.0), ({"route": "new"}, 2.0)]}
    span = span_of(earlier, later)
    assert span.raised("calls_total", "route") == {"a": 7.0, "b": 3.0, "new": 2.0}
    assert span.rate("calls_total") == pytest.approx(1.2)
    assert span.rate("calls_total", route="b") == pytest.approx(0.3)


def test_a_histograms_quantile_is_within_the_bucket_of_the_true_one() -> None:
    registry = CollectorRegistry()
    bounds = [0.01 * 1.5**power for power in range(16)]
    histogram = Histogram("seconds", "of a call", buckets=bounds, registry=registry)
    before = np.random.default_rng(7).exponential(2.0, 500)
    for value in before:
        histogram.observe(value)
    with page_server(generate_latest(registry)) as url:
        earlier = read_page(url)
    between = np.random.default_rng(8).gamma(2.0, 0.05, 2_000)
    for value in between:
        histogram.observe(value)
    with page_server(generate_latest(registry)) as url:
        later = Scrape(earlier.url, earlier.at + 10, read_page(url).samples)
    span = Span({earlier.url: earlier}, {earlier.url: later})
    for share in (0.1, 0.5, 0.9, 0.99):
        true, told = float(np.quantile(between, share)), span.quantile("seconds", share)
        assert told is not None
        assert max([0.0, *(bound for bound in bounds if bound < true)]) <= told
        assert told <= min(bound for bound in bounds if bound >= true)
    assert span.mean("seconds") == pytest.approx(between.mean())
    assert span.quantile("unknown", 0.5) is None


def test_one_look_tells_no_rates() -> None:
    span = Span({}, {URL: Scrape(URL, 0.0, {"calls_total": [({}, 5.0)], "up": [({}, 1.0)]})})
    assert (span.rate("calls_total"), span.rose("calls_total"), span.gauge("up")) == (0.0, 0.0, 1.0)
    assert span.gauge("missing") is None


@pytest.mark.parametrize(
    ("page", "status", "problem"),
    [(b"<html>no</html>", 200, "no metrics page"), (b"", 200, "no metrics page"), (b"x 1\n", 503, "503")],
)
def test_what_is_no_metrics_page_says_so(page: bytes, status: int, problem: str) -> None:
    with page_server(page, status) as url:
        found = read_page(url)
    assert problem in found.problem
    assert not found.samples


# Alerts

OUTCOMES = "tritonrank_gateway_requests_total"
LISTS = "tritonrank_gateway_recommendations_total"


def outcomes(**counts: float) -> Samples:
    return {OUTCOMES: [({"outcome": name, "route": "/v1/rank"}, count) for name, count in counts.items()]}


def gauge(name: str, value: float, **labels: str) -> Samples:
    return {name: [(labels, value)]}


@pytest.mark.parametrize(
    ("name", "firing", "silent"),
    [
        ("Refused", outcomes(answered=900, refused=20), outcomes(answered=9_000, refused=20)),
        ("Errors", outcomes(answered=900, failed=20), outcomes(answered=900, failed=0, invalid=200)),
        (
            "Degraded",
            {LISTS: [({"degraded": "yes"}, 30.0), ({"degraded": "no"}, 70.0)]},
            {LISTS: [({"degraded": "yes"}, 3.0), ({"degraded": "no"}, 7.0)]},
        ),
        (
            "Queue",
            gauge("tritonrank_gateway_queued_seconds", 0.8),
            gauge("tritonrank_gateway_queued_seconds", 0.3),
        ),
        ("StoreDown", gauge("tritonrank_gateway_store_up", 0), gauge("tritonrank_gateway_store_up", 1)),
        (
            "ReplicaOut",
            gauge("tritonrank_gateway_replica_up", 0, replica="a"),
            gauge("tritonrank_gateway_replica_up", 1, replica="a"),
        ),
        (
            "Drift",
            gauge("tritonrank_quality_drift_psi", 0.4, feature="score"),
            gauge("tritonrank_quality_drift_psi", math.nan, feature="score"),
        ),
        (
            "ModelOld",
            gauge("tritonrank_gateway_artifact_created_seconds", 1.0, part="ranker"),
            gauge("tritonrank_gateway_artifact_created_seconds", 4e9, part="ranker"),
        ),
        (
            "Adapted",
            gauge("tritonrank_adapt_level", 2) | gauge("tritonrank_adapt_acting", 1),
            gauge("tritonrank_adapt_level", 2) | gauge("tritonrank_adapt_acting", 0),
        ),
        (
            "Restarts",
            gauge("tritonrank_server_restarts", 1),
            gauge("tritonrank_server_restarts", 0),
        ),
        (
            "EventsLogBehind",
            gauge("tritonrank_gateway_events_log_waiting_seconds", 1_000),
            gauge("tritonrank_gateway_events_log_waiting_seconds", 10),
        ),
        (
            "FilesOpen",
            gauge("process_open_fds", 900) | gauge("process_max_fds", 1_000),
            gauge("process_open_fds", 100) | gauge("process_max_fds", 1_000),
        ),
        (
            "LoopLate",
            {"tritonrank_gateway_loop_late_seconds_bucket": [({"le": "0.1"}, 0.0), ({"le": "1.0"}, 40.0)]},
            {"tritonrank_gateway_loop_late_seconds_bucket": [({"le": "0.1"}, 40.0), ({"le": "1.0"}, 40.0)]},
        ),
    ],
)
def test_each_alert_fires_and_is_silent(name: str, firing: Samples, silent: Samples) -> None:
    for later, is_wanted in ((firing, True), (silent, False)):
        alerts = Alerts()
        pages = {URL: Scrape(URL, 10.0, later)}
        alerts.look(span_of({}, later), pages)
        assert (name in [one.name for one in alerts.last]) is is_wanted


def test_an_alert_is_kept_with_its_beginning_and_its_end() -> None:
    now = [1_000.0]
    alerts = Alerts(lambda: now[0])
    gone, here = {URL: Scrape(URL, 1.0, problem="refused")}, {URL: Scrape(URL, 2.0, {"up": [({}, 1.0)]})}
    for pages in (gone, gone, here):
        alerts.look(Span({}, pages), pages)
        now[0] += 5
    (one,) = alerts.last
    assert (one.name, one.about, one.began, one.ended) == ("ServerDown", URL, 1_000.0, 1_010.0)


def test_an_alert_of_the_page_has_its_runbook_where_prometheus_has_it_too() -> None:
    source = Path(rules.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r'(?:yield |\()"([A-Z]\w+)"', source)) - {"Errors"}  # one for each kind of route there
    files = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "deploy" / "prometheus" / "rules").iterdir())
    assert len(named) >= 12
    assert named <= set(re.findall(r"alert: (\w+)", files))


def test_every_metric_that_is_read_is_described() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(rules.__file__).parent.glob("*.py"))
    described = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    read = set(re.findall(r'"((?:tritonrank|process|nv)_\w+)"', sources))
    assert len(read) > 30
    assert [name for name in sorted(read) if f"`{name}`" not in described] == []


# The page


def shown(renderable: Any) -> str:
    console = Console(width=124, record=True, file=StringIO(), emoji=False)
    console.print(renderable)
    return console.export_text()


def test_a_label_is_no_markup() -> None:
    samples = gauge("tritonrank_quality_drift_psi", 0.4, feature="[red]score[/]")
    alerts, span = Alerts(), span_of({}, samples)
    alerts.look(span, {})
    assert "[red]score[/]" in shown(render(span, {}, alerts.last))


def test_the_page_tells_what_a_model_does() -> None:
    registry = CollectorRegistry()
    labels = {"model": "ranker", "version": "1"}
    for name, value in (("tokenize", 2.0), ("queue", 6.0), ("score", 30.0), ("select", 2.0)):
        Counter(f"tritonrank_{name}_seconds", "s", [*labels], registry=registry).labels(**labels).inc(value)
    Counter("tritonrank_requests_scored", "s", [*labels], registry=registry).labels(**labels).inc(100)
    Gauge("tritonrank_queued_seconds", "s", [*labels], registry=registry).labels(**labels).set(0.25)
    with page_server(generate_latest(registry)) as url:
        later = read_page(url)
    page = shown(render(Span({url: Scrape(url, later.at - 10)}, {url: later}), {url: later}, []))
    assert re.search(r"tokenize 20.0 ms\s+wait 60.0 ms\s+score 300.0 ms\s+select 20.0 ms", page)
    assert re.search(r"models, queued work\s+250.0 ms", page)


@pytest.mark.parametrize("given", ["127.0.0.1:8081", "http://127.0.0.1:8081", "http://127.0.0.1:8081/metrics"])
def test_a_host_and_port_are_enough(given: str) -> None:
    assert page_of(given) == "http://127.0.0.1:8081/metrics"


def test_the_command_says_what_to_start_where_nothing_answers() -> None:
    result = CliRunner().invoke(cli.app, ["watch", "--once", "127.0.0.1:9"])
    assert isinstance(result.exception, ServerError)
    assert "http://127.0.0.1:9/metrics" in str(result.exception)
    assert "tritonrank serve" in str(result.exception)
    with pytest.raises(ServerError, match="ftp://here"):
        page_of("ftp://here")


def test_a_gateway_that_is_asked_is_seen(tmp_path: Path) -> None:
    triton = MisbehavingServer()
    try:
        with running_gateway(triton.urls["grpc"], tmp_path) as gateway, httpx.Client(base_url=gateway.url) as http:
            page = f"{gateway.metrics_url}/metrics"
            watched = Watch([page, "http://127.0.0.1:9/metrics"])
            for _ in range(20):
                assert http.post("/v1/rank", json={"items": ["desk", "lamp"]}).status_code == 200
            http.post("/v1/rank", json={"items": 3})
            found = shown(watched.look())
            watched.close()
            assert re.search(r"/v1/rank\s+[\d.]+\s+[\d.]+ ms\s+[\d.]+ ms\s+4.8% invalid", found)
            assert re.search(r"now\s+ServerDown\s+http://127.0.0.1:9/metrics", found)
            asked = threading.Event()

            def ask() -> None:
                while not asked.wait(0.02):
                    http.post("/v1/rank", json={"items": ["desk", "lamp"]})

            thread = threading.Thread(target=ask)
            thread.start()
            try:
                result = CliRunner().invoke(cli.app, ["watch", "--once", "--every", "0.5", page])
            finally:
                asked.set()
                thread.join()
            assert result.exit_code == 0, result.output
            assert "/v1/rank" in result.output
            assert "none came" not in result.output
    finally:
        triton.close()
