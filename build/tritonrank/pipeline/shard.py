"""Stage ``shard``: a graph is cut into ranks that compute each layer together (parallel/shard.py)."""

from pathlib import Path
from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("onnx", "onnxruntime", "numpy", "tokenizers")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    """Of the model that a CPU serves."""
    return sharding_stage(recipe, workspace, workspace.served_model(recipe), workspace.shards)


def sharding_stage(recipe: Recipe, workspace: Workspace, model: Path, folder: Path) -> Stage:
    """Of any model artifact: TensorRT compiles the shards of each precision.

    Args:
        recipe: its tensor_parallel says into how many ranks.
        workspace: where the dataset is.
        model: folder of the graphs to cut.
        folder: of the shards.
    """

    def make(draft: Draft) -> None:
        from tritonrank.graphs.parallel.shard import shard

        shard(recipe, workspace, model, draft)

    parents = {"model": model, "dataset": workspace.dataset}
    return Stage("shard", folder, lambda: shard_settings(recipe), parents, make, REVISION, TOOLS)


def shard_settings(recipe: Recipe) -> dict[str, Any]:
    """What the shards depend on; those of PyTorch say on what they compute."""
    by_torch = {"device": recipe.serve.device} if recipe.serve.executor == "torch" else {}
    return {"tensor_parallel": recipe.tensor_parallel} | by_torch
