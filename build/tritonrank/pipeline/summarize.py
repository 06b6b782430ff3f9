"""Stage ``summarize``: what the build achieved, baselines and rungs in one table (report/summary.py)."""

from pathlib import Path
from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.rungs import model_rungs
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe

REVISION = 3
TOOLS = ("torch", "transformers", "onnxruntime", "numpy", "polars")
"""Those that judge the baselines, and those whose speed is measured."""


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        return {"seed": recipe.seed}

    def make(draft: Draft) -> None:
        from tritonrank.report.summary import summarize

        summarize(recipe, workspace, draft)

    parents = {"dataset": workspace.dataset, **model_rungs(recipe, workspace), **_recommending(recipe, workspace)}
    return Stage("summarize", workspace.summary, settings, parents, make, REVISION, TOOLS)


def _recommending(recipe: Recipe, workspace: Workspace) -> dict[str, Path]:
    """What the gateway recommends from: part of the build, and so of its identity (``record_builds.build_hash``)."""
    if not recipe.retrieval:
        return {}
    return {"catalogue": workspace.catalogue} | ({"blend": workspace.blend} if recipe.blend.method != "none" else {})
