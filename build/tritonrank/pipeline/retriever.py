"""Stage ``retriever``: the encoder that finds items by history and query (retrieval/retriever.py)."""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import gate_settings
from tritonrank.quantize.reduced_range import has_reduced_range
from tritonrank.rankers.checkpoint_source import identity
from tritonrank.rankers.text_budgets import text_settings
from tritonrank.recipe import Recipe, RetrievalSettings

REVISION = 1
TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "numpy")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    retrieval = recipe.retrieval or RetrievalSettings()
    base = recipe.model.untrained

    def settings() -> dict[str, Any]:
        return {
            "retrieval": retrieval.model_dump(mode="json", include={"epochs", "learning_rate"}),
            "text": text_settings(recipe),
            "base": base.source,
            "base_identity": identity(base.source, base.revision),
            "quantize": recipe.quantize.model_dump(mode="json", include={"method", "exclude"}),
            "gate": gate_settings(recipe, "quantize"),
            "reduce_range": has_reduced_range(),
            "seed": recipe.seed,
        }

    def make(draft: Draft) -> None:
        from tritonrank.retrieval.retriever import make_retriever

        make_retriever(recipe, workspace, draft)

    return Stage("retriever", workspace.retriever, settings, {"dataset": workspace.dataset}, make, REVISION, TOOLS)
