"""Check and measure a ranker on this GPU machine, with whatever is installed here: one command, one record.

A pack (``tritonrank pack``) goes in; out come the scores held against the CPU's, p50, p99 and candidates per second at
each request size, for every executor that is found, and one sentence for each that is not. ``gpu_executors`` finds
them, ``gpu_triton`` serves through Triton, ``gpu_report`` keeps the record. On a machine without a GPU ``--cpu``
rehearses the whole thing; its record says so.

It runs without installing tritonrank, on a machine that has little more than PyTorch:

    PYTHONPATH=build python3 -m tritonrank.gpu_check.check PACK
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from tritonrank_runtime.text import RULES_FILE, TOKENIZER_FILE, RequestTokenizer

from tritonrank.errors import ArtifactError, GateError, TritonRankError
from tritonrank.gpu_check.executors import OPENING_SECONDS, Executor, attempt, find_executors, opened_within
from tritonrank.gpu_check.goals import goals
from tritonrank.gpu_check.machine import describe_machine
from tritonrank.gpu_check.packed import AGAIN, Pack, PackedRequest, open_pack
from tritonrank.gpu_check.report import (
    MEASUREMENT,
    REHEARSAL,
    REPORT_FORMAT,
    Agreement,
    Latency,
    Missing,
    PackRecord,
    Report,
    Row,
    Saturation,
    UnderLoad,
    default_path,
    show_report,
    write_report,
)
from tritonrank.gpu_check.time_budget import SECONDS, TimeBudget
from tritonrank.rankers.agreement import Scores, mean_overlap, relative_difference
from tritonrank.system.progress import step

if TYPE_CHECKING:
    from tritonrank_runtime.packed.engine import PackedEngine

ROUNDS = 3
"""Executors take turns, so that a GPU that slows down slows all of them."""
SECONDS_PER_ROUND = 1.0
"""A slow executor is timed on fewer requests."""
FEWEST_REQUESTS = 3
NOT_FINITE = 1e9
TIMED_SHARE, SATURATED_SHARE, ALONE_SHARE = 0.6, 0.7, 0.9
"""Of the whole time, after which none is timed; none is saturated; and through Triton no
single client asks any more."""
TRITON_SECONDS = 240.0
console = Console(stderr=True, emoji=False)


def gpu_check(
    pack_path: Path, out: Path | None = None, *, cpu: bool = False, triton: bool = True, seconds: float = SECONDS
) -> Report:
    """Check, measure, show the table and write the record.

    Args:
        pack_path: what ``tritonrank pack`` made.
        out: the record, .json, with its tables beside it, .md; default:
            docs/measurements/<gpu>-<recipe>-<date>.json.
        cpu: rehearse on the CPU; ``out`` has to be named.
        triton: serve through Triton too, where a server is found.
        seconds: that the whole may take; what does not fit is left out, and said to be.

    Returns:
        The record.

    Raises:
        ArtifactError: the pack is damaged, there is no GPU, or nothing here can compute on it.
        GateError: an executor's scores are not the CPU's; the record is written all the same.
    """
    if cpu and out is None:
        raise ArtifactError("a rehearsal on the CPU is no measurement of a GPU: name its file with --out")
    budget = TimeBudget(seconds)
    machine = describe_machine(cpu=cpu)
    if not cpu and not machine.gpu:
        raise ArtifactError(
            "no GPU is here: neither nvidia-smi nor PyTorch finds one. Run this on a GPU machine, or rehearse it here: "
            f"tritonrank gpu-check {pack_path} --cpu --out rehearsal.json"
        )
    device = "cpu" if cpu else "cuda"
    with open_pack(pack_path) as pack, TemporaryDirectory(prefix="tritonrank-gpu-check-") as scratch:
        console.print(f"[bold]{machine.gpu or REHEARSAL}[/]: {pack.name}", highlight=False)
        found = _measure_in_process(pack, device, Path(scratch), budget)
        if triton:
            measure_through_triton(pack, device, found, budget)
        record = pack.manifest
    if not found.rows:
        reasons = "\n".join(f"  {one.what}: {one.why}" for one in found.missing)
        raise ArtifactError(f"nothing here can compute on {machine.gpu}:\n{reasons}")
    report = Report(
        format=REPORT_FORMAT,
        kind=REHEARSAL if cpu else MEASUREMENT,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        pack=PackRecord(record["recipe"], record["artifact"], record["architecture"], record["parameters"]),
        machine=machine,
        rows=found.rows,
        missing=found.missing,
        product_tflops=found.product_tflops,
        saturation=found.saturation,
        under_load=found.under_load,
        goals=goals(
            found.packed, found.rows, found.product_tflops, found.saturation, found.under_load, is_measured=not cpu
        ),
    )
    show_report(report, console)
    path = out or default_path(report)
    write_report(report, path)
    console.print(f"-> {path} and {path.with_suffix('.md')}", highlight=False)
    if failed := [row.name for row in found.rows if not row.agreement.passed]:
        raise GateError(f"gate closed: not the CPU's scores: {', '.join(failed)}; see {path}")
    return report


@dataclass
class Found:
    """What the parts have measured so far."""

    rows: list[Row] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    """names of the rows that are packed engines"""
    product_tflops: float | None = None
    saturation: list[Saturation] = field(default_factory=list)
    under_load: list[UnderLoad] = field(default_factory=list)


def _measure_in_process(pack: Pack, device: str, scratch: Path, budget: TimeBudget) -> Found:
    tokenizer = _tokenizer(pack)

    def tensors(request: PackedRequest) -> Any:
        return tokenizer.tensors(tokenizer.context(request.query, request.history), tokenizer.items(request.items))

    scored = [(tensors(request), np.array(request.scores, dtype=np.float32)) for request in pack.scored]
    timed = {size: [tensors(request) for request in pack.timed(size)] for size in pack.sizes}
    executors: list[tuple[Executor, Agreement]] = []
    result = Found()
    for found in opened_within(find_executors(pack, device, scratch), budget):
        if isinstance(found, Missing):
            result.missing.append(found)
            console.print(f"  [yellow]missing[/] {found.what}", highlight=False)
            continue
        scores = attempt(found.name, partial(_scores, found, [one for one, _ in scored], budget))
        if isinstance(scores, Missing):
            result.missing.append(scores)
            continue
        agreement = agreement_with(scores, [known for _, known in scored], found.tolerance)
        console.print(f"  {found.name}: difference {agreement.largest_difference:.1e}", highlight=False)
        executors.append((found, agreement))
    calls = {executor.name: executor.run for executor, _ in executors}
    baseline = next((executor.name for executor, _ in executors if executor.is_baseline), None)
    latencies, failed = take_turns(calls, timed, baseline, budget.left(TIMED_SHARE))
    result.missing += failed
    from tritonrank.gpu_check.saturation import mean_flop

    flop = attempt("useful TFLOP/s", partial(mean_flop, pack, timed))
    result.missing += [flop] if isinstance(flop, Missing) else []
    work = {} if isinstance(flop, Missing) else flop
    result.rows = [
        Row(
            one.name,
            one.precision,
            "in process",
            one.is_baseline,
            agreement,
            [_with_flop(latency, work.get(latency.candidates)) for latency in latencies.get(one.name, [])],
        )
        for one, agreement in executors
        if one.name in latencies or not agreement.passed  # wrong scores close the gate, timed or not
    ]
    engines = {one.name: one.packed for one, agreement in executors if one.packed and agreement.passed}
    result.packed = [*engines]
    if engines and work:
        _saturate(pack, device, engines, timed, budget, result)
    return result


def _with_flop(latency: Latency, flop: float | None) -> Latency:
    return latency if flop is None else replace(latency, useful_tflops=round(flop / latency.p50_ms / 1e9, 5))


def _saturate(
    pack: Pack,
    device: str,
    engines: Mapping[str, "PackedEngine"],
    timed: Mapping[int, Sequence[Any]],
    budget: TimeBudget,
    result: Found,
) -> None:
    from tritonrank.gpu_check.saturation import flop_counter, product_tflops, saturate

    def measure_product() -> float:
        with budget.part(20):
            return product_tflops(device)

    def measure(name: str, engine: "PackedEngine") -> list[Saturation]:
        with budget.part(30, SATURATED_SHARE):
            return saturate(name, engine, timed, engine.launcher.largest.rows, flop_counter(pack))

    product = attempt("a large product", measure_product)
    if isinstance(product, Missing):
        result.missing.append(product)
    else:
        result.product_tflops = round(product, 4)
    for name, engine in engines.items():
        found = attempt(f"{name}, several requests a launch", partial(measure, name, engine))
        if isinstance(found, Missing):
            result.missing.append(found)
        else:
            result.saturation += found


def _tokenizer(pack: Pack) -> RequestTokenizer:
    """The pack's own.

    Raises:
        ArtifactError: its tokenizer or its text rules cannot be read, though they are as they were packed.
    """
    try:
        return RequestTokenizer.from_folder(pack.folder, 100_000)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ArtifactError(
            f"{pack.name}: {TOKENIZER_FILE}, {RULES_FILE}: no tokenizer can be made of them ({error}). {AGAIN}"
        ) from error


def measure_through_triton(pack: Pack, device: str, result: Found, budget: TimeBudget) -> None:
    """Add what a live server answers to one client at a time, and to several."""
    try:
        from tritonrank.gpu_check.clients import under_load
        from tritonrank.gpu_check.triton import served
    except ImportError as error:
        result.missing.append(
            Missing("Triton", f"{error.name} is not installed: pip install 'tritonrank[build,server]'")
        )
        return

    def measure() -> Row | Missing:
        with budget.part(TRITON_SECONDS), served(pack, device) as (name, precision, tolerance, run, url):
            found = [run(request) for request in pack.scored]
            expected = [np.array(request.scores, dtype=np.float32) for request in pack.scored]
            agreement = agreement_with(found, expected, tolerance)
            timed = {size: pack.timed(size) for size in pack.sizes}
            latencies, failed = take_turns({name: run}, timed, None, budget.left(ALONE_SHARE))
            if not failed:
                several = attempt(f"{name}, several clients", lambda: under_load(name, url, timed))
                if isinstance(several, Missing):
                    result.missing.append(several)
                else:
                    result.under_load += several
        if failed and agreement.passed:
            return failed[0]
        return Row(name, precision, "triton", False, agreement, latencies.get(name, []))  # wrong scores close the gate

    found = attempt("Triton", measure)
    if isinstance(found, Missing):
        result.missing.append(found)
    else:
        result.rows.append(found)


def _scores(executor: Executor, requests: Sequence[Any], budget: TimeBudget) -> list[Scores]:
    with budget.part(OPENING_SECONDS):
        return [executor.run(one) for one in requests]


def agreement_with(found: Sequence[Scores], expected: Sequence[Scores], tolerance: float) -> Agreement:
    """Scores of some requests held against those of the CPU."""
    difference = max(relative_difference(one, known) for one, known in zip(found, expected, strict=True))
    return Agreement(
        requests=len(expected),
        largest_difference=min(difference, NOT_FINITE),
        tolerance=tolerance,
        top_10_overlap=mean_overlap(found, expected),
        passed=difference <= tolerance,
    )


def take_turns(
    calls: Mapping[str, Callable[[Any], object]],
    requests: Mapping[int, Sequence[Any]],
    baseline: str | None,
    seconds_left: float = math.inf,
    seconds_per_round: float = SECONDS_PER_ROUND,
) -> tuple[dict[str, list[Latency]], list[Missing]]:
    """Latencies of each call at each request size, the calls taking turns; one that fails drops out.

    Args:
        calls: by name; each returns when its result is in memory.
        requests: by candidates.
        baseline: the name whose median the others' are held against.
        seconds_left: for all of it; of a size that was not begun by then there are no latencies.
        seconds_per_round: of a call in one turn, once it has answered a few requests.

    Returns:
        latencies by name, and what failed.
    """
    seconds: dict[str, dict[int, list[float]]] = {name: {size: [] for size in requests} for name in calls}
    failed = []
    ends = time.monotonic() + seconds_left
    with step("timing", total=len(requests) * (ROUNDS + 1) * len(calls)) as bar:
        for size, of_size in requests.items():
            if time.monotonic() > ends:
                failed.append(Missing(f"times at {size:,} candidates", "the time was over; allow more with --seconds"))
                continue
            for turn in range(ROUNDS + 1):  # the first is the warm-up: shapes are seen, graphs captured
                for name in list(seconds):
                    taken = attempt(
                        name, partial(_time, calls[name], of_size, seconds_per_round), f" at {size:,} candidates"
                    )
                    if isinstance(taken, Missing):
                        failed.append(taken)
                        del seconds[name]
                        continue
                    seconds[name][size] += taken if turn else []
                    bar.advance()
    of_baseline = seconds.get(str(baseline), {})
    latencies = {
        name: [_latency(size, taken, of_baseline.get(size)) for size, taken in by_size.items() if taken]
        for name, by_size in seconds.items()
    }
    return latencies, failed


def _time(call: Callable[[Any], object], requests: Sequence[Any], seconds_per_round: float) -> list[float]:
    seconds: list[float] = []
    started = time.perf_counter()
    for request in requests:
        before = time.perf_counter()
        call(request)
        seconds.append(time.perf_counter() - before)
        if len(seconds) >= FEWEST_REQUESTS and time.perf_counter() - started > seconds_per_round:
            break
    return seconds


def _latency(candidates: int, seconds: list[float], of_baseline: list[float] | None) -> Latency:
    p50, p99 = (float(np.percentile(seconds, share)) for share in (50, 99))
    return Latency(
        candidates=candidates,
        requests=len(seconds),
        p50_ms=round(1_000 * p50, 4),
        p99_ms=round(1_000 * p99, 4),
        candidates_per_second=round(candidates * len(seconds) / sum(seconds), 1),
        speedup=round(float(np.median(of_baseline)) / p50, 3) if of_baseline else None,
    )


def main() -> int:
    """``python -m tritonrank.gpu_check.check``: as ``tritonrank gpu-check``, for machines without its packages."""
    parser = argparse.ArgumentParser(
        prog="python -m tritonrank.gpu_check.check", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("pack", type=Path, metavar="PACK", help="what `tritonrank pack` made")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="default: docs/measurements/<gpu>-<recipe>-<date>.json"
    )
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU; needs --out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all of it; default: {SECONDS:.0f}")
    parser.add_argument("--no-triton", action="store_true", help="start no server")
    arguments = parser.parse_args()
    try:
        gpu_check(
            arguments.pack, arguments.out, cpu=arguments.cpu, triton=not arguments.no_triton, seconds=arguments.seconds
        )
    except TritonRankError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
