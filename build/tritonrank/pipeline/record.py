"""Record a finished build in the history of builds, and let the first good one be served (``artifacts/builds.py``)."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tritonrank.artifacts.builds import RecordedBuild
from tritonrank.artifacts.record_builds import current_build, record_build
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import TritonRankError
from tritonrank.pipeline.tracking import track
from tritonrank.recipe import Recipe

REPORT = "report.html"

console = Console()


def record(recipe: Recipe, workspace: Workspace, stages: Sequence[Stage], root: Path | None = None) -> RecordedBuild:
    """Record what all stages made, and log it where the recipe says so, unless that was done before.

    Args:
        recipe: what was built.
        workspace: where the stages' folders are.
        stages: all of them.
        root: ``artifacts/<recipe>``, whose history it becomes part of; default: that of the workspace.

    Returns:
        The build's record.

    Raises:
        StorageError: it cannot be written.
    """
    root = root or workspace.root
    if (recorded := current_build(root, workspace.root)) is not None:
        track(recorded, recipe.tracking)
        return recorded
    folders = {stage.folder.name: stage.folder for stage in stages}
    settings = recipe.model_dump(mode="json")
    build, is_new = record_build(root, settings, folders, lambda folder: _add_report(workspace, folder), workspace.root)
    if is_new:
        _say(f"recorded as {build.folder}")
    track(build, recipe.tracking)
    return build


def _add_report(workspace: Workspace, folder: Path) -> None:
    from tritonrank.report.page import make_report

    try:
        make_report(workspace.root, folder / REPORT)
    except TritonRankError as error:  # a build is worth its record without its page
        _say(f"without a report: {error}")


def _say(text: str) -> None:
    console.print(f"{'':<10} {text}", markup=False, highlight=False, soft_wrap=True)
