"""The verb ``gateway``: what the gateway costs over the gRPC client, measured in one run.

Both ways are asked the same requests in turns, so that whatever else the machine does meets both. First one request at
a time, for the time that the gateway adds; then as many clients as keep the server busy, for the throughput that it
takes away. And, without any server, how long the bodies of 1,000 long documents take to read.
"""

import itertools
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Column, Table
from tritonrank_client import DeadlineExceeded, Overloaded, RankClient, RankError, Retry

from loadtests.console import fail
from loadtests.dialects import Dialect, Ranker, open_dialect, open_gateway
from loadtests.machine import describe_machine
from loadtests.peers.load import percentile
from loadtests.processes import SystemFaultError
from loadtests.session import TargetArgument
from loadtests.target import TargetError, open_target

MOST_OVERHEAD_MS = 3.0
MOST_LOSS = 0.10
MOST_PARSE_MS = 10.0
CANDIDATES, WORDS = 100, 20
PARSED_DOCUMENTS, PARSED_BYTES, PARSE_TURNS = 1_000, 2_000, 30
LONGEST_ANSWER_SECONDS = 60.0
WARM_UP_REQUESTS = 10
NOT_NOW = (Overloaded, DeadlineExceeded)
"""What a busy machine answers: one figure less, and the other way meets the same."""
REFUSED_SECONDS = 0.05
"""A client of the saturated server waits so long after a refusal."""
VOCABULARY = re.findall(
    r"\w+",
    "lamp desk chair oak brass garden window light wood shelf table red blue green small large round soft warm cold "
    "paper stone glass steel linen cotton silver copper kitchen office travel music river winter summer night morning",
)


def gateway(
    target: TargetArgument,
    dialect: Annotated[Dialect, typer.Option(help="That the gateway is spoken to in")] = "own",
    requests: Annotated[int, typer.Option(min=5, help="One at a time, by each way")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="At saturation, by each way")] = 30.0,
    turn_seconds: Annotated[float, typer.Option(min=0.5, help="Before the other way is loaded")] = 5.0,
    clients: Annotated[int, typer.Option(min=1, help="Waiting for their answers, at saturation")] = 8,
) -> None:
    """Compare the gateway with the gRPC client. Exits with 1 when it costs more than its goals."""
    try:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loadtest-")))
            server = stack.enter_context(open_target(target, log=scratch / "serve.log"))
            url = stack.enter_context(
                open_gateway(server, scratch / "gateway.log", "--deadline-s", f"{LONGEST_ANSWER_SECONDS:g}")
            )
            direct = RankClient(server.grpc_url, timeout=LONGEST_ANSWER_SECONDS, retry=Retry(attempts=1))
            ways: dict[str, Ranker] = {"grpc": stack.enter_context(direct), "gateway": open_dialect(url, dialect)}
            alone = one_at_a_time(ways, requests)
            busy = at_saturation(ways, seconds, turn_seconds, clients)
    except (RankError, SystemFaultError, TargetError) as error:
        fail(str(error))
    found = {
        "dialect": dialect,
        "machine": describe_machine().model_dump(),
        "other_load": [round(value, 2) for value in psutil.getloadavg()],
        "alone": alone,
        "saturation": busy,
        "parse_ms": parse_ms(),
    }
    found |= verdict(found)
    show(found)
    print(json.dumps(found))
    sys.exit(0 if found["passed"] else 1)


def one_at_a_time(ways: dict[str, Ranker], count: int) -> dict[str, float]:
    """Milliseconds of single requests by each way, in turns, and what the gateway adds."""
    texts = _requests()
    for way in ways.values():
        for _ in range(WARM_UP_REQUESTS):
            with suppress(*NOT_NOW):  # a server that was just started does not know yet how fast it is
                _rank(way, next(texts))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(count):
        # Each with texts of its own: the second would find tokens that the first left in the server's cache.
        for name in list(ways) if number % 2 else reversed(list(ways)):
            items = next(texts)
            began = time.perf_counter()
            try:
                _rank(ways[name], items)
            except NOT_NOW:  # something else takes the machine; one figure less
                continue
            taken[name].append(1_000 * (time.perf_counter() - began))
    shares = {"p50_ms": 0.5, "p99_ms": 0.99}
    found = {
        f"{name}_{kind}": percentile(values, share) for name, values in taken.items() for kind, share in shares.items()
    }
    return found | {"added_p50_ms": found["gateway_p50_ms"] - found["grpc_p50_ms"]}


