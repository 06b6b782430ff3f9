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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from tritonrank_runtime.engine import Tensors

from tritonrank.artifacts import write_whole
from tritonrank.errors import ArtifactError, GateError, TritonRankError
from tritonrank.gpu_check.check import ROUNDS, SECONDS_PER_ROUND, take_turns
from tritonrank.gpu_check.decoder_parts import parts_of_a_layer, parts_record, parts_table
from tritonrank.gpu_check.decoder_shapes import LOADS, SHAPES, DecoderShape, Load
from tritonrank.gpu_check.executors import EXACT_TOLERANCE, HALF_TOLERANCE, OPENING_SECONDS, attempt, opened_within
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
LEFT_OUT = "left out by --ways"
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
    tflops: float = 0.0
    """TFLOP/s of what the way has to compute, at p50"""


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


def ways_of(
    shape: DecoderShape, device: str, scratch: Path, loads: Sequence[Load], wanted: Sequence[str] = ()
) -> "Iterator[tuple[str, Any, bool] | Missing]":
    """Name, what runs a request, and whether its scores are those of the same weights; or what is missing.

    Args:
        shape: of the decoder.
        device: where.
        scratch: an empty folder.
        loads: what they will be asked.
        wanted: beginnings of their names; none: all of them. The first is always made: others are held against it.
    """
    from tritonrank.gpu_check.decoder_ways import (
        Packed,
        Pairs,
        Shared,
        SharedGraph,
        TransformersPairs,
        TransformersPrefixReuse,
        VllmPrefixReuse,
        random_network,
    )

    network = random_network(shape, device)
    own: tuple[tuple[str, Callable[[], Any]], ...] = (
        (f"{SHARED}, eager", partial(Shared, network, device)),
        (f"{SHARED}, packed", partial(Packed, network, device, loads)),
        (f"{SHARED}, packed, prefix kept", partial(Packed, network, device, loads, REQUESTS + 1)),
        (f"{SHARED}, eager, prefix kept", partial(Shared, network, device, is_kept=True)),
        (f"{SHARED}, CUDA graph", partial(SharedGraph, network, device)),
        (f"{PAIRS}, eager", partial(Pairs, network, device)),
    )
    others: tuple[tuple[str, str, Callable[[], Any]], ...] = (
        (f"{PAIRS}, transformers", "transformers", partial(TransformersPairs, shape, device)),
        (f"{REUSE}, transformers", "transformers", partial(TransformersPrefixReuse, shape, device)),
        (f"{REUSE}, vLLM", "vllm", partial(VllmPrefixReuse, shape, scratch)),
    )
    for number, (name, make) in enumerate(own):
        if number and not _is_wanted(name, wanted):
            yield Missing(name, LEFT_OUT)
        elif device == "cpu" and "CUDA" in name:
            yield Missing(name, "left out of a rehearsal")
        else:
            found = attempt(name, make)
            yield found if isinstance(found, Missing) else (name, found, True)
    for name, package, make in others:
        if not _is_wanted(name, wanted):
            yield Missing(name, LEFT_OUT)
        elif find_spec(package) is None:
            yield Missing(name, f"{package} is not installed: pip install {package}")
        else:
            found = attempt(name, make)
            yield found if isinstance(found, Missing) else (name, found, False)


def _is_wanted(name: str, wanted: Sequence[str]) -> bool:
    return not wanted or any(name.startswith(one) for one in wanted)


