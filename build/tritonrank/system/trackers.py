"""Where runs are logged: what the libraries of MLflow, Weights & Biases and TensorBoard read from the environment.

Nothing leaves this machine unless a recipe's ``tracking`` or the user's own environment names a place.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

INSTALL = {
    "mlflow": "pip install 'tritonrank[mlflow]'",
    "wandb": "pip install wandb",
    "tensorboard": "pip install tensorboard",
}
MLFLOW_URI = "MLFLOW_TRACKING_URI"
MLFLOW_FILES = "mlruns"
"""Where runs go when nobody named a place; ``mlflow ui --backend-store-uri`` shows them."""
MLFLOW_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
"""A server that is down is asked for 7 minutes else."""
MLFLOW_ALLOW_FILES = {"MLFLOW_ALLOW_FILE_STORE": "true"}
"""MLflow 3 asks for it, as its file store gets no new features; it needs neither a server nor a database."""
SCHEMES_OF_FILES = ("file", "")
WANDB_OFFLINE = {"WANDB_MODE": "offline"}
"""Where no project was named: files in ./wandb, which ``wandb sync`` sends when somebody wants it."""
WANDB_QUIET = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
TENSORBOARD_FILES = "runs"
"""``tensorboard --logdir runs`` shows them."""


def mlflow_uri(target: str) -> str:
    """The tracking URI: the recipe's, else the environment's, else files."""
    return target or os.environ.get(MLFLOW_URI) or Path(MLFLOW_FILES).absolute().as_uri()


def mlflow_defaults(uri: str) -> dict[str, str]:
    """What MLflow should be told unless the user said otherwise."""
    is_file = uri.partition(":")[0] in SCHEMES_OF_FILES or "://" not in uri
    return MLFLOW_IMPATIENT | (MLFLOW_ALLOW_FILES if is_file else {})


def wandb_place(target: str, recipe_name: str) -> tuple[str, str | None]:
    """Project and entity of ``ENTITY/PROJECT``, ``PROJECT`` or nothing."""
    entity, _, project = target.rpartition("/")
    return project or recipe_name, entity or None


def wandb_defaults(target: str) -> dict[str, str]:
    """What W&B should be told unless the user said otherwise."""
    return WANDB_QUIET if target else WANDB_QUIET | WANDB_OFFLINE


def tensorboard_folder(target: str, recipe_name: str) -> Path:
    """Where the event files of a recipe go."""
    return Path(target or TENSORBOARD_FILES) / recipe_name


def set_defaults(values: Mapping[str, str]) -> None:
    """Environment variables that a library reads; the user's own choice wins."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as this lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
