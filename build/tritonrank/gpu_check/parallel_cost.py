"""When several GPUs should compute one decoder together, and when each should have its own: by formula.

    python -m tritonrank.gpu_check.parallel_cost [--sums FILE] [--out FILE]

A request is one packed sequence (the prefix, then every candidate). Its time on N GPUs is that of the kernels of its
layers, each with its share of the heads and neurons, and of two sums over the ranks per layer (Shoeybi et al. 2019,
"Megatron-LM", section 3). What goes in is told apart:

- **measured here**, on one H100 (docs/measurements, docs/gpu-engine.md): the speed of a large product, the least time
  of a kernel in a CUDA graph, the speed of memory;
- **measured by others**: how long sums of some sizes take between H100 with NVLink, and what FP8 gains (``SOURCES``).
  ``--sums`` takes what ``tritonrank.gpu_check.sum_speed`` has measured on the machine in question instead;
- **assumed**: how fast attention is.

All that comes out is modelled. A product's time counts whole waves of its tiles over the GPU's processors, which is why
a rank's narrower product takes more than its share.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import ceil, factorial
from pathlib import Path
from typing import Any

from tritonrank.gpu_check.decoder_shapes import LOADS, SHAPES, DecoderShape, Load

HALF_BYTES = 2
GPUS = (1, 2, 4, 8)
MODELLED = ("qwen3-0.6b", "qwen3-4b", "qwen3-8b")
PROCESSORS = 132
"""Of an H100 SXM."""
TILES = ((128, 256), (128, 128), (64, 128))
"""Rows and columns of a product that one processor computes at a time: libraries choose what fills the GPU best."""
PRODUCT_FLOPS = 716e12
"""Measured here: a large FP16 product."""
MEMORY_BYTES_PER_SECOND = 3.0e12
"""Measured here: a copy on the device, bytes read and written."""
KERNEL_SECONDS = 4e-6
"""Measured here: 0.10 ms for the 24 products of the smallest request in a CUDA graph."""
ATTENTION_SHARE = 0.5
"""Assumed: attention reaches half of a large product's speed."""
FP8_GAIN = 1.4
"""Measured by others: 760.6 against 544.3 TFLOP/s at 256 rows, rounding the activations included."""
ELEMENTWISE_KERNELS = 4
"""Per layer: two norms with their additions, rotation of queries and keys, the gate."""
SOURCES = (
    "2 GPUs, to 1 MiB: github.com/sgl-project/sglang/pull/2904 (H100, no CUDA graph, the kernel of vLLM)",
    "4 GPUs, to 4 MiB: github.com/vllm-project/vllm/pull/24111 (H100, NCCL)",
    "8 GPUs, to 128 MiB: github.com/vllm-project/vllm/pull/42324 (NCCL; Hopper by its place before the B200)",
    "beyond these sizes, 2 and 4 GPUs: github.com/NVIDIA/nccl/issues/1455 (H100, 365 to 370 GB/s on the bus)",
    "FP8: github.com/vllm-project/vllm/pull/17126 (the GPU is not named; BF16 at 256 rows as an H100 does it)",
)
MIB = 2**20
KIB = 2**10
LARGE_BUS_BYTES_PER_SECOND = 367e9


@dataclass(frozen=True)
class Sums:
    """How long sums over some GPUs take.

    Args:
        origin: who measured, and where.
        seconds: by number of GPUs: pairs of a tensor's bytes and seconds, in rising order.
        bus_bytes_per_second: of larger tensors: a rank sends 2 (N - 1) / N times their bytes.
    """

    origin: str
    seconds: dict[int, tuple[tuple[int, float], ...]]
    bus_bytes_per_second: float = LARGE_BUS_BYTES_PER_SECOND

    def of(self, tensor_bytes: float, ranks: int) -> float:
        """Seconds of one sum: between two measured sizes in proportion, beyond the last by the bus."""
        if ranks == 1:
            return 0.0
        points = self.seconds[ranks]
        if tensor_bytes <= points[0][0]:
            return points[0][1]
        for (small, before), (large, after) in pairwise(points):
            if tensor_bytes <= large:
                return before + (after - before) * (tensor_bytes - small) / (large - small)
        more = tensor_bytes - points[-1][0]
        return points[-1][1] + 2 * (ranks - 1) / ranks * more / self.bus_bytes_per_second


def _points(sizes: Sequence[float], unit: int, microseconds: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(size * unit), round(one * 1e-6, 9)) for size, one in zip(sizes, microseconds, strict=True))


PUBLISHED = Sums(
    "measured by others",
    {
        2: _points((0.5, 4, 32, 256, 512, 1_024), KIB, (9.5, 8.8, 8.7, 12.9, 17.7, 26.6)),
        4: _points((0.5, 1, 1.5, 2, 3, 4), MIB, (17, 19, 22, 26, 31, 37)),
        8: _points((0.5, 1, 2, 4, 8, 16, 32, 64, 128), MIB, (24, 25, 37, 50, 76, 121, 195, 316, 561)),
    },
)


