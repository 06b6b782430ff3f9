"""What processes do that train together, in tests of who starts them; apart, so that they import little.

Usage: ranks_at_work.py FOLDER: start two that train for long.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from tritonrank.errors import TritonRankError

LONG_SECONDS = 600.0


def steps_in_time(folder: Path) -> None:
    """Take steps until the time is over, by a clock that runs 3 times as fast in the second process."""
    from tritonrank.train.time_limit import TimeLimit

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    now = [0.0]
    limit = TimeLimit(30.0, lambda: now[0] * (1 + 2 * rank))
    state = SimpleNamespace(global_step=0, max_steps=100)
    control = SimpleNamespace(should_evaluate=False, should_save=False, should_training_stop=False)
    told: Any = (SimpleNamespace(output_dir=str(folder), device="cpu"), state, control)
    limit.on_train_begin(*told)
    while not control.should_training_stop:
        now[0], state.global_step = now[0] + 1, state.global_step + 1
        limit.on_step_end(*told)
    (folder / f"ended.{rank}").write_text(f"{limit.ended_at} {os.getppid()}")


def fails_in_the_second(folder: Path) -> None:
    """Raise in one process, for which the other waits."""
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        raise TritonRankError(f"{folder}: no space left")
    dist.barrier()


def trains_for_long(folder: Path) -> None:
    """Say who it is, and go on until it is ended."""
    (folder / f"rank.{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(LONG_SECONDS)


if __name__ == "__main__":
    from tritonrank.train.processes import train_in_processes

    train_in_processes(2, trains_for_long, Path(sys.argv[1]))
