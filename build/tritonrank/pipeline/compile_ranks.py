"""Stages of a ranker whose layers several GPUs compute together: shards of a graph, and a plan of each.

As ``compile``, they are no stages of ``build``.
"""

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline.compile import compile_settings
from tritonrank.pipeline.shard import shard_settings, sharding_stage
from tritonrank.recipe import Recipe
from tritonrank.tensorrt.compile import Builder
from tritonrank.tensorrt.compile_ranks import compile_precision_ranks

REVISION = 1
TOOLS = ("onnx",)


def shards(recipe: Recipe, workspace: Workspace, precision: str) -> Stage:
    """The graph of one precision in ranks: ``shards-<precision>``."""
    graph = workspace.tensorrt_graph(recipe, precision)
    return sharding_stage(recipe, workspace, graph, workspace.shards_of(precision))


def stage(recipe: Recipe, workspace: Workspace, precision: str, builder: Builder) -> Stage:
    """The plans of all ranks of one precision: ``plans/<precision>-tp<ranks>``."""

    def make(draft: Draft) -> None:
        compile_precision_ranks(recipe, workspace, precision, builder, draft)

    return Stage(
        "compile",
        workspace.rank_plans(recipe, precision),
        lambda: compile_settings(recipe, precision, builder) | shard_settings(recipe),
        {"shards": workspace.shards_of(precision)},
        make,
        REVISION,
        TOOLS,
    )
