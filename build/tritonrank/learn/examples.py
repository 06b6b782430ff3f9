"""What a night learns and is judged on, as a dataset like the one that ``prepare`` makes."""

from collections.abc import Sequence
from pathlib import Path

from tritonrank.artifacts.stage import Stage
from tritonrank.learn.left_out import LeftOut
from tritonrank.learn.windows import Windows
from tritonrank.recipe import Recipe

SETS_FILE = "sets.parquet"
"""Beside ``test.parquet``: which judged lists are in which set; columns set and example_id."""


def stage(recipe: Recipe, base: Path, windows: Windows, folder: Path, left_out: Sequence[LeftOut] = ()) -> Stage:
    """The stage ``examples``, whose artifact stands where other stages expect a dataset.

    train.parquet: new lists and a replay of older ones; validation.parquet: newest lists of some users, and of the
    base; test.parquet: all judged lists; items.parquet and events.parquet as ``prepare`` writes them.

    Args:
        recipe: with its section ``learn``.
        base: the dataset that ``prepare`` made for the recipe, whose lists are the old ones.
        windows: of this night.
        folder: of the artifact: ``Workspace(night).dataset``.
        left_out: of this night and all before.
    """
    raise NotImplementedError


def judged_sets(dataset: Path) -> dict[str, list[str]]:
    """Of a night's dataset the judged sets: name (newest, frozen, old, the segments of the recipe) -> ids of test
    examples, in the order of ``test.parquet``; sets without lists are not there.

    Raises:
        ArtifactError: the folder is no dataset of a night.
    """
    raise NotImplementedError


def learnt_until(recipe: Recipe, base: Path) -> float | None:
    """Up to where the recipe's own dataset holds the log, unix seconds; None where it was made of something else."""
    raise NotImplementedError
