"""Stage ``blend``: the ranker's score and what retrieval knows become one order (retrieval/blend_make.py)."""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import gate_settings
from tritonrank.recipe import Recipe

REVISION = 5
TOOLS = ("lightgbm", "numpy", "scipy")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        return {
            "seed": recipe.seed,
            "blend": recipe.blend.model_dump(mode="json"),
            "sources": list(recipe.retrieval.sources) if recipe.retrieval else [],
            "gate": gate_settings(recipe, "blend"),
        }

    def make(draft: Draft) -> None:
        from tritonrank.retrieval.blend_make import make_blend

        make_blend(recipe, workspace, draft)

    parents = {
        "dataset": workspace.dataset,
        "model": workspace.served_model(recipe),
        "catalogue": workspace.catalogue,
    }
    return Stage("blend", workspace.blend, settings, parents, make, REVISION, TOOLS)
