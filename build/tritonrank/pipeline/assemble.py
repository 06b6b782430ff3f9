"""Stage ``assemble``: a model artifact becomes the repository that Triton loads on CPUs (serve/assemble.py)."""

from typing import Any

from tritonrank_runtime.cores import available_cores

from tritonrank.artifacts import Draft, sha256_file
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline.calibrate import fitting_calibration
from tritonrank.recipe import Recipe
from tritonrank.serve.recommend_model import recommend_folders
from tritonrank.serve.sources import python_sources, recommend_sources
from tritonrank.serve.triton_config import score_instances

REVISION = 5


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def make(draft: Draft) -> None:
        from tritonrank.serve.assemble import assemble

        assemble(recipe, workspace, draft)

    return Stage(
        "assemble",
        workspace.repository,
        lambda: assemble_settings(recipe) | recommend_settings(recipe),
        {"model": workspace.loaded_model(recipe)}
        | ({"engine": folder} if (folder := workspace.chosen_engine(recipe)) else {})
        | fitting_calibration(recipe, workspace)
        | recommend_folders(recipe, workspace),
        make,
        REVISION,
        golden_tools(recipe),
    )


def assemble_settings(recipe: Recipe) -> dict[str, Any]:
    """What a repository depends on beside the model, for any target."""
    return {
        "serve": recipe.serve.model_dump(mode="json"),
        "score_instances": score_instances(recipe.serve, available_cores(), recipe.tensor_parallel),
        "sources": {place: sha256_file(path) for place, path in python_sources().items()},
    }


def recommend_settings(recipe: Recipe) -> dict[str, Any]:
    """The Python files of the model that only some recipes have."""
    if recipe.retrieval is None:
        return {}
    return {"recommend": {place: sha256_file(path) for place, path in recommend_sources().items()}}


def golden_tools(recipe: Recipe) -> tuple[str, ...]:
    """What computes the scores of golden requests, which a server has to give too."""
    return ("torch" if recipe.serve.executor == "torch" else "onnxruntime", "numpy", "tokenizers")
