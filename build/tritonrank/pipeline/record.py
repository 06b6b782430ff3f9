"""Record a finished build in the history of builds, and let the first good one be served (``artifacts/builds.py``)."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tritonrank.artifacts.record_builds import current_build, record_build
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import TritonRankError
from tritonrank.pipeline.tracking import track
from tritonrank.recipe import Recipe

REPORT = "report.html"

console = Console()


def record(recipe: Recipe, workspace: Workspace, stages: Sequence[Stage]) -> None:
    """Record what all stages made, and log it where the recipe says so, unless that was done before.

    Raises:
        StorageError: it cannot be written.
    """
    if (recorded := current_build(workspace.root)) is not None:
        track(recorded, recipe.tracking)
        return
    folders = {stage.folder.name: stage.folder for stage in stages}
    settings = recipe.model_dump(mode="json")
    build, is_new = record_build(workspace.root, settings, folders, lambda folder: _add_report(workspace, folder))
    if is_new:
        _say(f"recorded as {build.folder}")
    track(build, recipe.tracking)


def _add_report(workspace: Workspace, folder: Path) -> None:
    from tritonrank.report.page import make_report

    try:
        make_report(workspace.root, folder / REPORT)
    except TritonRankError as error:  # a build is worth its record without its page
        _say(f"without a report: {error}")


def _say(text: str) -> None:
    console.print(f"{'':<10} {text}", markup=False, highlight=False, soft_wrap=True)
