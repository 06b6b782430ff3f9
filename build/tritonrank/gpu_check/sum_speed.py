"""How long sums over the GPUs of this machine take, for the cost model of tensor parallelism.

    torchrun --nproc-per-node 8 -m tritonrank.gpu_check.sum_speed --out sums.json
    python -m tritonrank.gpu_check.parallel_cost --sums sums.json

NCCL between GPUs, each sum in a CUDA graph, as an engine would launch it. ``--cpu`` rehearses it with gloo between
processes, which says nothing of GPUs; the file says so. For 2, 4 and 8 ranks, as many of these as there are, in FP16,
from 4 KiB to 64 MiB.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tritonrank.gpu_check.machine import describe_machine

SIZES = tuple(2**power for power in range(12, 27))
REHEARSED_SIZES = SIZES[:9]
RANKS = (2, 4, 8)
IN_A_GRAPH = 20
"""Sums captured one after the other, so that launching the graph is no part of any."""
REPEATS = 7


def main() -> None:
    """Measure on all ranks, and let the first write the file."""
    import torch
    import torch.distributed as dist

    parser = argparse.ArgumentParser(prog="tritonrank.gpu_check.sum_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--cpu", action="store_true", help="rehearse with gloo on the CPU")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        raise SystemExit(
            "sums need several processes: torchrun --nproc-per-node N -m tritonrank.gpu_check.sum_speed --out FILE"
        )
    device = "cpu" if arguments.cpu else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if not arguments.cpu:
        if torch.cuda.device_count() < int(os.environ["WORLD_SIZE"]):
            raise SystemExit(
                f"{os.environ['WORLD_SIZE']} processes, and PyTorch sees {torch.cuda.device_count()} GPU(s); "
                "rehearse without any: --cpu"
            )
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if arguments.cpu else "nccl")
    try:
        found = measure(device, REHEARSED_SIZES if arguments.cpu else SIZES)
        if dist.get_rank() == 0:
            arguments.out.write_text(json.dumps(record(found, cpu=arguments.cpu), indent=1) + "\n", encoding="utf-8")
            print(arguments.out)
    finally:
        dist.destroy_process_group()


def measure(device: str, sizes: tuple[int, ...]) -> dict[int, list[tuple[int, float]]]:
    """Seconds of a sum, by ranks: pairs of a tensor's bytes and the median; what the slowest rank of them saw."""
    import torch.distributed as dist

    found: dict[int, list[tuple[int, float]]] = {}
    for ranks in RANKS:
        if ranks > dist.get_world_size():
            break
        group: Any = dist.new_group(list(range(ranks)))  # all ranks have to take part in making it
        if dist.get_rank() < ranks:
            found[ranks] = [(size, _sum_seconds(size, device, group)) for size in sizes]
        dist.barrier()
    return found


def _sum_seconds(size: int, device: str, group: Any) -> float:
    import torch
    import torch.distributed as dist

    addend = torch.zeros(size // 2, dtype=torch.float16, device=device)
    add = partial(dist.all_reduce, addend, group=group)
    run = add if device == "cpu" else _captured(add)
    count = 1 if device == "cpu" else IN_A_GRAPH
    run()
    taken = sorted(_seconds(run, device, group) / count for _ in range(REPEATS))
    slowest = torch.tensor(taken[REPEATS // 2], dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
    return float(slowest)


def _captured(add: Callable[[], object]) -> Callable[[], object]:
    import torch

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        add()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(IN_A_GRAPH):
            add()
    return graph.replay


def _seconds(run: Callable[[], object], device: str, group: Any) -> float:
    import torch
    import torch.distributed as dist

    dist.barrier(group=group)
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def record(found: dict[int, list[tuple[int, float]]], *, cpu: bool) -> dict[str, Any]:
    """What the file says."""
    import torch

    machine = describe_machine(cpu=cpu)
    return {
        "kind": "rehearsal: gloo between processes of one CPU, no GPU" if cpu else "measured",
        "machine": f"{machine.processor}, gloo" if cpu else f"{machine.gpu}, NCCL {torch.cuda.nccl.version()}",
        "versions": machine.versions,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": {ranks: [[size, round(one, 9)] for size, one in points] for ranks, points in found.items()},
    }


if __name__ == "__main__":
    main()
