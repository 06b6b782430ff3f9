"""One of several processes that train together, as torchrun starts them: one job after the other.

Usage: training_ranks.py RECIPE JOBS_FILE. A job has a folder with a dataset, settings, and perhaps a step after which
it ends: by an exception, or by a SIGKILL that takes the whole run with it. Each rank writes the loss of each of its
steps, exactly, into FOLDER/losses.RANK, a line each.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tritonrank.artifacts.stage import take_part
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline import finetune
from tritonrank.recipe import load_recipe
from tritonrank.train.ranking_trainer import RankingTrainer


class EndedError(Exception):
    """A job that ends early."""


def run(recipe_path: Path, job: dict[str, Any]) -> None:
    folder, last, step = Path(job["folder"]), job.get("last"), RankingTrainer.training_step

    def told(self: RankingTrainer, *arguments: Any) -> torch.Tensor:
        if last is not None and self.state.global_step == last:
            if job["ends"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise EndedError
        loss = step(self, *arguments)
        with (folder / f"losses.{os.environ['RANK']}").open("a") as file:
            file.write(f"{self.state.global_step + 1} {loss.item().hex()}\n")
        return loss

    RankingTrainer.training_step = told  # type: ignore[method-assign]
    try:
        take_part(finetune.stage(load_recipe(recipe_path, job["settings"]), Workspace(folder)))
    except EndedError:
        pass
    finally:
        RankingTrainer.training_step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[2]).read_text()):
        run(Path(sys.argv[1]), job)
