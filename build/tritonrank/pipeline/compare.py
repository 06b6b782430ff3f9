"""Stage ``compare``: does the ranker beat what needs no training (report/compare.py)?"""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("torch", "transformers", "numpy", "polars")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        return {"seed": recipe.seed, "gate": {"training": recipe.gate.training}}

    def make(draft: Draft) -> None:
        from tritonrank.report.compare import compare

        compare(recipe, workspace, draft)

    parents = {"dataset": workspace.dataset, "teacher": workspace.teacher}
    return Stage("compare", workspace.comparison, settings, parents, make, REVISION, TOOLS)
