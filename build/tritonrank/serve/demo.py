"""The demo's last act: rank a few requests through a real server and show what it did and how long each step took.

Where the recipe has a catalogue it recommends through the gateway too, and leaves the storefront open in a terminal.
"""

import json
import shlex
import shutil
import sys
import time
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tritonrank_client import RankClient, RankResult

from tritonrank.rankers.server_scorer import Request
from tritonrank.serve.demo_shop import PORT as GATEWAY_PORT
from tritonrank.serve.demo_shop import free_port, is_watched, show_shop
from tritonrank.serve.gateway_child import missing_packages
from tritonrank.serve.gateway_start import gateway_for
from tritonrank.serve.recommending import NEEDED, Recommending, has_catalogue
from tritonrank.serve.running import RunningServer, run_until_signalled
from tritonrank.serve.serving import example_command, golden_requests, serving
from tritonrank.serve.supervisor import SupervisedTriton

SHOWN_REQUESTS = 3
SHOWN_ITEMS = 5
HTTP_PORT, GRPC_PORT = 8000, 8001
"""Those that ``tritonrank serve`` takes."""
STEPS = ("tokenize", "score", "select")
SETTLED_SECONDS = 0.1
"""The server's counters tell of a request a moment after its answer."""

console = Console()


def run_demo(repository: Path) -> None:
    """Serve the repository on free ports, rank over gRPC and HTTP, recommend, print tables, stop the server.

    In a terminal the storefront stays until Ctrl-C; in a pipe or under CI all ends by itself.
    """
    requests = [request for request, _ in golden_requests(repository)[:SHOWN_REQUESTS]]
    console.print("\nstarting Triton ...")
    with serving(repository) as server:
        console.print(f"ready: {server.http_url} and {server.grpc_url}; golden requests answered as in process")
        for number, request in enumerate(requests, start=1):
            _rank_and_show(server, number, request)
        recommends = has_catalogue(repository) and not missing_packages() + missing_packages(NEEDED)
        if recommends:
            _recommend_and_show(server, repository, next((one.query for one in requests if one.query), ""))
    _say_what_next(repository, requests[0], recommends)


def _recommend_and_show(server: SupervisedTriton, repository: Path, query: str) -> None:
    is_open = is_watched()
    with gateway_for(server, Recommending.of(repository), free_port() if is_open else 0) as gateway:
        show_shop(gateway, query)
        if is_open:
            console.print(f"\nThe shop is open: [bold]{gateway.url}/storefront/[/]  Ctrl-C closes it.", highlight=False)
            run_until_signalled(gateway)


def _say_what_next(repository: Path, request: Request, recommends: bool) -> None:
    """The commands that a newcomer may want now, each complete."""
    artifacts = repository.parent
    texts = {"query": [request.query], "items": request.items[:2]}
    inputs = [{"name": n, "datatype": "BYTES", "shape": [len(data)], "data": data} for n, data in texts.items()]
    body = shlex.quote(json.dumps({"inputs": inputs}, ensure_ascii=False))
    activate = [] if shutil.which("tritonrank") else [f"source {Path(sys.prefix) / 'bin' / 'activate'}"]
    storefront = {
        "Open the storefront (search, click, see the list change), or recommend from your own code": [
            *activate,
            f"tritonrank up {artifacts}",
            f'curl -s http://127.0.0.1:{GATEWAY_PORT}/v1/recommend -d \'{{"user_id": "user-00001", "size": 5}}\'',
        ]
    }
    steps = (storefront if recommends else {}) | {
        "Keep it running (Ctrl-C stops it), and rank from another terminal": [
            *([] if recommends else activate),
            f"tritonrank serve {artifacts}",
            f"curl -s http://127.0.0.1:{HTTP_PORT}/v2/models/rank/infer -d {body}",
            example_command(artifacts, f"grpc://127.0.0.1:{GRPC_PORT}"),
        ],
        "See what each step of the build cost, and who lost": [f"tritonrank report {artifacts}"],
        "Bring your own model, your own data": [
            "README.md says how, in a few lines of YAML each",
            "tritonrank settings",
        ],
        "Read on": ["docs/README.md: the client, load tests, security, the container, GPUs"],
    }
    console.print("\nserver stopped. [bold]What to try next[/]")
    for purpose, commands in steps.items():
        console.print(f"\n{purpose}:", highlight=False)
        for command in commands:
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def _rank_and_show(server: RunningServer, number: int, request: Request) -> None:
    results: dict[str, RankResult] = {}
    steps: dict[str, dict[str, float]] = {}
    for protocol, url in (("gRPC", server.grpc_url), ("HTTP", server.http_url)):
        before = _step_seconds(server)
        with RankClient(url) as client:
            client.health()  # connects, so that the time below is the request's alone
            results[protocol] = client.rank(query=request.query, history=request.history, items=request.items)
        after = _step_seconds(server)
        steps[protocol] = {step: 1e3 * (after[step] - before[step]) for step in STEPS}
    console.print(f"\n[bold]Request {number}[/]  query: {request.query or '(none)'}", highlight=False)
    console.print(f"  liked lately: {'; '.join(request.history[-3:]) or '(nothing)'}", highlight=False, markup=False)
    table = Table("rank", "candidate", "score gRPC", "score HTTP")
    http_scores = {ranked.index: ranked.score for ranked in results["HTTP"].ranking}
    for place, ranked in enumerate(results["gRPC"].ranking[:SHOWN_ITEMS], start=1):
        item = request.items[ranked.index]
        table.add_row(str(place), item, f"{ranked.score:.4f}", f"{http_scores[ranked.index]:.4f}")
    console.print(table)
    for protocol, result in results.items():
        parts = ", ".join(f"{step} {milliseconds:.1f}" for step, milliseconds in steps[protocol].items())
        total = f"{len(request.items)} candidates in {1e3 * result.seconds:.1f} ms"
        console.print(f"  {protocol}: {total} ({parts} ms in the server)", highlight=False)


def _step_seconds(server: RunningServer) -> dict[str, float]:
    """What all requests have spent in each step so far, from the metrics page."""
    time.sleep(SETTLED_SECONDS)
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    counted = {
        line.partition("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("tritonrank_")
    }
    return {step: counted.get(f"tritonrank_{step}_seconds_total", 0.0) for step in STEPS}
