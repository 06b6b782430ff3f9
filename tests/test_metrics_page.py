"""docs/metrics.md names every metric that a real gateway and a real Triton have, and no other."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import Served
from gateways import RunningGateway, running_gateway
from live import metric, settled, wait_until
from metric_pages import ELSEWHERE, LEARNING, PAGE, RECOMMEND, documented, told
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from tiny_catalogue import tiny_catalogue
from tritonrank.artifacts.manifest import read_manifest
from tritonrank.artifacts.workspace import Workspace

ROOT = Path(__file__).parents[1]
BUILDS = "Builds and training"
ROLLOUTS = "Rollouts"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PLACES, ENDINGS = ("deploy/prometheus", "deploy/grafana"), {".json", ".yml", ".yaml"}
ASKED = re.compile(r"(?<![\w:/.-])(?:tritonrank|nv)_[a-z0-9_]*[a-z0-9](?![\w:./-])")
"""A metric in a query: no rule's name, no file's."""
SUFFIXES = r"_(bucket|sum|count)$"


@pytest.fixture(scope="module")
def gateway(served: Served, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One with everything: two addresses, a cache, catalogue, store, log, golden cases."""
    folder = tmp_path_factory.mktemp("all")
    tiny_catalogue(folder / "catalogue")
    address = urlsplit(served.triton.grpc_url).netloc
    flags = {
        "catalogue": folder / "catalogue",
        "store": f"sqlite:{folder / 'store.db'}",
        "events-log": folder / "events",
        "golden": workspace.repository / "golden.json",
        "cache-mb": 1,
    }
    with running_gateway(
        f"{address},localhost:{address.rpartition(':')[2]}",
        folder / "gateway",
        "--no-access-log",
        *(text for name, value in flags.items() for text in (f"--{name}", str(value))),
    ) as running:
        traced = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        with httpx.Client(base_url=running.url, timeout=60, headers=traced) as http:
            for _ in range(2):  # the second finds rankings in the cache
                assert http.post("/v1/rank", json={"items": ["oak desk", "lamp"], "query": "desk"}).status_code == 200
                answer = http.post("/v1/recommend", json={"user_id": "u1", "query": "desk", "size": 3})
            shown = answer.json()
            click = {"type": "click", "user_id": "u1", "item_id": shown["items"][0]["item_id"], "position": 0}
            assert http.post("/v1/events", json=click | {"page": shown.get("page", "")}).status_code == 200
            assert http.post("/v1/rank", json={"items": "none"}).status_code == 422
        yield running


@pytest.mark.slow
def test_the_page_has_every_metric_and_no_other(served: Served, gateway: RunningGateway) -> None:
    pages = settled(
        lambda: [httpx.get(url).text for url in (f"{gateway.metrics_url}/metrics", served.triton.metrics_url)]
    )
    found = told(pages[0]) | told(pages[1])
    assert told(pages[0]).keys().isdisjoint(told(pages[1])), "a name means one thing"
    written = documented()
    assert {*found} - {*written} == set(), "not in docs/metrics.md"
    assert {*written} - {*found} == set(), "on no /metrics page"
    for name, one in found.items():
        assert written[name].kind == one.kind, name
        if one.has_samples:
            assert written[name].labels == one.labels, name


@pytest.mark.slow
def test_what_is_told_is_right(served: Served, gateway: RunningGateway, workspace: Workspace) -> None:
    page = httpx.get(f"{gateway.metrics_url}/metrics").text

    def value(start: str) -> float:
        (line,) = [line for line in page.splitlines() if line.startswith(start)]
        return float(line.rpartition(" ")[2])

    assert value('tritonrank_gateway_requests_total{outcome="answered",route="/v1/rank"}') == 2
    assert value('tritonrank_gateway_requests_total{outcome="invalid",route="/v1/rank"}') == 1
    assert value("tritonrank_gateway_store_up") == 1
    assert value('tritonrank_gateway_store_seconds_count{operation="add_events"}') == 1
    assert abs(value("tritonrank_gateway_last_event_seconds") - time.time()) < 600
    manifest = read_manifest(workspace.repository)
    artifact = manifest.metrics["artifact"]
    created = value(f'tritonrank_gateway_artifact_created_seconds{{artifact="{artifact}",part="ranker"}}')
    assert 0 < time.time() - created < 86_400
    assert f'tritonrank_gateway_info{{artifact="{artifact}",version="' in page
    assert "_created{" not in page, "when each counter began is asked by nobody"
    triton = httpx.get(served.triton.metrics_url).text
    assert f'artifact="{read_manifest(served.workspace.int8).artifact[:16]}",model="ranker"' in triton
    (memory,) = [line for line in triton.splitlines() if line.startswith('tritonrank_resident_bytes{model="ranker",')]
    assert float(memory.rpartition(" ")[2]) > 20e6
    assert metric(served, "tritonrank_lanes", model="ranker") >= 1
    # Golden requests of the gateway come in between.
    for name in ("lanes_busy", "queued_requests", "queued_seconds"):
        wait_until(lambda name=name: not metric(served, f"tritonrank_{name}", model="ranker"), f"{name} is 0 again")


@pytest.mark.slow
def test_a_slow_bucket_leads_to_a_trace(gateway: RunningGateway) -> None:
    asked = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = httpx.get(f"{gateway.metrics_url}/metrics", headers=asked)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    (seconds,) = [one for one in read_openmetrics(answer.text) if one.name == "tritonrank_gateway_request_seconds"]
    exemplars = [sample.exemplar for sample in seconds.samples if sample.exemplar]
    assert exemplars
    assert {one.labels["trace_id"] for one in exemplars} == {TRACE}
    plain = httpx.get(f"{gateway.metrics_url}/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert TRACE not in plain.text


def test_what_no_test_machine_has_is_in_the_sources() -> None:
    """Triton's own names cannot be looked up without a GPU; ours can."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "model_repository").rglob("*.py"))
    elsewhere = documented(ELSEWHERE)
    assert elsewhere
    assert all(name.startswith("nv_") or f'"{name}"' in sources for name in elsewhere)
    assert not elsewhere.keys() & documented().keys()


def test_alerts_and_dashboards_ask_for_metrics_that_there_are() -> None:
    elsewhere = (ELSEWHERE, RECOMMEND, ROLLOUTS, LEARNING)
    known = {*documented(), *(name for section in elsewhere for name in documented(section))}
    paths = [path for place in PLACES for path in sorted((ROOT / place).rglob("*")) if path.suffix in ENDINGS]
    assert paths
    for path in paths:
        asked = {*ASKED.findall(path.read_text(encoding="utf-8"))}
        unknown = {name for name in asked if {name, re.sub(SUFFIXES, "", name)}.isdisjoint(known)}
        assert not unknown, path.relative_to(ROOT)


def test_the_figures_of_builds_are_told(workspace: Workspace) -> None:
    _, _, section = PAGE.partition(f"## {BUILDS}")
    rows = dict(re.findall(r"^\| (\w+) \| (`[^|]+) \|", section, re.MULTILINE))
    stages = [read_manifest(path.parent) for path in sorted(workspace.root.glob("*/manifest.json"))]
    assert len(stages) > 3
    for one in stages:
        named = {name for name in json.loads(json.dumps(one.metrics)) if not name.startswith("gate against")}
        if named:
            assert named <= {*re.findall(r"`([^`]+)`", rows[one.stage])}, one.stage