def read_sums(path: Path) -> Sums:
    """What ``sum_speed`` wrote.

    Raises:
        SystemExit: the file is none of these, or lacks a number of GPUs.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        seconds = {int(ranks): tuple((int(size), float(one)) for size, one in points) for ranks, points in
                   found["seconds"].items()}  # fmt: skip
        last = {ranks: points[-1] for ranks, points in seconds.items()}
        bus = min(2 * (ranks - 1) / ranks * size / one for ranks, (size, one) in last.items())
        return Sums(f"{found['kind']} on {found['machine']}", seconds, bus)
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise SystemExit(
            f"{path}: no times of sums can be read from it ({type(error).__name__}: {error}); write it on the machine "
            "with the GPUs: torchrun --nproc-per-node N -m tritonrank.gpu_check.sum_speed --out FILE"
        ) from None


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, as far as a request's time goes.

    Args:
        product_flops: per second of a large product in the serving precision.
        memory: bytes per second.
        kernel_seconds: the least that any kernel takes.
        attention_flops: per second.
    """

    product_flops: float = PRODUCT_FLOPS
    memory: float = MEMORY_BYTES_PER_SECOND
    kernel_seconds: float = KERNEL_SECONDS
    attention_flops: float = PRODUCT_FLOPS * ATTENTION_SHARE

    def product(self, rows: int, columns: int, depth: int) -> float:
        """Seconds of (rows, depth) x (depth, columns): whole waves of the best tiles, or the bytes that it moves."""
        computed = min(
            ceil(ceil(rows / tile_rows) * ceil(columns / tile_columns) / PROCESSORS) * tile_rows * tile_columns
            for tile_rows, tile_columns in TILES
        )
        seconds = 2 * computed * depth / (self.product_flops / PROCESSORS)
        moved = HALF_BYTES * (rows * depth + depth * columns + rows * columns) / self.memory
        return max(seconds, moved, self.kernel_seconds)

    def elementwise(self, numbers: float) -> float:
        """Seconds of a kernel that reads and writes so many numbers once each."""
        return max(2 * HALF_BYTES * numbers / self.memory, self.kernel_seconds)


H100 = Gpu()
H100_FP8 = replace(H100, product_flops=PRODUCT_FLOPS * FP8_GAIN)
PRECISIONS = {"FP16": H100, "FP8": H100_FP8}


