"""Single stages, run into folders of a test's own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tritonrank.artifacts import Draft, Manifest
from tritonrank.artifacts.stage import run_stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline import prepare, stages
from tritonrank.recipe import Recipe


def prepared(recipe: Recipe, folder: Path) -> Manifest:
    """A dataset in a folder of any name."""
    return run_stage(replace(prepare.stage(recipe, Workspace(folder.parent)), folder=folder))


def run_verb(verb: str, recipe: Recipe, workspace: Workspace, folder: Path | None = None) -> Manifest:
    """One stage alone, whether it is up to date or not; its artifact goes into another folder if one is named."""
    (stage,) = (stage for stage in stages.stages(recipe, workspace) if stage.verb == verb)
    return run_stage(replace(stage, folder=folder or stage.folder))


def publish_instead(recipe: Recipe, workspace: Workspace, fill: Callable[[Draft], None]) -> None:
    """Publish another dataset as if ``prepare`` had made it."""
    run_stage(replace(prepare.stage(recipe, workspace), make=fill))
