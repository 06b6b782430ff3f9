"""A training that ends in time: what it has learnt by then is judged, and its best weights are kept as ever.

Its schedule ends with it: where the time will be over before the steps are, the learning rate follows the time, so that
it has fallen as far at the end as if all steps had been taken.

The seconds that a training has used are kept beside its checkpoints, so that one that was cut off and goes on has the
rest of its time and not all of it again. What lay between its last checkpoint and the cut was lost, and does not count.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SPENT_FILE = "spent.json"
FIRST_STEPS = 10
"""Steps that say nothing of how long the others take: memory is allocated and kernels are chosen in the first ones."""


class TimeLimit(TrainerCallback):
    """Ends a training at the first step that is done after its time is over, with an evaluation and a checkpoint.

    Of several processes the first one's clock counts: all take the same steps, at the same learning rate.

    Args:
        seconds: that all attempts together may train.
        clock: seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._spent = self._began = 0.0
        self._share = 0.0
        """of the time that was used when the last step ended"""
        self.ended_at: int | None = None
        """the step; None: its time sufficed"""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        lr_scheduler: LambdaLR | None = None,
        **_: Any,
    ) -> None:
        file = Path(args.output_dir) / SPENT_FILE
        self._spent = float(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() and state.global_step else 0
        self._began = self._clock()
        self._share = self._spent / self._seconds
        if lr_scheduler is not None:  # every schedule that a recipe can name is one
            lr_scheduler.lr_lambdas = [self._in_time(one, state.max_steps) for one in lr_scheduler.lr_lambdas]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._share = _of_the_first(self._used(), args) / self._seconds
        if self._share >= 1 and state.global_step < state.max_steps:
            self.ended_at = state.global_step
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / SPENT_FILE).write_text(json.dumps(round(self._used(), 3)), encoding="utf-8")

    def _used(self) -> float:
        return self._spent + self._clock() - self._began

    def _in_time(self, schedule: Callable[[int], float], steps: int) -> Callable[[int], float]:
        """A schedule over ``steps`` that goes on by time wherever time is nearer to its end than steps are."""

        def factor(step: int) -> float:
            by_time = int(self._share * steps) if step >= FIRST_STEPS else 0
            return schedule(min(steps, max(step, by_time)))

        return factor


def _of_the_first(seconds: float, args: TrainingArguments) -> float:
    """What the first of all processes says."""
    if not dist.is_initialized():
        return seconds
    told = torch.tensor([seconds], dtype=torch.float64, device=args.device)
    dist.broadcast(told, src=0)
    return float(told.item())
