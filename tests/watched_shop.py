"""A whole service that is watched: Triton, a shop's gateway before it, users of all kinds, and a Prometheus that looks.

What the users do is meant to move every metric that the dashboards show: rankings of all sizes, the same one twice,
texts too long and texts that are missing, requests that are refused, pages for known and unknown users, pages without
time to rank, events and the same events again, items that are new.
"""

import itertools
import json
import queue
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import yaml
from conftest import TESTS
from gateways import RunningGateway
from programs import require_program
from prometheus_client import CONTENT_TYPE_LATEST
from small_shop import running_shop
from test_learn_judging import learning, windows
from tiny_blend import tiny_blend
from tritonrank.artifacts.workspace import Workspace
from tritonrank.learn.judging import decide
from tritonrank.learn.ledger import Ledger
from tritonrank.learn.metrics import write_metrics
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.versions.admin_client import PrivateApi

from loadtests.dashboards.prometheus import Prometheus
from loadtests.processes import LOOPBACK, Process, free_port

RULES = TESTS.parent / "deploy" / "prometheus" / "rules" / "*.yml"
SCRAPE = "1s"
KEY = "the-admin-key-of-a-shop"
START_SECONDS = 30.0
PATIENCE_SECONDS = 60.0
SAID_LAST = frozenset(
    {
        "ALERTS",
        "tritonrank_gateway_degraded_total",
        "tritonrank_gateway_refused_total",
        "tritonrank_gateway_store_errors_total",
        "tritonrank_exposure_first_impression_seconds_bucket",
        "tritonrank_exposure_gini",
        "tritonrank_quality_drift_psi",
        "tritonrank_quality_ips_ndcg",
        "tritonrank_rollout_reading",
    }
)
"""Metrics that are not told before something went wrong, or before enough was clicked, ranked and shown."""
DEAR = 1e6
"""The price from which only new items are."""
PAUSE_SECONDS = 0.02
"""Of a user between two requests: the machine of tests is busy with others, too."""
WORDS = ("oak", "desk", "lamp", "red", "steel", "kettle", "quiet", "large", "for", "the", "kitchen", "\U00013080")
ROUTES = ("/v1/rank", "/v1/rerank", "/rerank", "/v2/rerank")


@dataclass(frozen=True)
class WatchedShop:
    """A service under load and the Prometheus that scrapes it.

    Attributes:
        prometheus: its URL.
        gateway: the one gateway.
        triton: the one server.
    """

    prometheus: str
    gateway: RunningGateway
    triton: LocalTriton


@contextmanager
def watched_shop(workspace: Workspace, root: Path, seconds: float) -> Iterator[WatchedShop]:
    """Start everything, and let users do what they do for so many seconds at least before the block, and inside it.

    Args:
        workspace: the tiny build.
        root: for everything that is written.
        seconds: that Prometheus has seen when the block begins.
    """
    with LocalTriton(workspace.repository) as triton:
        port = urlsplit(triton.grpc_url).port
        # One server under two addresses is two replicas, as far as the gateway can tell.
        addresses = f"127.0.0.1:{port},localhost:{port}"
        golden = workspace.repository / "golden.json"
        blend = tiny_blend(root / "blend")
        own = ["--cache-mb", "4", "--split-candidates", "0", "--golden", str(golden), "--adapt", "advise"]
        own += ["--blend", str(blend)]
        with (
            admin_key(),
            running_shop(workspace, addresses, root / "shop", *own) as gateway,
            rolling_out(gateway, f"127.0.0.1:{port}", root) as rollout,
            told_nights(root / "nights") as nights,
            running_prometheus(root / "prometheus", scrapes(gateway, triton, rollout, nights)) as prometheus,
            visited(gateway) as faults,
        ):
            enough = time.monotonic() + seconds
            deadline = enough + PATIENCE_SECONDS
            while time.monotonic() < enough or not Prometheus(prometheus).names() >= SAID_LAST:
                assert faults.empty(), faults.get()
                assert time.monotonic() < deadline, SAID_LAST - Prometheus(prometheus).names()
                time.sleep(0.5)
            yield WatchedShop(prometheus, gateway, triton)
            assert faults.empty(), faults.get()


