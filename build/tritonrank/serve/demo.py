"""The demo's last act: rank a few requests through a real server and show what it did and how long each step took."""

from pathlib import Path

import tritonclient.http
from rich.console import Console
from rich.table import Table
from tritonrank_client import RankClient, RankResult

from tritonrank.rankers.server_scorer import Request
from tritonrank.serve.running import RunningServer
from tritonrank.serve.serving import golden_requests, serving

SHOWN_REQUESTS = 3
SHOWN_ITEMS = 5
STEPS = ("tokenize", "score", "select")

console = Console()


def run_demo(repository: Path) -> None:
    """Serve the repository on free ports, rank over gRPC and HTTP, print tables, stop the server."""
    requests = [request for request, _ in golden_requests(repository)[:SHOWN_REQUESTS]]
    console.print("\nstarting Triton ...")
    with serving(repository) as server:
        console.print(f"ready: {server.http_url} and {server.grpc_url}; golden requests answered as in process")
        for number, request in enumerate(requests, start=1):
            _rank_and_show(server, number, request)
    console.print("\nserver stopped. Keep one running with: [bold]make serve[/]")


def _rank_and_show(server: RunningServer, number: int, request: Request) -> None:
    results: dict[str, RankResult] = {}
    steps: dict[str, dict[str, float]] = {}
    for protocol, url in (("gRPC", server.grpc_url), ("HTTP", server.http_url)):
        before = _step_nanoseconds(server)
        with RankClient(url) as client:
            client.health()  # connects, so that the time below is the request's alone
            results[protocol] = client.rank(query=request.query, history=request.history, items=request.items)
        after = _step_nanoseconds(server)
        steps[protocol] = {step: (after[step] - before[step]) / 1e6 for step in STEPS}
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


def _step_nanoseconds(server: RunningServer) -> dict[str, int]:
    """Total time of each model so far, queue included, from Triton's own statistics."""
    client = tritonclient.http.InferenceServerClient(server.http_url.removeprefix("http://"))
    try:
        totals = client.get_inference_statistics()["model_stats"]
    finally:
        client.close()
    return {model["name"]: int(model["inference_stats"]["success"]["ns"]) for model in totals}
