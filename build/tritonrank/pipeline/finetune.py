"""Stage ``finetune``: a pretrained encoder becomes a ranker, the teacher of all that follows (train/finetune.py).

A recipe with ``model.checkpoint`` takes that ranker as it is.
"""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from tritonrank.artifacts import Draft, read_manifest
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, TritonRankError
from tritonrank.rankers.checkpoint_source import identity
from tritonrank.rankers.text_budgets import text_settings
from tritonrank.recipe import Recipe
from tritonrank.train.teacher import teacher_folder

REVISION = 1
TOOLS = ("torch", "transformers", "tokenizers", "numpy")
TOOLS_OF_COPY = ("transformers", "tokenizers")
"""Of a ready checkpoint nothing is computed: these write its files."""

console = Console()


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        return {
            "seed": recipe.seed,
            "text": text_settings(recipe),
            "model": recipe.model.chosen(),
            "model_identity": identity(recipe.model.source, recipe.model.revision),
            "finetune": recipe.finetune.chosen(),
            "teacher_identity": _teacher_identity(recipe),
        }

    def make(draft: Draft) -> None:
        from tritonrank.train.finetune import finetune

        finetune(recipe, workspace, draft)
        show_training(recipe, workspace, "finetune", draft.metrics, recipe.finetune.chosen())

    tools = TOOLS_OF_COPY if recipe.model.checkpoint else TOOLS
    parents = {"dataset": workspace.dataset} | ({"images": workspace.images} if recipe.images else {})
    return Stage("finetune", workspace.teacher, settings, parents, make, REVISION, tools)


def show_training(
    recipe: Recipe, workspace: Workspace, section: str, metrics: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Write the page of a training beside the artifacts; what was trained is worth it without."""
    from tritonrank.report.training_page import write_training_page

    try:
        page = write_training_page(workspace.root, recipe.name, section, metrics, settings)
    except TritonRankError as error:
        console.print(f"{'':<10} without a page of the training: {error}", markup=False, highlight=False)
    else:
        if page:
            console.print(f"{'':<10} curves of the training: {page}", markup=False, highlight=False, soft_wrap=True)


def check_models(recipe: Recipe, workspace: Workspace) -> None:
    """Load what the recipe names and let go of it again, so that what cannot be used shows before any work.

    Nothing is loaded where the teacher was made from the same models before.

    Raises:
        ArtifactError: a model or its tokenizer cannot be used.
        RecipeError: the token budgets exceed what the model can take, or the template holds a token that it may not.
    """
    if recipe.finetune.teacher and not recipe.model.checkpoint:
        from tritonrank.train.finetune import check_teacher

        check_teacher(teacher_folder(recipe.finetune.teacher))
    try:
        made_from = read_manifest(workspace.teacher).settings
    except ArtifactError:
        made_from = {}
    if made_from == json.loads(json.dumps(stage(recipe, workspace).settings())):
        return
    from tritonrank.train.finetune import check_model

    check_model(recipe)


def _teacher_identity(recipe: Recipe) -> str | None:
    """Of the ranker that this one learns from beside the labels."""
    if recipe.model.checkpoint or not recipe.finetune.teacher:
        return None
    from tritonrank.judge.evaluate import content_hash  # not above: it comes with the engines

    return content_hash(teacher_folder(recipe.finetune.teacher))
