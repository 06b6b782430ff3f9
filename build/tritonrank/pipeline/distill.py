"""Stage ``distill``: the pruned ranker learns the ranking of its teacher (shrink/distill.py)."""

from typing import Any

from tritonrank.artifacts import Draft, stage_key
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import gate_settings
from tritonrank.pipeline.finetune import show_training
from tritonrank.recipe import FinetuneSettings, Recipe

REVISION = 1
TOOLS = ("torch", "transformers", "tokenizers", "numpy")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def training() -> dict[str, Any]:
        section = recipe.distill
        return {
            "seed": recipe.seed,
            "distill": section.model_dump(mode="json") if section else None,
            "training": _training(section.training(recipe.finetune)) if section else None,
        }

    def make(draft: Draft) -> None:
        from tritonrank.shrink.distill import distill

        # Without the gate: after it has closed, another budget does not mean training again.
        distill(recipe, workspace, draft, stage_key("distill", training(), draft.parents, REVISION, TOOLS))
        show_training(recipe, workspace, "distill", draft.metrics, training()["distill"] or {})

    return Stage(
        "distill",
        workspace.student,
        lambda: training() | {"gate": gate_settings(recipe, "distill")},
        {"pruned": workspace.pruned, "dataset": workspace.dataset, "teacher": workspace.teacher},
        make,
        REVISION,
        TOOLS,
    )


def _training(settings: FinetuneSettings) -> dict[str, Any]:
    return {name: value for name, value in settings.chosen().items() if name != "teacher"}
