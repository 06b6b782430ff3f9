"""Stage ``quantize``: the FP32 graphs become smaller ones for CPUs, INT8 (quantize/int8.py) or weights alone in few
bits (quantize/weight_only.py)."""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import gate_settings
from tritonrank.quantize.reduced_range import has_reduced_range
from tritonrank.rankers.architectures import architecture_named
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("onnx", "onnxruntime", "numpy", "tokenizers")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        is_decoder = (
            architecture_named(recipe.model.architecture).norms_first and recipe.quantize.method == "static-int8"
        )
        return {
            # Not of the others, whose graphs are what they were.
            **({"rows": "all" if recipe.tensor_parallel == 1 else "whole"} if is_decoder else {}),
            "quantize": recipe.quantize.model_dump(mode="json"),
            "gate": gate_settings(recipe, "quantize"),
            "reduce_range": has_reduced_range(),  # another CPU builds another artifact
            "seed": recipe.seed,
        }

    def make(draft: Draft) -> None:
        if recipe.quantize.method == "static-int8":
            from tritonrank.quantize.int8 import quantize

            quantize(recipe, workspace, draft)
        else:
            from tritonrank.quantize.weight_only import quantize_weights

            quantize_weights(recipe, workspace, draft)

    parents = {"onnx": workspace.onnx, "dataset": workspace.dataset}
    return Stage("quantize", workspace.quantized(recipe), settings, parents, make, REVISION, TOOLS)
