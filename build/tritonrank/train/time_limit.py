"""A training that ends in time: what it has learnt by then is judged, and its best weights are kept as ever.

The seconds that a training has used are kept beside its checkpoints, so that one that was cut off and goes on has the
rest of its time and not all of it again. What lay between its last checkpoint and the cut was lost, and does not count.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SPENT_FILE = "spent.json"


class TimeLimit(TrainerCallback):
    """Ends a training at the first step that is done after its time is over, with an evaluation and a checkpoint.

    Args:
        seconds: that all attempts together may train.
        clock: seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._spent = self._began = 0.0
        self.ended_at: int | None = None
        """the step; None: its time sufficed"""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        file = Path(args.output_dir) / SPENT_FILE
        self._spent = float(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() and state.global_step else 0
        self._began = self._clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._used() >= self._seconds and state.global_step < state.max_steps:
            self.ended_at = state.global_step
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / SPENT_FILE).write_text(json.dumps(round(self._used(), 3)), encoding="utf-8")

    def _used(self) -> float:
        return self._spent + self._clock() - self._began
