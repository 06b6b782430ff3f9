"""Somebody who watches trainings and may end one early: the search for settings (``tritonrank search``).

    with watched_by(lambda share, ndcg: ndcg < 0.1): run_stage(stage)

The watch is asked at every evaluation. Where it ends a training, ``TrainingEndedError`` comes out of it once the
checkpoint of that evaluation is written, so that the same training can go on from there; what it would have published
is discarded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Watch = Callable[[float, float], bool]
"""Is told which share of the steps is done (above 0, up to 1) and the validation NDCG@10; True ends the training. Of a
training that goes on after an interruption, it is told the earlier evaluations again, and cannot end those."""

_current: ContextVar[Watch | None] = ContextVar("watch", default=None)


class TrainingEndedError(Exception):
    """The watch ended the training; its last checkpoint is kept in the work folder."""


@contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Let a watch see the trainings of the block."""
    token = _current.set(watch)
    try:
        yield
    finally:
        _current.reset(token)


def watch_callbacks() -> list[TrainerCallback]:
    """What a Trainer needs so that whoever watches is asked; empty where nobody does."""
    watch = _current.get()
    return [] if watch is None else [_Asking(watch)]


class _Asking(TrainerCallback):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._is_ended = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for entry in state.log_history:
            if "eval_ndcg" in entry:
                self._watch(entry["step"] / state.max_steps, entry["eval_ndcg"])

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        if metrics and "eval_ndcg" in metrics:
            self._is_ended = self._watch(state.global_step / state.max_steps, metrics["eval_ndcg"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._is_ended:
            raise TrainingEndedError(f"ended at step {state.global_step} of {state.max_steps}")