@contextmanager
def admin_key() -> Iterator[None]:
    """Whatever is started meanwhile has an admin key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITONRANK_ADMIN_KEY", KEY)
        yield


@contextmanager
def rolling_out(gateway: RunningGateway, triton: str, root: Path) -> Iterator[str]:
    """The page of metrics of a controller that compares what serves with itself, and stays at that."""
    rules = root / "rules.toml"
    rules.write_text("shadow_share = 0.2\nleast_minutes = 60\n", encoding="utf-8")
    command = [sys.executable, "-m", "tritonrank", "rollout", "run", "--gateway", gateway.metrics_url]
    command += ["--state", str(root / "rollout"), "--port", "0", "--metrics-port", "0", "--rules", str(rules)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as controller:
        try:
            assert controller.stdout is not None
            told = json.loads(controller.stdout.readline())
            PrivateApi(told["url"], KEY).ask("POST", "/rollout", {"name": "next", "triton": [triton], "model": "rank"})
            yield told["metrics_url"]
        finally:
            controller.terminate()


@contextmanager
def told_nights(root: Path) -> Iterator[str]:
    """The file of two nights, as node_exporter would show it; its URL."""
    ledger = Ledger(root)
    for outcome in ("accepted", "refused"):
        night = ledger.begin("", "base")
        finding = {"check": "bot user", "refuses": False}
        inspected = {"days": [{"events": 900, "left_out": 40}], "findings": [finding], "refused": ""}
        night = ledger.finish_step(night, "inspect", 12.0, inspected)
        verdict = decide(windows(np.random.default_rng(1), newest=0.1), learning())
        ledger.end(ledger.finish_step(night, "judge", 30.0, verdict.as_json()), outcome, "so")
    page = write_metrics(ledger, "tiny").read_bytes()

    class Shown(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer((LOOPBACK, 0), Shown) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def scrapes(gateway: RunningGateway, triton: LocalTriton, rollout: str, nights: str) -> list[dict[str, Any]]:
    """What Prometheus looks at, with the jobs' names of deploy/prometheus."""
    jobs = {"gateway": gateway.metrics_url, "triton": triton.metrics_url, "rollout": rollout, "nights": nights}
    return [
        {"job_name": f"tritonrank-{name}", "static_configs": [{"targets": [urlsplit(url).netloc]}]}
        for name, url in jobs.items()
    ]


@contextmanager
def running_prometheus(folder: Path, jobs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A Prometheus with the rules of deploy/prometheus on a free port of loopback, which looks every second; its URL.

    Args:
        folder: for its settings and its data.
        jobs: scrape_configs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
        "scrape_configs": list(jobs),
        "rule_files": [str(RULES)],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    address = f"{LOOPBACK}:{free_port()}"
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", "--enable-feature=exemplar-storage",
    ]  # fmt: skip
    require_program(command[0], "prometheus prometheus-alertmanager")
    process = Process(command, folder / "prometheus.log")
    try:
        process.wait_until(lambda: _is_ready(f"http://{address}/-/ready"), "Prometheus", START_SECONDS)
        yield f"http://{address}"
    finally:
        process.stop()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


@contextmanager
def visited(gateway: RunningGateway) -> Iterator[queue.SimpleQueue[str]]:
    """Users of all kinds until the block ends; what was answered wrongly is told."""
    ended, faults = threading.Event(), queue.SimpleQueue[str]()
    known = [f"u{number}" for number in range(1, 40)]
    visits: tuple[Callable[[httpx.Client, random.Random], None], ...] = (_rank, _refused, _look_and_click(known))
    threads = [
        threading.Thread(target=_keep_on, args=(gateway.url, visit, seed, ended, faults))
        for seed, visit in enumerate(visits)
    ]
    for thread in threads:
        thread.start()
    try:
        yield faults
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _keep_on(
    url: str,
    visit: Callable[[httpx.Client, random.Random], None],
    seed: int,
    ended: threading.Event,
    faults: queue.SimpleQueue[str],
) -> None:
    dice = random.Random(seed)
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            while not ended.is_set():
                visit(client, dice)
                ended.wait(PAUSE_SECONDS)
    except (httpx.HTTPError, AssertionError) as error:
        faults.put(f"{type(error).__name__}: {error}")
        ended.set()


