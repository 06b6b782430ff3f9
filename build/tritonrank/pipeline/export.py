"""Stage ``export``: the smallest checkpoint of the recipe becomes ONNX (graphs/export.py)."""

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def make(draft: Draft) -> None:
        from tritonrank.graphs.export import export

        export(recipe, workspace, draft)

    parents = {"checkpoint": workspace.ranker(recipe)}
    return Stage("export", workspace.onnx, dict, parents, make, REVISION, TOOLS)
