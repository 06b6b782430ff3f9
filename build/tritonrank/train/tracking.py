"""Log a training while it runs, through the callbacks that the Trainer's ``report_to`` stands for.

What a recipe's ``tracking`` names gets losses, learning rates and validation NDCG@10 step by step; the finished build
is logged by ``pipeline/tracking.py``. A tracker that is not installed or does not answer costs a warning, never a
training.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from tritonrank.system.trackers import (
    INSTALL,
    MLFLOW_URI,
    environment,
    mlflow_defaults,
    mlflow_uri,
    set_defaults,
    tensorboard_folder,
    wandb_defaults,
    wandb_place,
)
from tritonrank.train.resuming import is_main_process

NONE = "none"
EVENTS = tuple(name for name in dir(TrainerCallback) if name.startswith("on_"))
LONGEST_REASON = 300

console = Console()


@contextmanager
def tracked(tracking: str, recipe_name: str, section: str) -> Iterator[Sequence[TrainerCallback]]:
    """Callbacks for a Trainer; none where nothing is logged.

    Args:
        tracking: the recipe's setting.
        recipe_name: experiment, project or folder of the runs.
        section: ``finetune`` or ``distill``: names the run.
    """
    kind, _, target = tracking.partition(":")
    if tracking == NONE or not is_main_process():
        yield []
        return
    if importlib.util.find_spec(kind) is None:
        _warn(f"tracking: {kind} is not installed, so the training is not logged: {INSTALL[kind]}")
        yield []
        return
    with environment(_environment(kind, target, recipe_name)):
        yield [_Guarded(callback, kind, target, recipe_name, section) for callback in _callbacks(kind)]


def _callbacks(kind: str) -> list[type[TrainerCallback]]:
    found: list[type[TrainerCallback]] = get_reporting_integration_callbacks([kind])
    return found


def _environment(kind: str, target: str, recipe_name: str) -> dict[str, str]:
    """What the callback reads; the user's own choices win over defaults, what the recipe names wins over them."""
    if kind == "mlflow":
        uri = mlflow_uri(target)
        set_defaults(mlflow_defaults(uri))
        return {MLFLOW_URI: uri, "MLFLOW_EXPERIMENT_NAME": recipe_name}
    if kind == "wandb":
        set_defaults(wandb_defaults(target))
        project, entity = wandb_place(target, recipe_name)
        return {"WANDB_PROJECT": project} | ({"WANDB_ENTITY": entity} if entity else {})
    return {}


class _Guarded(TrainerCallback):
    """Another's callback whose failure ends the logging and not the training."""

    def __init__(self, made: type[TrainerCallback], kind: str, target: str, recipe_name: str, section: str) -> None:
        self._kind, self._target, self._name, self._section = kind, target, recipe_name, section
        self._callback: TrainerCallback | None = None
        self._call(lambda: setattr(self, "_callback", made()))

    def _event(self, name: str, args: Any, *rest: Any, **named: Any) -> None:
        callback = self._callback
        if callback is None:
            return
        if name == "on_train_begin":
            args.run_name = f"{self._name} {self._section}"
            args.logging_dir = str(tensorboard_folder(self._target, self._name) / self._section)
        self._call(lambda: getattr(callback, name)(args, *rest, **named))

    def _call(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - of libraries that we do not know
            self._callback = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
            _warn(
                f"tracking: {self._target or self._kind} does not take this training, which goes on without ({reason})"
            )


def _passed_on(name: str) -> Any:
    def event(self: _Guarded, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._event(name, args, state, control, **named)

    return event


for _name in EVENTS:
    setattr(_Guarded, _name, _passed_on(_name))


def _warn(text: str) -> None:
    console.print(f"{'':<10} {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
