"""Stage ``export-batched``: a shared-context ranker as the one graph that TensorRT needs (graphs/batched.py)."""

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("torch", "transformers", "onnx", "onnxruntime")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def make(draft: Draft) -> None:
        from tritonrank.graphs.batched import export_batched

        export_batched(recipe, workspace, draft)

    parents = {"checkpoint": workspace.ranker(recipe), "onnx": workspace.onnx}
    return Stage("export-batched", workspace.onnx_batched, dict, parents, make, REVISION, TOOLS)
