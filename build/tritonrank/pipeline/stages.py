"""The stages in order: dataset -> teacher (-> pruned -> student) -> onnx -> int8 -> repository -> summary.

Each one is declared in its own file beside this one. A stage runs when something that its artifact depends on has
changed since it was last published (``artifacts/stage.py``), and is skipped otherwise. Stages that a recipe does not
ask for are left out; what comes after them works on what is there.
"""

from collections.abc import Callable
from typing import NamedTuple

from tritonrank.artifacts import tidy
from tritonrank.artifacts.locks import only_writer, release, take
from tritonrank.artifacts.stage import Stage, bring_up_to_date, say_up_to_date, take_part
from tritonrank.artifacts.workspace import Workspace, is_batched_already
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.pipeline import (
    assemble,
    blend,
    catalogue,
    compare,
    distill,
    engine,
    export,
    export_batched,
    finetune,
    fp16,
    images,
    mix,
    prepare,
    prune,
    quantize,
    quantize_tensorrt,
    retriever,
    shard,
    summarize,
)
from tritonrank.pipeline.estimates import remember
from tritonrank.pipeline.outlook import coming_stages, say_outlook
from tritonrank.pipeline.record import record
from tritonrank.recipe import Recipe
from tritonrank.system import progress


def _unless_retrieval(recipe: Recipe) -> str | None:
    return None if recipe.retrieval else "the recipe has no retrieval section"


class Listed(NamedTuple):
    """A stage of the list below."""

    stage: Callable[[Recipe, Workspace], Stage]
    why_not: Callable[[Recipe], str | None] = lambda recipe: None
    """why a recipe does not have this stage; None: it has"""


COMPARE = "compare"

STAGES = (
    Listed(prepare.stage),
    Listed(images.stage, lambda recipe: None if recipe.images else "the recipe has no images section"),
    Listed(finetune.stage),
    Listed(compare.stage),
    Listed(prune.stage, lambda recipe: None if recipe.prune else "the recipe has no prune section"),
    Listed(distill.stage, lambda recipe: None if recipe.distill else "the recipe has no distill section"),
    Listed(export.stage),
    Listed(quantize.stage, lambda recipe: "quantize.method is none" if recipe.quantize.method == "none" else None),
    Listed(export_batched.stage, lambda recipe: _unless_precision(recipe) or _unless_batched(recipe)),
    Listed(fp16.stage, lambda recipe: _unless_precision(recipe, "fp16")),
    Listed(quantize_tensorrt.stage, lambda recipe: _unless_precision(recipe, "int8", "int8-fp16")),
    Listed(mix.stage, lambda recipe: _unless_precision(recipe, "int8-fp16")),
    Listed(shard.stage, lambda recipe: "tensor_parallel is 1" if recipe.tensor_parallel == 1 else None),
    Listed(retriever.stage, _unless_retrieval),
    Listed(catalogue.stage, _unless_retrieval),
    Listed(
        blend.stage,
        lambda recipe: _unless_retrieval(recipe) or ("blend.method is none" if recipe.blend.method == "none" else None),
    ),
    Listed(engine.stage, engine.why_not),
    Listed(assemble.stage),
    Listed(summarize.stage),
)


def stages(recipe: Recipe, workspace: Workspace, data: prepare.Engine = prepare.HERE) -> list[Stage]:
    """All stages of the recipe in the order in which they run; ``data`` makes the dataset."""
    chosen = [listed for listed in STAGES if listed.why_not(recipe) is None]
    return [
        prepare.stage(recipe, workspace, data) if listed.stage is prepare.stage else listed.stage(recipe, workspace)
        for listed in chosen
    ]


def run_stages(
    recipe: Recipe,
    workspace: Workspace,
    until: str | None = None,
    *,
    force: str | None = None,
    data: prepare.Engine = prepare.HERE,
) -> None:
    """Run what is not up to date, one line per stage.

    One process at a time builds in a workspace: a second one waits for the first, unless all is up to date. What all
    stages have made is recorded in the history of builds.

    Args:
        recipe: what to build.
        workspace: where.
        until: the last verb to run; all of them by default.
        force: run this verb even if it is up to date.
        data: what makes the dataset.

    Raises:
        RecipeError: the recipe has no stage ``until``; without it all stages would run.
    """
    chosen = _up_to(until, recipe, workspace, data)
    if force is None and _all_current(chosen):
        _tidy_where_free(chosen, workspace)
        for stage in chosen:
            say_up_to_date(stage)
        if until is None:
            record(recipe, workspace, chosen)
        return
    with only_writer(workspace.root):
        for stage in chosen:
            tidy(stage.folder)
        coming = coming_stages(chosen, force)
        expected = say_outlook(recipe, workspace, coming)
        with progress.whole([stage.verb for stage in coming], expected):
            for stage in chosen:
                # After the data, which are at fault more often and are read without all that models need.
                if stage.verb == "finetune":
                    finetune.check_models(recipe, workspace)
                with progress.stage(stage.verb):
                    bring_up_to_date(
                        stage,
                        force=stage.verb == force,
                        made=lambda verb, manifest: remember(recipe, workspace, verb, manifest.seconds),
                    )
        if until is None:
            record(recipe, workspace, chosen)


def take_part_in(verb: str, recipe: Recipe, workspace: Workspace) -> None:
    """Run one stage as one of several processes of torchrun, whether it is up to date or not.

    What it starts from has to exist already: every process comes through here, and only one may write.

    Raises:
        ArtifactError: a parent is missing.
        RecipeError: the recipe has no such stage.
    """
    take_part(_up_to(verb, recipe, workspace)[-1])


def _up_to(until: str | None, recipe: Recipe, workspace: Workspace, data: prepare.Engine = prepare.HERE) -> list[Stage]:
    """The stages of a recipe up to a verb."""
    chosen = stages(recipe, workspace, data)
    verbs = [stage.verb for stage in chosen]
    if until is None:
        return chosen
    if until not in verbs:
        absent = {listed.stage(recipe, workspace).verb: listed.why_not(recipe) for listed in STAGES}
        why = f"; {absent[until]}" if absent.get(until) else ""
        raise RecipeError(f"{recipe.name}: no stage {until}{why}. Stages: {', '.join(verbs)}")
    through = chosen[: verbs.index(until) + 1]
    # It judges, which takes minutes: who asks for a later stage alone waits for it only where it may end the build.
    may_skip = until != COMPARE and recipe.gate.training != "stop"
    return [stage for stage in through if not (may_skip and stage.verb == COMPARE)]


def _all_current(chosen: list[Stage]) -> bool:
    """Whether nothing is to be done, while another process may be writing."""
    try:
        return all(stage.why_anew() is None for stage in chosen)
    except ArtifactError:
        return False


def _tidy_where_free(chosen: list[Stage], workspace: Workspace) -> None:
    """Remove what killed builds left, unless another process is writing just now."""
    taken = take(workspace.root, wait=False)
    if taken is False:
        return
    try:
        for stage in chosen:
            tidy(stage.folder)
    finally:
        if taken:
            release(workspace.root)


def _unless_precision(recipe: Recipe, *wanted: str) -> str | None:
    """Why there is no graph of these precisions, or of any."""
    if recipe.images:
        return "rankers of images are served on CPUs alone"
    named = set(recipe.tensorrt.precisions)
    if named & set(wanted) if wanted else named:
        return None
    return f"tensorrt.precisions does not name {' or '.join(wanted)}" if wanted else "tensorrt.precisions is empty"


def _unless_batched(recipe: Recipe) -> str | None:
    return "a joint ranker's graph is batched already" if is_batched_already(recipe) else None