def at_saturation(ways: dict[str, Ranker], seconds: float, turn_seconds: float, clients: int) -> dict[str, float]:
    """Requests per second by each way, in turns of some seconds, and the share that the gateway takes away."""
    turns = max(1, round(seconds / turn_seconds))
    answered, spent = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for number in range(turns):
        for name in list(ways) if number % 2 else reversed(list(ways)):
            count, took = _keep_busy(ways[name], turn_seconds, clients)
            answered[name] += count
            spent[name] += took
    found = {f"{name}_per_second": answered[name] / spent[name] for name in ways}
    if not all(answered.values()):
        raise Overloaded("the server answered none of the requests at saturation", retryable=True)
    ratio = found["gateway_per_second"] / found["grpc_per_second"]
    return found | {"ratio": ratio, "clients": float(clients)}


def _keep_busy(way: Ranker, seconds: float, clients: int) -> tuple[int, float]:
    ends = time.perf_counter() + seconds
    lock, requests, counts = threading.Lock(), _requests(), []

    def ask() -> None:
        count = 0
        while time.perf_counter() < ends:
            with lock:
                items = next(requests)
            try:
                _rank(way, items)
                count += 1
            except NOT_NOW:  # no answer, and no reason to stop: the other way meets the same
                time.sleep(REFUSED_SECONDS)
        counts.append(count)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(ask) for _ in range(clients)]:
            future.result()
    return sum(counts), time.perf_counter() - began


def parse_ms() -> float:
    """Milliseconds to read a body of 1,000 documents of 2 kB, as the gateway reads it; the median of some turns."""
    from tritonrank_gateway.dialects.jina import DECODER

    text = "x" * PARSED_BYTES
    body = json.dumps({"query": "q", "documents": [f"{place} {text}" for place in range(PARSED_DOCUMENTS)]}).encode()
    taken = []
    for _ in range(PARSE_TURNS):
        began = time.perf_counter()
        DECODER.decode(body)
        taken.append(1_000 * (time.perf_counter() - began))
    return median(taken)


def verdict(found: dict[str, Any]) -> dict[str, Any]:
    """Whether the goals are met, and which are not."""
    added, ratio, parse = found["alone"]["added_p50_ms"], found["saturation"]["ratio"], found["parse_ms"]
    missed = [
        said
        for is_met, said in (
            (added <= MOST_OVERHEAD_MS, f"adds {added:.2f} ms to a request; at most {MOST_OVERHEAD_MS:g}"),
            (ratio >= 1 - MOST_LOSS, f"has {ratio:.3f} of the throughput; at least {1 - MOST_LOSS:g}"),
            (
                parse <= MOST_PARSE_MS,
                f"reads a long body in {parse:.1f} ms; at most {MOST_PARSE_MS:g}",
            ),
        )
        if not is_met
    ]
    return {"passed": not missed, "missed": missed}


def show(found: dict[str, Any]) -> None:
    """The figures for people."""
    alone, busy = found["alone"], found["saturation"]
    table = Table("by way of", *(Column(name, justify="right") for name in ("p50 ms", "p99 ms", "requests/s")))
    for name in ("grpc", "gateway"):
        figures = (alone[f"{name}_p50_ms"], alone[f"{name}_p99_ms"], busy[f"{name}_per_second"])
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    out = Console()
    out.print(table)
    size = f"{CANDIDATES} candidates of {WORDS} words"
    out.print(
        f"The gateway adds {alone['added_p50_ms']:.2f} ms to a request of {size}, has {busy['ratio']:.3f} of the "
        f"throughput, and reads {PARSED_DOCUMENTS} documents of 2 kB in {found['parse_ms']:.2f} ms."
    )
    for said in found["missed"]:
        out.print(f"Missed: the gateway {said}", style="bold red")


def _requests() -> itertools.chain[Sequence[str]]:
    """Requests without end, each of texts that were never sent before."""
    drawn = random.Random(time.monotonic_ns())
    return itertools.chain.from_iterable(
        [[" ".join(drawn.choices(VOCABULARY, k=WORDS)) for _ in range(CANDIDATES)]] for _ in itertools.count()
    )


def _rank(way: Ranker, items: Sequence[str]) -> None:
    result = way.rank(query="a lamp for my desk", items=items, timeout=LONGEST_ANSWER_SECONDS)
    assert len(result.ranking) == CANDIDATES, "every candidate comes back"
