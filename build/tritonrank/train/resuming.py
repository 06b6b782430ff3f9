"""Where an interrupted training goes on."""

import json
import shutil
from pathlib import Path

import torch.distributed as dist
from rich.console import Console
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

console = Console()


def is_main_process() -> bool:
    """Whether this process writes what all have made; true when there is only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def resumable(work: Path, key: str) -> str | None:
    """The last complete checkpoint of an interrupted run with the same key and as many processes; other leftovers are
    removed.

    With another number of processes the examples of a step are others, and so are the steps.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    told = json.dumps(key if world == 1 else [key, world])
    marker = work / "key.json"
    same = marker.is_file() and marker.read_text(encoding="utf-8") == told
    complete = [
        path.parent
        for path in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
        if same and _is_complete(path.parent, world)
    ]
    last = max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    checkpoint = str(last) if last else None
    wait_for_all()  # every process has looked before the first one tidies up
    if is_main_process() and not same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        marker.write_text(told, encoding="utf-8")
    if is_main_process() and checkpoint:
        console.print(f"resuming from {Path(checkpoint).name}")
    wait_for_all()
    return checkpoint


def _is_complete(checkpoint: Path, world: int) -> bool:
    """The Trainer's first process writes its state last: a checkpoint without it, or with a part of it, was being
    written when the run was killed. The others' random states come when they come."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except ValueError:
        return False
    states = [f"rng_state_{rank}.pth" for rank in range(world)] if world > 1 else []
    return all((checkpoint / name).is_file() for name in states)
