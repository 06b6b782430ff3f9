"""Stage ``prepare``: two tables become lists to rank, for training and for judging (data/prepare.py)."""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.loading import load_tables, source_fingerprints
from tritonrank.rankers.text_budgets import tokenizer_identity
from tritonrank.recipe import Recipe

REVISION = 3
TOOLS = ("numpy", "polars", "tokenizers", "transformers")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    """Other budgets count the texts again; the dataset comes out as it was, so that nothing after it is made again."""

    def settings() -> dict[str, Any]:
        fingerprints = source_fingerprints(recipe.data)
        if fingerprints is None:
            # Raises with everything that is wrong, not only the first missing file.
            load_tables(recipe.data, recipe.seed, recipe.text.template_fields)
        return {
            # The catalogue reads data.fields, which no dataset depends on.
            "data": recipe.data.model_dump(mode="json", exclude={*recipe.data.LOCATIONS, "fields"}),
            "text": recipe.text.model_dump(mode="json"),
            "tokenizer": tokenizer_identity(recipe),
            "architecture": recipe.model.architecture,
            "examples": recipe.examples.model_dump(mode="json"),
            "seed": recipe.seed,
            "sources": fingerprints,
        }

    def make(draft: Draft) -> None:
        from tritonrank.data.prepare import prepare

        prepare(recipe, draft)

    return Stage("prepare", workspace.dataset, settings, {}, make, REVISION, TOOLS)
