"""Stage ``compile``: a graph becomes a TensorRT plan, on the machine that serves it (tensorrt/compile.py).

It is no stage of ``build``: it needs TensorRT, and what it makes fits one GPU. So its settings name the TensorRT and
the GPU, and ``plan.json`` beside a plan says where it may run.
"""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe
from tritonrank.tensorrt.compile import Builder, compile_precision, targets

REVISION = 1
TOOLS = ("onnx",)


def stage(recipe: Recipe, workspace: Workspace, precision: str, builder: Builder) -> Stage:
    """The plan of one precision: ``plans/<precision>``."""

    def make(draft: Draft) -> None:
        compile_precision(recipe, workspace, precision, builder, draft)

    return Stage(
        "compile",
        workspace.plans / precision,
        lambda: compile_settings(recipe, precision, builder),
        {"graph": workspace.tensorrt_graph(recipe, precision)},
        make,
        REVISION,
        TOOLS,
    )


def compile_settings(recipe: Recipe, precision: str, builder: Builder) -> dict[str, Any]:
    """What a plan depends on beside its graph: the recipe, TensorRT and the GPU."""
    settings = recipe.tensorrt.model_dump(mode="json", exclude={"precisions", "noise", "half_noise"})
    return {
        "precision": precision,
        "tensorrt": settings,
        "builder": [builder.name, builder.version, *targets(builder)],
        "gpu": builder.gpu.name if builder.gpu else "",
    }