def benchmark(
    shape: DecoderShape, loads: Sequence[Load], device: str, seconds: float = SECONDS, wanted: Sequence[str] = ()
) -> tuple[dict[str, float], list[Timed], list[Missing]]:
    """Hold the ways against each other, and time them in turns.

    Args:
        shape: of the decoder.
        loads: requests.
        device: where.
        seconds: for all of it: what does not fit is left out, and rounds are the shorter the more ways there are.
        wanted: as ``ways_of`` has it.

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
        for way in opened_within(ways_of(shape, device, Path(scratch), loads, wanted), budget):
            if isinstance(way, Missing):
                missing.append(way)
                continue
            name, runner, is_comparable = way
            scores = attempt(name, partial(_scores, runner, probes, budget))
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
        for number, load in enumerate(loads):
            left = budget.left(TIMED_SHARE)
            per_round = left / ((len(loads) - number) * (ROUNDS + 1) * max(1, len(calls)))
            requests = {load.candidates: requests_of(load, shape)}
            latencies, failed = take_turns(calls, requests, None, left, min(SECONDS_PER_ROUND, per_round))
            missing += failed
            timed += [_timed(name, load, one, shape) for name, of_size in latencies.items() for one in of_size]
    return differences, timed, missing


def _scores(runner: Any, requests: Sequence[Tensors], budget: TimeBudget) -> list[Any]:
    with budget.part(OPENING_SECONDS):
        return [runner.run(request) for request in requests]


def _timed(name: str, load: Load, latency: Latency, shape: DecoderShape) -> Timed:
    tokens = load.pairs if PAIRS in name else load.branches if "kept" in name else load.shared
    tflops = flop_of(name, load, shape) / latency.p50_ms / 1e9
    return Timed(name, load, latency.p50_ms, latency.p99_ms, latency.requests, tokens, _four_digits(tflops))


def _four_digits(number: float) -> float:
    """Of a rehearsal there are none before the point."""
    return float(f"{number:.4g}")


def flop_of(name: str, load: Load, shape: DecoderShape) -> float:
    """Operations of a request in one way: padding, and scores that a mask drops, are not counted."""
    from tritonrank.gpu_check.decoder_ways import network_config
    from tritonrank.rankers.architectures import architecture_of

    config = SimpleNamespace(**{"model_type": "decoder", "pruned_heads": None} | network_config(shape))
    flop = partial(architecture_of(config).flop, config)
    request = {**requests_of(load, shape, 1)[0]}
    if PAIRS in name:
        return load.candidates * flop(request | {"branch_ids": request["branch_ids"][:1]})
    kept = flop(request | {"branch_ids": request["branch_ids"][:0]}) if "kept" in name else 0.0
    return flop(request) - kept


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
        "| way | P, K, C | p50 ms | p99 ms | tokens computed | TFLOP/s | of a large product's |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in record["timed"]:
        load = one["load"]
        sizes = f"{load['prefix']:,}, {load['candidates']}, {load['candidate_tokens']}"
        share = f"{one['share_of_product']:.1%}" if one["share_of_product"] else ""
        lines.append(
            f"| {one['way']} | {sizes} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} | {one['tokens']:,} "
            f"| {one['tflops']:.1f} | {share} |"
        )
    if record["product_tflops"]:
        lines += ["", f"A large product reaches {record['product_tflops']:.0f} TFLOP/s on this machine."]
    lines += [*parts_table(record["parts"]), ""]
    for gain in record["gains"]:
        load = Load(**gain["load"])
        lines.append(
            f"- {load}: {gain['times_as_fast']:.2f} times as fast ({gain['shared']} against {gain['rival']}), with "
            f"{gain['times_fewer_tokens']:.1f} times fewer tokens"
        )
    lines += [f"- missing: {one['what']}: {one['why']}" for one in record["missing"]]
    return "\n".join(lines) + "\n"


def check_decoder(
    shape_name: str,
    out: Path,
    *,
    cpu: bool = False,
    seconds: float = SECONDS,
    wanted: Sequence[str] = (),
    with_parts: bool = False,
) -> dict[str, Any]:
    """Run the benchmark, show it and write its record, with its tables beside it.

    Args:
        shape_name: of ``SHAPES``.
        out: the record, .json.
        cpu: rehearse.
        seconds: that the whole may take; what does not fit is left out, and said to be.
        wanted: beginnings of the names of ways that are timed; none: all of them.
        with_parts: time each part of a packed layer, too.

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
    product = attempt("a large product", lambda: product_tflops(device))
    loads = REHEARSED if cpu else LOADS
    differences, timed, missing = benchmark(shape, loads, device, seconds, wanted)
    # Last: a kernel that fails may leave a card on which nothing runs any more.
    parts = attempt("parts", partial(parts_of_a_layer, shape, loads, device)) if with_parts else []
    if isinstance(parts, Missing):
        missing, parts = [*missing, parts], []
    missing += [one for one in parts if isinstance(one, Missing)]
    tflops = 0.0 if isinstance(product, Missing) else product
    record = {
        "kind": REHEARSAL if cpu else MEASUREMENT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": asdict(machine),
        "precision": "FP32" if cpu else "FP16",
        "shape": asdict(shape) | {"weights": shape.weights},
        "differences": differences,
        "timed": [
            asdict(one) | {"share_of_product": _four_digits(one.tflops / tflops) if tflops else None} for one in timed
        ],
        "gains": [asdict(one) for one in gains(timed)],
        "product_tflops": round(tflops, 4) or None,
        "parts": parts_record(parts),
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
    parser.add_argument(
        "--ways", nargs="+", default=(), metavar="NAME", help="those whose names begin so; default: all"
    )
    parser.add_argument("--parts", action="store_true", help="time each part of a packed layer, too")
    arguments = parser.parse_args()
    gpu = describe_machine(cpu=arguments.cpu).gpu.split() or ["cpu"]
    slug = "-".join(gpu).lower().replace("nvidia-", "")
    out = arguments.out or Path(f"docs/measurements/decoder-{arguments.shape}-{slug}.json")
    try:
        check_decoder(
            arguments.shape,
            out,
            cpu=arguments.cpu,
            seconds=arguments.seconds,
            wanted=arguments.ways,
            with_parts=arguments.parts,
        )
    except TritonRankError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
