"""Stage ``fp16``: the FP32 graph becomes FP16 where that does not matter (quantize/halve.py)."""

from pathlib import Path
from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import gate_settings
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("onnx", "onnxruntime", "numpy", "tokenizers")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    return halving_stage("fp16", workspace.fp16, workspace.batched_fp32(recipe), recipe, workspace)


def halving_stage(verb: str, folder: Path, source: Path, recipe: Recipe, workspace: Workspace) -> Stage:
    """``fp16`` and ``mix`` do the same with different graphs.

    Args:
        verb: the stage.
        folder: of its artifact.
        source: of the graph to halve.
        recipe: what is built.
        workspace: where.
    """

    def settings() -> dict[str, Any]:
        return {
            "tensorrt": recipe.tensorrt.model_dump(mode="json", include={"half_noise"}),
            "quantize": recipe.quantize.model_dump(mode="json", include={"calibration_examples"}),
            "gate": gate_settings(recipe, "quantize"),
            "seed": recipe.seed,
        }

    def make(draft: Draft) -> None:
        from tritonrank.quantize.halve import halve

        halve(recipe, workspace, source, draft)

    parents = {"source": source, "exact": workspace.batched_fp32(recipe), "dataset": workspace.dataset}
    return Stage(verb, folder, settings, parents, make, REVISION, TOOLS)
