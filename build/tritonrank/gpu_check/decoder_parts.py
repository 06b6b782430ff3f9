"""Where the time of a packed decoder's layer goes: each of its products and kernels alone, and attention cut in
several ways, which is how ``packed.attention.BLOCKS`` is chosen.

A part is repeated in a CUDA graph, so that no launch is waited for. What it reads may still be in the card's cache from
the time before, so sums over a layer are a little less than what a layer takes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tritonrank.gpu_check.decoder_shapes import DecoderShape, Load
from tritonrank.gpu_check.executors import attempt
from tritonrank.gpu_check.report import Missing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

REPEATS, REPLAYS = 20, 3
LAYERS = 2
"""Of the network that is made for this: the first is one of those in the middle, the second is the last."""
CUTS = ((128, 64, 3), (128, 64, 4), (128, 128, 2), (64, 64, 3), (64, 64, 2))
"""Rows, keys and stages of attention."""


@dataclass(frozen=True)
class PartTime:
    """One part of one layer."""

    part: str
    load: Load
    microseconds: float
    tflops: float | None
    """of products and attention: TFLOP/s of what has to be computed"""


def parts_of_a_layer(shape: DecoderShape, loads: Sequence[Load], device: str) -> list[PartTime | Missing]:
    """Times of each part at each size; a part that fails is missing."""
    import torch
    from tritonrank_runtime.packed.decoder_network import PackedDecoder

    from tritonrank.gpu_check.decoder_ways import random_network

    found: list[PartTime | Missing] = []
    is_cpu = device == "cpu"
    network = random_network(replace(shape, layers=LAYERS), device)
    dtype = torch.float32 if is_cpu else torch.float16
    decoder = PackedDecoder(network, dtype, device, "sdpa" if is_cpu else "triton")
    with torch.inference_mode():
        for load in loads:
            for name, flop, call in _parts(decoder, shape, load):
                seconds = attempt(f"{name} at {load}", partial(_seconds, call, device))
                if isinstance(seconds, Missing):
                    found.append(seconds)
                    continue
                tflops = round(flop / seconds / 1e12, 4) if flop else None
                found.append(PartTime(name, load, round(1e6 * seconds, 3), tflops))
    return found


def _parts(decoder: Any, shape: DecoderShape, load: Load) -> Iterator[tuple[str, float, Callable[[], object]]]:
    """Name, operations, and what runs it, of a launch of one request."""
    import torch
    from torch.nn import functional
    from tritonrank_runtime.decoder import packed_rows
    from tritonrank_runtime.packed.packing import TILE_ROWS, PackedBatch, Sizes, pack
    from tritonrank_runtime.packed.requests import decoder_request

    from tritonrank.gpu_check.decoder import requests_of

    (request,) = requests_of(load, shape, 1)
    packed = decoder_request(request, packed_rows(decoder.config).limits)
    batch = PackedBatch.empty(Sizes.bucket(-(-load.shared // TILE_ROWS) * TILE_ROWS))
    pack([packed], batch)
    tables = PackedBatch(batch.sizes, torch.from_numpy(batch.buffer).to(decoder.device)).tables
    operations, layer, rows = decoder._operations, decoder._layers[0], batch.sizes.rows

    def random(width: int, dtype: "torch.dtype" = decoder.dtype) -> "Tensor":
        return torch.randn(rows, width, device=decoder.device).to(dtype)

    def product(name: str, linear: Any, rows: "Tensor") -> tuple[str, float, Callable[[], object]]:
        return name, 2.0 * load.shared * linear.weight.numel(), partial(functional.linear, rows, *linear)

    hidden, normed, mixed = random(shape.hidden, torch.float32), random(shape.hidden), random(shape.width)
    projected, gate_in, inner = random(shape.width + 2 * shape.kv_width), random(2 * shape.inner), random(shape.inner)
    turns = decoder._turns(tables["positions"])
    heads = projected[:, : shape.width + shape.kv_width]
    query, keys_values = projected[:, : shape.width], projected[:, shape.width :]
    view, lasts_view = operations.prepare(tables, 0, is_causal=True)
    attend = partial(operations.attend, query, keys_values, decoder.pool[0])
    branch = load.candidate_tokens
    seen = load.prefix * (load.prefix + 1) / 2 + load.branches * (load.prefix + (branch + 1) / 2)
    yield product("query, key and value", layer.query_key_value, normed)
    yield "turning of heads", 0, partial(operations.turn, heads, shape.heads, turns, layer.turning)
    yield "attention", 4 * shape.width * seen, partial(attend, view)
    if decoder.device.type != "cpu":
        from tritonrank_runtime.packed.attention import BLOCKS, Blocks

        for cut in CUTS:
            if (blocks := Blocks(*cut)) != BLOCKS:
                yield f"attention, {blocks}", 4 * shape.width * seen, partial(attend, view | {"blocks": blocks})
    yield product("attention's output", layer.attention_out, mixed)
    yield "sum and norm", 0, partial(operations.add_rms, hidden, normed, layer.ffn_norm, decoder.dtype)
    yield product("gate and in", layer.gate_in, normed)
    yield "gate", 0, partial(operations.gated, gate_in, "silu")
    yield product("FFN's output", layer.ffn_out, inner)
    lasts = query[: batch.sizes.segments]
    seen_by_lasts = 4 * shape.width * load.candidates * (load.prefix + branch)
    last = partial(operations.attend, lasts, keys_values, decoder.pool[0], lasts_view)
    yield "attention of the last layer", seen_by_lasts, last


def _seconds(call: Callable[[], object], device: str) -> float:
    """Of one run."""
    import torch

    call()  # compiles
    if device == "cpu":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        call()
    beside.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            call()
    graph.replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / (REPEATS * REPLAYS)


def parts_record(found: Sequence[PartTime | Missing]) -> list[dict[str, Any]]:
    """For a record, without what is missing."""
    return [asdict(one) for one in found if isinstance(one, PartTime)]


def parts_table(parts: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table, of what ``parts_record`` gives: one row per part, one column per size."""
    if not parts:
        return []
    loads = list(dict.fromkeys(str(Load(**one["load"])) for one in parts))
    cells = {(one["part"], str(Load(**one["load"]))): one for one in parts}
    lines = [
        "",
        "One layer's parts, microseconds (TFLOP/s):",
        "",
        f"| part | {' | '.join(loads)} |",
        "|---" * (len(loads) + 1) + "|",
    ]
    for part in dict.fromkeys(one["part"] for one in parts):
        row = []
        for load in loads:
            one = cells.get((part, load), {"microseconds": None})
            speed = f" ({one['tflops']:.0f})" if one.get("tflops") else ""
            row.append("" if one["microseconds"] is None else f"{one['microseconds']:.1f}{speed}")
        lines.append(f"| {part} | {' | '.join(row)} |")
    return lines
