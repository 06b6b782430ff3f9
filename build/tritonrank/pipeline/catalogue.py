"""Stage ``catalogue``: the items as retrieval sees them, with indexes and neighbour lists (retrieval/catalogue.py)."""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe, TablesData

REVISION = 4
TOOLS = ("bm25s", "numpy", "onnxruntime", "polars", "PyStemmer", "scipy", "tokenizers", "usearch")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        from tritonrank.data.item_fields import field_fingerprints

        assert recipe.retrieval is not None
        fields = recipe.data.field_columns if isinstance(recipe.data, TablesData) else {}
        return {
            "retrieval": recipe.retrieval.model_dump(mode="json", include={"sources", "half_life_days"}),
            "text": {"item_template": recipe.text.item_template},
            "data": {"source": recipe.data.source, "fields": fields},
            "sources": field_fingerprints(recipe.data),
        }

    def make(draft: Draft) -> None:
        from tritonrank.retrieval.catalogue import make_catalogue

        make_catalogue(recipe, workspace, draft)

    parents = {"dataset": workspace.dataset, "retriever": workspace.retriever}
    return Stage("catalogue", workspace.catalogue, settings, parents, make, REVISION, TOOLS)
