"""Stage ``engine``: what computes the served ranker on this CPU, by measurement and by the gate
(judge/engine_choice.py)."""

from pathlib import Path
from typing import Any

import tritonrank_runtime
from tritonrank_runtime.cores import available_cores

from tritonrank.artifacts import Draft, sha256_file
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import gate_settings
from tritonrank.recipe import Recipe
from tritonrank.system.machine import cpu_flags, processor_name

REVISION = 1
TOOLS = ("onnx", "onnxruntime", "numpy", "tokenizers", "safetensors")


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        return {
            "serve": recipe.serve.model_dump(mode="json", include={"executor", "max_candidates"}),
            "gate": gate_settings(recipe, "quantize"),
            "seed": recipe.seed,
            # Another machine may choose otherwise, and so may another engine.
            "machine": {"processor": processor_name(), "cores": available_cores(), "flags": sorted(cpu_flags())},
            "sources": native_sources(),
        }

    def make(draft: Draft) -> None:
        from tritonrank.judge.engine_choice import choose_engine

        choose_engine(recipe, workspace, draft)

    parents = {
        "model": workspace.served_model(recipe),
        "exact": workspace.onnx,
        "checkpoint": workspace.ranker(recipe),
        "teacher": workspace.teacher,
        "dataset": workspace.dataset,
    }
    return Stage("engine", workspace.engine, settings, parents, make, REVISION, TOOLS)


def why_not(recipe: Recipe) -> str | None:
    """Why a recipe has nothing to choose."""
    if Workspace(Path()).chosen_engine(recipe) is not None:
        return None
    if recipe.tensor_parallel > 1:
        return "tensor_parallel is above 1: ranks are processes of ONNX Runtime"
    serve = recipe.serve
    return f"serve.executor is {serve.executor} on serve.device {serve.device}: nothing is to be chosen"


def native_sources() -> dict[str, str]:
    """Hashes of the native engine's sources."""
    folder = Path(str(tritonrank_runtime.__file__)).parent / "native"
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.suffix in NATIVE_ENDINGS}


NATIVE_ENDINGS = {".cpp", ".h", ".inc"}