def _rank(client: httpx.Client, dice: random.Random) -> None:
    """Rankings of all sizes; every third for the second time. Callers keep traces of them."""
    candidates = dice.choice((1, 8, 25, 60))
    items = [_text(dice, dice.choice((2, 6, 60))) for _ in range(candidates)] + [""] * dice.randrange(2)
    body: dict[str, Any] = {"query": _text(dice, 3), "history": [_text(dice, 3)], "items": items}
    for _ in range(dice.choice((1, 1, 2))):
        trace = f"00-{dice.getrandbits(128) | 1:032x}-{dice.getrandbits(64) | 1:016x}-01"
        headers = {"X-User-Id": f"u{dice.randrange(50)}", "traceparent": trace}
        check(client.post("/v1/rank", json=body, headers=headers))
    documents = {"query": body["query"], "documents": [text or "lamp" for text in items], "model": "rank"}
    check(client.post("/v1/rerank", json=documents))


def _refused(client: httpx.Client, dice: random.Random) -> None:
    """Requests that get no answer: unreadable, invalid, too large, without time."""
    bodies: tuple[tuple[str, dict[str, str]], ...] = (
        ("{", {}),
        (json.dumps({"items": 3}), {}),
        (json.dumps({"query": "lamp", "items": ["x"] * 1_001}), {}),
        (json.dumps({"query": _text(dice, 5), "items": [_text(dice, 30) for _ in range(150)]}), {"X-Deadline-Ms": "1"}),
    )
    body, headers = dice.choice(bodies)
    answer = client.post("/v1/rank", content=body, headers={"Content-Type": "application/json"} | headers)
    assert answer.status_code >= 400


def _look_and_click(known: Sequence[str]) -> Callable[[httpx.Client, random.Random], None]:
    numbers = itertools.count()

    def visit(client: httpx.Client, dice: random.Random) -> None:
        """A page, what was seen and clicked on it, and sometimes the same events once more."""
        user = dice.choice((*known, f"new-{next(numbers)}"))
        asked: dict[str, Any] = {"user_id": user, "query": dice.choice(("", "lamp", "oak desk")), "size": 20}
        if dice.random() < 0.2:
            asked["deadline_ms"] = dice.choice((1, 2, 4, 8))
        if dice.random() < 0.1:
            _add_item(client, next(numbers))
            asked["filters"] = {"price": {"gte": DEAR}}
        answer = client.post("/v1/recommend", json=asked)
        check(answer)
        page = answer.json()
        items = page.get("items", [])
        events = [
            {
                "event_id": f"{user}-{next(numbers)}", "user_id": user, "item_id": item["item_id"], "type": kind,
                "timestamp": time.time(), "page": page.get("page", ""), "position": item["position"],
            }
            for item in items[:3]
            for kind in ("view", "click")[: dice.choice((1, 1, 2))]
        ]  # fmt: skip
        for _ in range(dice.choice((1, 2)) if events else 0):
            check(client.post("/v1/events", json={"events": events}))

    return visit


def _add_item(client: httpx.Client, number: int) -> None:
    """An item that nobody has seen, and that a filter finds."""
    fields = {"title": f"oak lamp {number}", "attributes": "new", "price": DEAR + number}
    path, key = f"/v1/items/new-{number}", {"Authorization": f"Bearer {KEY}"}
    check(client.put(path, json={"fields": fields}, headers=key))


def check(answer: httpx.Response) -> None:
    """An answer, or a refusal for want of time: the machine of tests is busy."""
    assert answer.status_code in (200, 429, 503, 504), answer.text


def _text(dice: random.Random, words: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(words))
