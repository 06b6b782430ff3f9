"""Stage ``quantize-tensorrt``: the FP32 graph becomes INT8 as TensorRT takes it (quantize/int8_tensorrt.py)."""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import gate_settings
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("onnx", "onnxruntime", "numpy", "tokenizers")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        quantize = recipe.quantize.model_dump(mode="json", include={"calibration_examples", "exclude"})
        tensorrt = recipe.tensorrt.model_dump(mode="json", include={"noise"})
        gate = gate_settings(recipe, "quantize")
        return {"quantize": quantize, "tensorrt": tensorrt, "gate": gate, "seed": recipe.seed}

    def make(draft: Draft) -> None:
        from tritonrank.quantize.int8_tensorrt import quantize_tensorrt

        quantize_tensorrt(recipe, workspace, draft)

    parents = {"source": workspace.batched_fp32(recipe), "dataset": workspace.dataset}
    return Stage("quantize-tensorrt", workspace.int8_tensorrt, settings, parents, make, REVISION, TOOLS)
