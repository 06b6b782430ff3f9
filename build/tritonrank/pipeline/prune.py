"""Stage ``prune``: the teacher becomes a smaller dense ranker (shrink/prune.py)."""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import gate_settings
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("torch", "transformers", "tokenizers", "numpy")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        return {
            "seed": recipe.seed,
            "tensor_parallel": recipe.tensor_parallel,
            "prune": recipe.prune.model_dump(mode="json") if recipe.prune else None,
            "gate": gate_settings(recipe, "prune"),
        }

    def make(draft: Draft) -> None:
        from tritonrank.shrink.prune import prune

        prune(recipe, workspace, draft)

    parents = {"teacher": workspace.teacher, "dataset": workspace.dataset}
    return Stage("prune", workspace.pruned, settings, parents, make, REVISION, TOOLS)
