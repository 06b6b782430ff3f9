"""The benchmark of a decoder on this GPU: a request's prefix shared against once more for every candidate.

    PYTHONPATH=build python3 -m tritonrank.gpu_check.decoder

Random weights in the sizes of a published model (default: Qwen3-0.6B) are made on the card, so nothing is downloaded,
and PyTorch alone is enough for most of the table. Each way is held against the others of the same weights, then timed
on requests of a prefix of 500 tokens and 10 and 100 candidates of 30, and of 2,000 tokens and 100 candidates of 50;
``decoder_ways.py`` says what the ways are. On a machine without a GPU ``--cpu --shape tiny`` rehearses it.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from tritonrank_runtime.engine import Tensors

from tritonrank.artifacts import write_whole
from tritonrank.errors import ArtifactError, GateError, TritonRankError
from tritonrank.gpu_check.check import take_turns
from tritonrank.gpu_check.decoder_shapes import LOADS, SHAPES, DecoderShape, Load
from tritonrank.gpu_check.executors import EXACT_TOLERANCE, HALF_TOLERANCE, attempt
from tritonrank.gpu_check.machine import describe_machine
from tritonrank.gpu_check.report import MEASUREMENT, REHEARSAL, Latency, Missing
from tritonrank.gpu_check.saturation import product_tflops
from tritonrank.gpu_check.time_budget import SECONDS, TimeBudget
from tritonrank.rankers.agreement import relative_difference

REQUESTS = 8
"""Of each size, all with prefixes of their own."""
REHEARSED = (Load(50, 4, 6), Load(50, 20, 6))
PAIRS, SHARED, REUSE = "pair by pair", "shared", "prefix reuse"
TIMED_SHARE = 0.9
console = Console(stderr=True, emoji=False)


@dataclass(frozen=True)
class Timed:
    """One way on requests of one size."""

    way: str
    load: Load
    p50_ms: float
    p99_ms: float
    requests: int
    tokens: int
    """that it computes, by the geometry of its way"""


@dataclass(frozen=True)
class Gain:
    """What sharing the prefix gives at one size."""

    load: Load
    times_fewer_tokens: float
    """K (P + C) / (P + K C)"""
    times_as_fast: float
    """the fastest way pair by pair against the fastest that shares"""
    rival: str
    shared: str


def requests_of(load: Load, shape: DecoderShape, count: int = REQUESTS, seed: int = 7) -> list[Tensors]:
    """Random token ids, every request with a prefix of its own."""
    random = np.random.default_rng(seed)
    size = shape.vocabulary
    return [
        {
            "prefix_ids": random.integers(0, size, load.prefix, dtype=np.int32),
            "branch_ids": random.integers(0, size, (load.candidates, load.candidate_tokens), dtype=np.int32),
        }
        for _ in range(count)
    ]


def ways_of(shape: DecoderShape, device: str, scratch: Path) -> "Iterator[tuple[str, Any, bool] | Missing]":
    """Name, what runs a request, and whether its scores are those of the same weights; or what is missing."""
    from tritonrank.gpu_check.decoder_ways import (
        Pairs,
        Shared,
        SharedGraph,
        TransformersPairs,
        TransformersPrefixReuse,
        VllmPrefixReuse,
        random_network,
    )

    network = random_network(shape, device)
    yield f"{SHARED}, eager", Shared(network, device), True
    yield f"{SHARED}, eager, prefix kept", Shared(network, device, is_kept=True), True
    if device == "cpu":
        yield Missing(f"{SHARED}, CUDA graph", "left out of a rehearsal")
    else:
        yield f"{SHARED}, CUDA graph", SharedGraph(network, device), True
    yield f"{PAIRS}, eager", Pairs(network, device), True
    for name, package, make in (
        (f"{PAIRS}, transformers", "transformers", partial(TransformersPairs, shape, device)),
        (f"{REUSE}, transformers", "transformers", partial(TransformersPrefixReuse, shape, device)),
        (f"{REUSE}, vLLM", "vllm", partial(VllmPrefixReuse, shape, scratch)),
    ):
        if find_spec(package) is None:
            yield Missing(name, f"{package} is not installed: pip install {package}")
            continue
        found = attempt(name, make)
        yield found if isinstance(found, Missing) else (name, found, False)


def benchmark(
    shape: DecoderShape, loads: Sequence[Load], device: str, seconds: float = SECONDS
) -> tuple[dict[str, float], list[Timed], list[Missing]]:
    """Hold the ways against each other, and time them in turns.

    Returns:
        the largest relative difference of each way's scores to those of the first; times; what is missing.
    """
    budget = TimeBudget(seconds)
    missing: list[Missing] = []
    calls: dict[str, Any] = {}
    differences: dict[str, float] = {}
    probes = [request for load in loads for request in requests_of(load, shape, 1)]
    with TemporaryDirectory(prefix="tritonrank-decoder-") as scratch:
        expected: list[Any] = []
        for way in ways_of(shape, device, Path(scratch)):
            if isinstance(way, Missing):
                missing.append(way)
                continue
            name, runner, is_comparable = way
            scores = attempt(name, partial(_scores, runner, probes))
            if isinstance(scores, Missing):
                missing.append(scores)
                continue
            expected = expected or scores
            if is_comparable:
                pairs = zip(scores, expected, strict=True)
                differences[name] = max(relative_difference(one, known) for one, known in pairs)
            calls[name] = runner.run
            console.print(f"  {name}", highlight=False)
        timed: list[Timed] = []
        for load in loads:
            requests = {load.candidates: requests_of(load, shape)}
            latencies, failed = take_turns(calls, requests, None, budget.left(TIMED_SHARE))
            missing += failed
            timed += [_timed(name, load, one) for name, of_size in latencies.items() for one in of_size]
    return differences, timed, missing


def _scores(runner: Any, requests: Sequence[Tensors]) -> list[Any]:
    return [runner.run(request) for request in requests]


def _timed(name: str, load: Load, latency: Latency) -> Timed:
    tokens = load.pairs if PAIRS in name else load.branches if "kept" in name else load.shared
    return Timed(name, load, latency.p50_ms, latency.p99_ms, latency.requests, tokens)


def gains(timed: Sequence[Timed]) -> list[Gain]:
    """By size: the fastest way that shares (none whose prefix was kept) against the fastest pair by pair."""
    found = []
    for load in dict.fromkeys(one.load for one in timed):
        of_size = [one for one in timed if one.load == load]
        pairs = [one for one in of_size if PAIRS in one.way]
        shared = [one for one in of_size if one.way.startswith(SHARED) and "kept" not in one.way]
        if pairs and shared:
            rival, best = (min(ways, key=lambda one: one.p50_ms) for ways in (pairs, shared))
            fewer = load.pairs / load.shared
            found.append(Gain(load, round(fewer, 2), round(rival.p50_ms / best.p50_ms, 2), rival.way, best.way))
    return found


def markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    machine = record["machine"]
    lines = [
        f"# Decoder benchmark: {machine['gpu'] or record['kind']}",
        "",
        f"{record['shape']['name']}, random weights, {record['precision']}; {record['kind']}; {record['created']}.",
        "",
        "| way | P, K, C | p50 ms | p99 ms | tokens computed |",
        "|---|---|---|---|---|",
    ]
    for one in record["timed"]:
        load = one["load"]
        sizes = f"{load['prefix']:,}, {load['candidates']}, {load['candidate_tokens']}"
        lines.append(f"| {one['way']} | {sizes} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} | {one['tokens']:,} |")
    lines.append("")
    for gain in record["gains"]:
        load = Load(**gain["load"])
        lines.append(
            f"- {load}: {gain['times_as_fast']:.2f} times as fast ({gain['shared']} against {gain['rival']}), with "
            f"{gain['times_fewer_tokens']:.1f} times fewer tokens"
        )
    lines += [f"- missing: {one['what']}: {one['why']}" for one in record["missing"]]
    return "\n".join(lines) + "\n"


def check_decoder(shape_name: str, out: Path, *, cpu: bool = False, seconds: float = SECONDS) -> dict[str, Any]:
    """Run the benchmark, show it and write its record, with its tables beside it.

    Args:
        shape_name: of ``SHAPES``.
        out: the record, .json.
        cpu: rehearse.
        seconds: that the whole may take; what does not fit is left out, and said to be.

    Raises:
        ArtifactError: there is no such shape, or no GPU.
        GateError: two ways give different scores with the same weights; the record is written all the same.
    """
    if shape_name not in SHAPES:
        raise ArtifactError(f"--shape {shape_name}: expected one of {', '.join(SHAPES)}")
    machine = describe_machine(cpu=cpu)
    if not cpu and not machine.gpu:
        raise ArtifactError(
            "no GPU is here: neither nvidia-smi nor PyTorch finds one. Rehearse without: "
            "python3 -m tritonrank.gpu_check.decoder --cpu --shape tiny --out rehearsal.json"
        )
    device, shape = "cpu" if cpu else "cuda", SHAPES[shape_name]
    console.print(f"[bold]{machine.gpu or REHEARSAL}[/]: {shape.name}", highlight=False)
    differences, timed, missing = benchmark(shape, REHEARSED if cpu else LOADS, device, seconds)
    product = attempt("a large product", lambda: product_tflops(device))
    record = {
        "kind": REHEARSAL if cpu else MEASUREMENT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": asdict(machine),
        "precision": "FP32" if cpu else "FP16",
        "shape": asdict(shape) | {"weights": shape.weights},
        "differences": differences,
        "timed": [asdict(one) for one in timed],
        "gains": [asdict(one) for one in gains(timed)],
        "product_tflops": None if isinstance(product, Missing) else round(product, 4),
        "missing": [asdict(one) for one in missing],
    }
    write_whole(out, json.dumps(record, indent=1) + "\n")
    write_whole(out.with_suffix(".md"), markdown(record))
    print(markdown(record))
    console.print(f"-> {out} and {out.with_suffix('.md')}", highlight=False)
    tolerance = EXACT_TOLERANCE if cpu else HALF_TOLERANCE
    if wrong := [name for name, difference in differences.items() if not difference <= tolerance]:
        raise GateError(f"gate closed: other scores with the same weights: {', '.join(wrong)}; see {out}")
    return record


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="tritonrank.gpu_check.decoder", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen3-0.6b", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--out", type=Path, help="the record; default: docs/measurements/decoder-<shape>-<gpu>.json")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that the whole may take")
    arguments = parser.parse_args()
    gpu = describe_machine(cpu=arguments.cpu).gpu.split() or ["cpu"]
    slug = "-".join(gpu).lower().replace("nvidia-", "")
    out = arguments.out or Path(f"docs/measurements/decoder-{arguments.shape}-{slug}.json")
    try:
        check_decoder(arguments.shape, out, cpu=arguments.cpu, seconds=arguments.seconds)
    except TritonRankError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
