"""A real process group: each rank runs its shards up to each sum, which torch.distributed makes over gloo.

Usage: gloo_ranks.py RENDEZVOUS_FILE JOBS_FILE; forks one process per rank, so that torch is imported once.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from numpy.typing import NDArray
from tritonrank_runtime.sessions import open_session
from tritonrank_runtime.shard_runner import ShardRunner

RANKS = 4


def main(rank: int, rendezvous: str, jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in (2, RANKS)}
    for job in jobs:
        if rank < job["ranks"]:
            run(job, rank, groups[job["ranks"]])
    dist.destroy_process_group()


def run(job: dict[str, Any], rank: int, group: Any) -> None:
    def all_reduce(addend: NDArray[Any]) -> NDArray[Any]:
        total = torch.from_numpy(addend.copy())
        dist.all_reduce(total, group=group)
        return total.numpy()

    folder = Path(job["folder"])
    runner = ShardRunner(folder, rank, open_session, all_reduce)
    for name in job["graphs"]:
        with np.load(folder / f"{name}.feed.npz") as feed:
            found = runner.run(name, dict(feed))
        np.savez(folder / f"{name}.rank{rank}.npz", **found)


if __name__ == "__main__":
    arguments = (sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
    torch.multiprocessing.start_processes(main, arguments, nprocs=RANKS, start_method="fork")
