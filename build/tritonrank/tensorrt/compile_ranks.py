"""Plans of a ranker whose layers several GPUs compute together: one per rank.

The graph of each precision that the recipe names is cut (``shard.py``) and every rank's shard compiled like any other
graph (``compile.py``). Triton's TensorRT backend runs all ranks from one process; it allows one optimization profile
and no CUDA graphs, so the profile spans all sizes, and a shared-context plan takes one request at a time.

    plans/<precision>-tp<N>/    model.plan.rank0 ... model.plan   plan.json
"""

import os
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from tritonrank_runtime.architectures import architecture_of_inputs
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.shard_runner import read_shards, shard_file
from tritonrank_runtime.text import RequestTokenizer, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.recipe import Recipe
from tritonrank.tensorrt.compile import (
    Builder,
    build_plan,
    find_builder,
    identify,
)
from tritonrank.tensorrt.plans import PLAN_FILE, TENSORRT, rebuild_command, version_numbers
from tritonrank.tensorrt.profiles import Profile, Range, profiles_of

OLDEST_TENSORRT = (11, 0)
"""From here on TensorRT runs networks with collectives on several devices."""
TYPICAL_CANDIDATES = 100
"""Kernels are chosen for this many, or for the largest bucket if that is smaller."""

console = Console()


def find_ranks_builder(precision: str, ranks: int) -> Builder:
    """As ``find_builder``, for networks of several devices.

    Raises:
        ArtifactError: as ``find_builder``, or TensorRT has no collectives.
    """
    builder = find_builder(precision, ranks)
    if builder.name == TENSORRT and version_numbers(builder.version) < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        again = rebuild_command(precision, ranks)
        raise ArtifactError(f"TensorRT {builder.version} has no collectives; {oldest} or later: {again}")
    return builder


def compile_precision_ranks(
    recipe: Recipe, workspace: Workspace, precision: str, builder: Builder, draft: Draft
) -> None:
    """Write the plans of all ranks of one precision.

    Args:
        recipe: its tensorrt section, and tensor_parallel.
        workspace: with the graph of that precision and its shards.
        precision: one of tensorrt.precisions.
        builder: what compiles.
        draft: gets the plans.

    Raises:
        ArtifactError: TensorRT refuses a shard.
    """
    source, shards = workspace.tensorrt_graph(recipe, precision), workspace.shards_of(precision)
    copy_text_files(source, draft.folder)
    inputs = read_shards(shards)["graphs"][MODEL_FILE]["inputs"]
    profile = one_profile(profiles_of(recipe, RequestTokenizer.from_folder(source), inputs))
    for rank in range(recipe.tensor_parallel):
        graph = shards / shard_file(rank, MODEL_FILE)
        plan = build_plan(graph, [profile], recipe.tensorrt, builder, workspace.plans)
        (draft.folder / rank_plan_file(rank)).write_bytes(plan)
    os.link(draft.folder / rank_plan_file(0), draft.folder / PLAN_FILE)  # the backend wants one of this name, too
    # Of the graph that was cut, as for a whole plan: whoever assembles compares it with the recipe's.
    identity = identify(draft.folder, recipe, precision, builder, [profile], source / MODEL_FILE)
    sizes = [(draft.folder / rank_plan_file(rank)).stat().st_size for rank in range(recipe.tensor_parallel)]
    draft.metrics |= {"plan": asdict(identity), "ranks": recipe.tensor_parallel, "rank_bytes": sizes}
    console.print(
        f"  {precision} by {builder.name} {builder.version}: {' + '.join(f'{size / 1e6:.0f}' for size in sizes)} MB "
        f"in {len(sizes)} ranks, one profile",
        highlight=False,
    )


def rank_plan_file(rank: int) -> str:
    """What Triton's TensorRT backend looks for beside model.plan with multi_device_per_rank_engines."""
    return f"{PLAN_FILE}.rank{rank}"


def one_profile(profiles: Sequence[Profile]) -> Profile:
    """A profile that holds what all of these hold, one request at a time."""
    architecture = architecture_of_inputs(profiles[0])
    merged = {}
    for name in profiles[0]:
        smallest = tuple(map(min, *(profile[name].smallest for profile in profiles), profiles[0][name].smallest))
        largest = tuple(map(max, *(profile[name].largest for profile in profiles), profiles[0][name].largest))
        if architecture.batch_is_request:
            largest = (1, *largest[1:])
        best = list(largest)
        if (axis := architecture.candidates_axis(name)) is not None:
            best[axis] = min(best[axis], TYPICAL_CANDIDATES)
        merged[name] = Range(smallest, tuple(best), largest)
    return merged
