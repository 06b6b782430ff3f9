"""``python -m loadtests hops``: what the way through Triton costs beside computing, step by step.

The same model is served in both shapes, all steps in one process (``ranker``) and each step a model of its own
(``tokenize``, ``score``, ``select``), side by side in one run and in turns, so that their ratio holds on a machine with
other work, too. One client asks again and again for one user, whose context is kept, with a new list each time.
"""

import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tritonclient.http
import typer
from rich.console import Console
from rich.table import Table
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import TritonRankError
from tritonrank.rankers.scorers import Request
from tritonrank.rankers.serving import Serving
from tritonrank.serve.models import write_golden_cases, write_models
from tritonrank.serve.server import LocalTriton
from tritonrank_client import RankClient
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engine import Tensors
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.text import RequestTokenizer, TextRules

from loadtests.console import fail
from loadtests.results import step_counter
from loadtests.server_metrics import read_counters

PARTS = ("tokenize", "queue", "score", "select")
SHAPES = {"one process": True, "three steps": False}
SETTINGS = Serving(
    max_candidates=1_000,
    deadline_ms=60_000,
    queue_share=0.0,
    queue_requests=64,
    rows_per_batch=16,
    context_cache_mb=256,
    instances="auto",
    threads="auto",
    executor="onnxruntime",
    device="cpu",
)
"""Nothing is refused here; the rest is as a recipe has it."""
WARM_UP = 3

console = Console()


@dataclass(frozen=True)
class Timing:
    """Of some requests: the client's milliseconds, one by one, and the server's steps as means."""

    client: list[float]
    steps: dict[str, float]

    @property
    def p50(self) -> float:
        return statistics.median(self.client)


def hops(
    artifacts: Annotated[Path, typer.Argument(help="artifacts/<recipe>, with the stage int8")],
    rounds: Annotated[int, typer.Option(help="turns of each shape at each size")] = 5,
    requests: Annotated[int, typer.Option(help="of one turn, at one candidate; fewer at more")] = 40,
    sizes: Annotated[str, typer.Option(help="candidates, with commas between")] = "1,10,100,1000",
) -> None:
    """Measure what each hop costs, in both shapes of the repository, over gRPC and HTTP."""
    try:
        workspace = Workspace(artifacts)
        lists = _lists(workspace)
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="tritonrank-hops-")))
            servers = {name: stack.enter_context(_serve(workspace, scratch / name, SHAPES[name])) for name in SHAPES}
            _measure(workspace, servers, lists, rounds, requests, [int(size) for size in sizes.split(",")])
    except TritonRankError as error:
        fail(str(error))


def _lists(workspace: Workspace) -> tuple[Request, list[str]]:
    """A user's request, and texts of items to take lists from."""
    dataset = Dataset.read(workspace.dataset)
    found = requests_of(dataset, dataset.test, TextRules.load(workspace.int8))
    return max(found, key=lambda one: len(one.history)), [*dict.fromkeys(text for one in found for text in one.items)]


def _serve(workspace: Workspace, repository: Path, in_one: bool) -> LocalTriton:
    write_models(SETTINGS, workspace.int8, repository, available_cores(), in_one=in_one)
    identity = {"artifact": read_manifest(workspace.int8).artifact[:16], "recipe": "hops", "stage": "int8"}
    write_golden_cases(identity, [], repository)
    return LocalTriton(repository)


def _measure(
    workspace: Workspace,
    servers: dict[str, LocalTriton],
    lists: tuple[Request, list[str]],
    rounds: int,
    requests: int,
    sizes: Sequence[int],
) -> None:
    user, texts = lists
    compute = _in_process(workspace, user)
    table = Table("candidates", "shape", "protocol", "client p50", *PARTS, "rest", "computing alone", "hops")
    with ExitStack() as stack:
        callers = {
            (shape, protocol): stack.enter_context(RankClient(url, timeout=60))
            for shape, server in servers.items()
            for protocol, url in (("gRPC", server.grpc_url), ("HTTP", server.http_url))
        }
        for size in sizes:
            count = max(WARM_UP + 2, requests // (1 + size // 25))
            found: dict[tuple[str, str], list[Timing]] = {key: [] for key in callers}
            alone: list[float] = []
            for turn in range(rounds):
                drawn = [_items(texts, size, turn * count + number) for number in range(count)]
                alone += _times(compute, drawn)
                for (shape, protocol), client in callers.items():
                    before = _steps(servers[shape])
                    taken = _times(partial(_rank, client, user), drawn)
                    time.sleep(0.05)  # the metrics come a moment later
                    after = _steps(servers[shape])
                    steps = {name: 1e3 * (after[name] - before[name]) / count for name in PARTS}
                    found[shape, protocol].append(Timing(taken[WARM_UP:], steps))
            computing = statistics.median(alone)
            for (shape, protocol), timings in found.items():
                best = min(timings, key=lambda one: one.p50)
                rest = best.p50 - sum(best.steps.values())
                numbers = [best.p50, *(best.steps[name] for name in PARTS), rest, computing, best.p50 - computing]
                table.add_row(str(size), shape, protocol, *(f"{number:.2f}" for number in numbers))
    console.print("milliseconds: the best of the turns; the user's context is kept, lists change")
    console.print(table)


def _in_process(workspace: Workspace, user: Request) -> Callable[[Sequence[str]], object]:
    """Token ids to logits in this process, which is what no hop can save."""
    tokenizer = RequestTokenizer.from_folder(workspace.int8, 100_000)
    engine = open_engine(workspace.int8, available_cores(), context_cache_bytes=256_000_000)
    context = tokenizer.context(user.query, user.history)
    made: dict[tuple[str, ...], Tensors] = {}

    def compute(items: Sequence[str]) -> object:
        return engine.run([made[tuple(items)]])

    def prepared(items: Sequence[str]) -> object:
        made.setdefault(tuple(items), tokenizer.tensors(context, tokenizer.items(items)))
        return lambda: compute(items)

    return prepared


def _rank(client: RankClient, user: Request, items: list[str]) -> None:
    client.rank(query=user.query, history=user.history, items=items)


def _items(texts: Sequence[str], size: int, number: int) -> list[str]:
    """Different lists of known items."""
    places = range(37 * number, 37 * number + size)
    return [f"{texts[place % len(texts)]} {place // len(texts) or ''}".rstrip() for place in places]


def _times(call: Callable[[list[str]], object], drawn: Sequence[list[str]]) -> list[float]:
    taken = []
    for items in drawn:
        began = time.perf_counter()
        made = call(items)
        if callable(made):  # what had to be prepared first is not counted
            began = time.perf_counter()
            made()
        taken.append(1e3 * (time.perf_counter() - began))
    return taken


def _steps(server: LocalTriton) -> dict[str, float]:
    """Seconds that requests have spent in each step so far."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        counters = read_counters(page.read().decode())
    if step_counter(PARTS[0]) in counters:
        return {part: counters[step_counter(part)] for part in PARTS}
    with tritonclient.http.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
        models = {one["name"]: one["inference_stats"] for one in client.get_inference_statistics()["model_stats"]}
    steps = {name: models[name] for name in PARTS if name in models}
    spent = {
        name: sum(one[part]["ns"] for part in ("compute_input", "compute_infer", "compute_output")) / 1e9
        for name, one in steps.items()
    }
    return spent | {"queue": sum(one["queue"]["ns"] for one in steps.values()) / 1e9}