def layer_seconds(shape: DecoderShape, load: Load, gpu: Gpu, ranks: int, is_last: bool = False) -> float:
    """Seconds of one layer's kernels on each of so many GPUs, without the sums.

    In the last layer all tokens have keys and values, and one row per candidate has the rest.
    """
    tokens, rows = load.shared, load.candidates if is_last else load.shared
    width, kv_width, inner = (size // ranks for size in (shape.width, shape.kv_width, shape.inner))
    if is_last:
        projections = gpu.product(tokens, 2 * kv_width, shape.hidden) + gpu.product(rows, width, shape.hidden)
    else:
        projections = gpu.product(tokens, width + 2 * kv_width, shape.hidden)
    # A prefix token sees half of the prefix on average; a candidate's the prefix and half of its own.
    seen_by_prefix = 0 if is_last else load.prefix**2 / 2
    seen_by_rows = rows - (0 if is_last else load.prefix)
    pairs = seen_by_prefix + seen_by_rows * (load.prefix + load.candidate_tokens / 2)
    attention = max(4 * width * pairs / gpu.attention_flops, gpu.kernel_seconds)
    others = (
        gpu.product(rows, shape.hidden, width)
        + gpu.product(rows, 2 * inner, shape.hidden)
        + gpu.product(rows, shape.hidden, inner)
    )
    elementwise = 2 * gpu.elementwise(rows * shape.hidden) + gpu.elementwise(rows * (width + kv_width))
    return projections + attention + others + elementwise + gpu.elementwise(1.5 * rows * inner)


def summed_bytes(shape: DecoderShape, load: Load) -> tuple[float, float]:
    """Bytes of one of the two tensors that a layer adds up; the same of the last layer."""
    return load.shared * shape.hidden * HALF_BYTES, load.candidates * shape.hidden * HALF_BYTES


def sum_seconds(shape: DecoderShape, load: Load, sums: Sums, ranks: int) -> float:
    """Seconds of all sums of one request."""
    usual, last = summed_bytes(shape, load)
    return 2 * ((shape.layers - 1) * sums.of(usual, ranks) + sums.of(last, ranks))


def request_seconds(shape: DecoderShape, load: Load, gpu: Gpu, sums: Sums, ranks: int = 1) -> float:
    """Seconds of one request on so many GPUs together."""
    layers = (shape.layers - 1) * layer_seconds(shape, load, gpu, ranks)
    return layers + layer_seconds(shape, load, gpu, ranks, is_last=True) + sum_seconds(shape, load, sums, ranks)


def mean_seconds(service_seconds: float, servers: int, per_second: float) -> float:
    """Mean time to an answer from servers with one queue, requests arriving at random; infinite beyond what they do.

    Half the wait of Erlang's C formula, for a request takes about as long as any other (M/D/c; exact for one server).
    """
    load = per_second * service_seconds
    if load >= servers:
        return float("inf")
    full = load**servers / factorial(servers) * servers / (servers - load)
    waits = full / (sum(load**busy / factorial(busy) for busy in range(servers)) + full)
    return service_seconds + waits * service_seconds / (servers - load) / 2


def faster_until(together_seconds: float, alone_seconds: float, gpus: int) -> float:
    """Requests per second up to which ranks answer sooner on average than as many replicas; 0: at no load."""
    if together_seconds >= alone_seconds:
        return 0.0
    low, high = 0.0, 1 / together_seconds
    for _ in range(60):
        middle = (low + high) / 2
        is_faster = mean_seconds(together_seconds, 1, middle) < mean_seconds(alone_seconds, gpus, middle)
        low, high = (middle, high) if is_faster else (low, middle)
    return low


@dataclass(frozen=True)
class Row:
    """One decoder, request and precision on one GPU, and on several together."""

    decoder: str
    prefix: int
    candidates: int
    candidate_tokens: int
    precision: str
    milliseconds: dict[int, float]
    """by GPUs that compute one request together"""
    sum_milliseconds: dict[int, float]
    """of these, in sums"""
    faster_until: dict[int, float]
    """requests per second up to which that beats as many replicas in mean latency"""
    replica_requests_per_second: dict[int, float]
    """what as many replicas can serve"""


def table(sums: Sums = PUBLISHED, loads: Sequence[Load] = LOADS) -> list[Row]:
    """All decoders, requests and precisions."""
    counts = [gpus for gpus in GPUS if gpus == 1 or gpus in sums.seconds]
    rows = []
    for name in MODELLED:
        for load in loads:
            for precision, gpu in PRECISIONS.items():
                seconds = {gpus: request_seconds(SHAPES[name], load, gpu, sums, gpus) for gpus in counts}
                several = {gpus: one for gpus, one in seconds.items() if gpus > 1}
                rows.append(
                    Row(
                        SHAPES[name].name,
                        load.prefix,
                        load.candidates,
                        load.candidate_tokens,
                        precision,
                        {gpus: round(one * 1e3, 2) for gpus, one in seconds.items()},
                        {gpus: round(sum_seconds(SHAPES[name], load, sums, gpus) * 1e3, 2) for gpus in several},
                        {gpus: round(faster_until(one, seconds[1], gpus), 1) for gpus, one in several.items()},
                        {gpus: round(gpus / seconds[1], 1) for gpus in several},
                    )
                )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown."""
    several = [*rows[0].faster_until]
    head = ["", "P, K, C", "", "1 GPU", *(f"{gpus} together" for gpus in several)]
    head += [f"{gpus}: until" for gpus in several]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        alone = row.milliseconds[1]
        cells = [row.decoder, f"{row.prefix:,}, {row.candidates}, {row.candidate_tokens}", row.precision]
        cells.append(f"{alone:.1f} ms")
        cells += [f"{row.milliseconds[gpus]:.1f} ({alone / row.milliseconds[gpus]:.2f})" for gpus in several]
        cells += [
            f"{row.faster_until[gpus]:,.0f} of {row.replica_requests_per_second[gpus]:,.0f}/s"
            if row.faster_until[gpus]
            else "never"
            for gpus in several
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def record(rows: Sequence[Row], sums: Sums) -> dict[str, Any]:
    """What ``--out`` writes: the rows, and all that went in, by origin."""
    return {
        "kind": "modelled",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "measured_here": {
            "product_flops_per_second": PRODUCT_FLOPS,
            "memory_bytes_per_second": MEMORY_BYTES_PER_SECOND,
            "kernel_seconds": KERNEL_SECONDS,
        },
        "sums": asdict(sums) | ({"sources": SOURCES} if sums is PUBLISHED else {}),
        "measured_by_others": {"fp8_gain": FP8_GAIN},
        "assumed": {"attention_share_of_product_speed": ATTENTION_SHARE},
        "rows": [asdict(row) for row in rows],
    }


def main() -> None:
    """Print the table; write it where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="tritonrank.gpu_check.parallel_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--sums", type=Path, help="what sum_speed measured; default: what others have measured")
    parser.add_argument("--out", type=Path, help="a JSON file with the rows and all that went in")
    arguments = parser.parse_args()
    sums = read_sums(arguments.sums) if arguments.sums else PUBLISHED
    rows = table(sums)
    print(f"Modelled; sums: {sums.origin}. Behind a time: how many times as fast as one GPU. 'Until': the load up to\n"
          "which that answers sooner on average than as many replicas, of what those can serve.\n")  # fmt: skip
    print(markdown(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(record(rows, sums), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
