"""Stage ``calibrate``, which only its own verb runs: probabilities for the scores of a build (judge/calibration.py).

The repository has the result as a parent as long as it was fitted to the model that the repository serves; after
another build it is left out until it is made anew.
"""

from pathlib import Path
from typing import Any, Literal

from tritonrank.artifacts import MANIFEST, Draft, read_manifest
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("scikit-learn", "onnxruntime", "numpy", "tokenizers")


def stage(recipe: Recipe, workspace: Workspace, method: Literal["platt", "isotonic"]) -> Stage:
    def settings() -> dict[str, Any]:
        return {"method": method}

    def make(draft: Draft) -> None:
        from tritonrank.judge.calibration import calibrate

        calibrate(recipe, workspace, method, draft)

    parents = {"model": workspace.loaded_model(recipe), "dataset": workspace.dataset}
    return Stage("calibrate", workspace.calibration, settings, parents, make, REVISION, TOOLS)


def fitting_calibration(recipe: Recipe, workspace: Workspace) -> dict[str, Path]:
    """The calibration as a parent of the repository; none where there is none, or it was fitted to another model."""
    model = workspace.loaded_model(recipe)
    if not all((folder / MANIFEST).is_file() for folder in (workspace.calibration, model)):
        return {}
    try:
        fits = read_manifest(workspace.calibration).parents.get("model") == read_manifest(model).artifact
    except ArtifactError:
        return {}
    return {"calibration": workspace.calibration} if fits else {}
