"""A model artifact becomes a Triton repository for GPUs: targets onnxruntime, tensorrt and tensorrt-tp.

To the outside all targets are alike: the ensemble ``rank`` with the same tensors. Inside, ``score`` is one of Triton's
own backends (``gpu_config.py``). The folder is named for its target, ``repository-tensorrt`` say, and lies beside the
one for CPUs. Golden requests carry the scores of the same graph on the CPU, and how far a GPU may be from them: it adds
up in another order, and a rounding to FP16 or INT8 makes a step of the last digit.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
from rich.console import Console
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.text import RequestTokenizer, TextRules

from tritonrank.artifacts import Draft, Manifest, sha256_file, verify_artifact
from tritonrank.artifacts.stage import Stage, bring_up_to_date
from tritonrank.artifacts.workspace import Target, Workspace
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.pipeline import compile, compile_ranks
from tritonrank.pipeline.assemble import assemble_settings
from tritonrank.pipeline.stages import run_stages, stages
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.recipe import Recipe
from tritonrank.serve.assemble import write_identity_and_golden_cases
from tritonrank.serve.gpu_config import check_room, gpu_configs
from tritonrank.serve.models import told_parameters, write_ensemble, write_warmup_masks
from tritonrank.serve.reference import write_reference
from tritonrank.serve.sources import python_sources
from tritonrank.tensorrt.compile import find_builder, require_precisions
from tritonrank.tensorrt.compile_ranks import (
    find_ranks_builder,
    one_profile,
    rank_plan_file,
)
from tritonrank.tensorrt.plans import IDENTITY_FILE, PLAN_FILE, read_identity, rebuild_command
from tritonrank.tensorrt.profiles import Profile, profiles_from, profiles_of

REVISION = 4
"""Of the stage that assembles."""
TOOLS = ("onnx", "onnxruntime", "numpy", "tokenizers")
ONNXRUNTIME_PRECISIONS = ("fp16", "fp32")
"""What ONNX Runtime gains from on a GPU: INT8 it would compute in floating point between two roundings."""
GOLDEN_SHARES = {"fp32": 0.02, "fp16": 0.02, "int8": 0.15, "int8-fp16": 0.15}
"""How far a score on a GPU may be from the same graph's on the CPU, as a share of the scores' spread. Several times the
noise of each precision, and far less than what wrong tokens or masks do. No GPU has confirmed it yet."""

console = Console()


def build_target(recipe: Recipe, workspace: Workspace, target: Target) -> Path:
    """Compile what the target needs, and assemble it; the folder of the repository.

    Raises:
        ArtifactError, GateError, RecipeError: as ``compile_recipe`` and ``assemble_target``.
    """
    if target is not Target.ONNXRUNTIME:
        _first_precision(recipe, target)  # a fault of the recipe shows before minutes of compilation
        (compile_ranks_of if target is Target.TENSORRT_TP else compile_recipe)(recipe, workspace)
    return assemble_target(recipe, workspace, target)


def check_target(recipe: Recipe, target: Target) -> None:
    """Make sure that a recipe fits a target, and that its plans can be compiled here, before anything is built.

    Raises:
        ArtifactError: there is no TensorRT that can compile them, or no GPU.
        RecipeError: the recipe does not fit the target.
    """
    if target in (Target.TENSORRT, Target.TENSORRT_TP):
        find = find_ranks_builder if target is Target.TENSORRT_TP else find_builder
        find(_first_precision(recipe, target), recipe.tensor_parallel)


def assemble_target(recipe: Recipe, workspace: Workspace, target: Target, *, force: bool = False) -> Path:
    """Assemble plans that were compiled before, or for onnxruntime a graph, which is built if it is not up to date.

    Args:
        recipe: what to serve.
        workspace: where its artifacts are.
        target: any but the CPU.
        force: assemble even if the repository is up to date.

    Returns:
        The folder of the repository.

    Raises:
        ArtifactError: the plans are missing, damaged, or not those of the recipe: compile them first.
        GateError: the graph made the ranking worse than the budget allows.
        RecipeError: the recipe does not fit the target.
    """
    if target is Target.ONNXRUNTIME:
        precision = next((one for one in recipe.tensorrt.precisions if one in ONNXRUNTIME_PRECISIONS), "fp32")
        graph_only = recipe.tensorrt.model_copy(update={"precisions": [precision]})
        build_graphs(recipe.model_copy(update={"tensorrt": graph_only}), workspace)
    else:
        precision = _first_precision(recipe, target)
        _require_current_graph(recipe, workspace, target, precision)
    engine_folder = {
        Target.ONNXRUNTIME: workspace.tensorrt_graph(recipe, precision),
        Target.TENSORRT: workspace.plans / precision,
        Target.TENSORRT_TP: workspace.rank_plans(recipe, precision),
    }[target]
    stage = assembling_stage(recipe, workspace, target, precision, engine_folder)
    bring_up_to_date(stage, force=force)
    return stage.folder


def assembling_stage(
    recipe: Recipe, workspace: Workspace, target: Target, precision: str, engine_folder: Path
) -> Stage:
    """The stage that writes the complete repository of a target.

    Args:
        recipe: its serve section says how to serve, its tensor_parallel on how many GPUs.
        workspace: with the graph of that precision, whose scores are the golden ones, and the dataset, where golden
            requests come from.
        target: any but the CPU.
        precision: one of tensorrt.precisions.
        engine_folder: what the scorer loads: for onnxruntime the folder of that graph, else the plans made of it.

    Raises:
        ArtifactError: the engine is missing, damaged, or not that of the recipe.
        RecipeError: the engine does not hold as many candidates as the recipe allows.
    """
    graph_folder = workspace.tensorrt_graph(recipe, precision)
    engine = _verified(recipe, target, engine_folder)
    profiles = _profiles(recipe, target, graph_folder, engine_folder)
    files = _engine_files(engine_folder, engine, recipe, target)

    def make(draft: Draft) -> None:
        told = told_parameters(score_meaning(graph_folder), TextRules.load(graph_folder))
        configs = gpu_configs(recipe, target, profiles, available_cores(), told)
        write_ensemble(configs, python_sources(("tokenize", "select")), graph_folder, draft.folder)
        for name in files:
            shutil.copyfile(engine_folder / name, draft.folder / "score" / "1" / name)
        write_warmup_masks(configs["score"], draft.folder)
        identity = {"artifact": engine.artifact[:16], "recipe": recipe.name, "stage": engine.stage}
        cases = write_identity_and_golden_cases(
            identity, workspace.dataset, [graph_folder], draft.folder, GOLDEN_SHARES[precision]
        )
        # Rounding moves single scores, and not where scores lie, so the FP32 graph does; it computes much sooner.
        rankings = write_reference(recipe, workspace, identity["artifact"], workspace.onnx, draft.folder)
        draft.metrics |= {"artifact": identity["artifact"], "golden_cases": cases, "reference_rankings": rankings}
        console.print(f"  for {target}, {precision}", highlight=False)

    return Stage(
        "assemble",
        workspace.repository_for(target),
        lambda: assemble_settings(recipe) | {"target": str(target), "precision": precision},
        {"engine": engine_folder},
        make,
        REVISION,
        TOOLS,
    )


def _first_precision(recipe: Recipe, target: Target) -> str:
    if target is Target.TENSORRT_TP and (recipe.tensor_parallel == 1 or not recipe.tensorrt.precisions):
        raise RecipeError(
            f"{recipe.name}: target tensorrt-tp needs tensor_parallel above 1 and one of tensorrt.precisions; try "
            "--set tensor_parallel=2 --set 'tensorrt.precisions=[fp16]'"
        )
    if not recipe.tensorrt.precisions:
        raise RecipeError(
            f"{recipe.name}: target {target} needs one of tensorrt.precisions; try --set 'tensorrt.precisions=[fp16]'"
        )
    if target is Target.TENSORRT and recipe.tensor_parallel > 1:
        raise RecipeError(
            f"{recipe.name}: target tensorrt has a whole plan on each GPU, and tensor_parallel is "
            f"{recipe.tensor_parallel}; use --target tensorrt-tp, or --set tensor_parallel=1"
        )
    return recipe.tensorrt.precisions[0]


def _require_current_graph(recipe: Recipe, workspace: Workspace, target: Target, precision: str) -> None:
    """Refuse plans of a graph that the recipe would not make any more.

    Raises:
        ArtifactError: a stage that leads to the graph is not up to date.
    """
    served_only = recipe.tensorrt.model_copy(update={"precisions": [precision]})
    needed = {workspace.tensorrt_graph(recipe, precision)}
    ancestors: list[Stage] = []
    for stage in reversed(stages(recipe.model_copy(update={"tensorrt": served_only}), workspace)):
        if stage.folder in needed:
            needed |= set(stage.parents.values())
            ancestors.insert(0, stage)
    for stage in ancestors:
        if (why := stage.why_anew()) is not None:
            raise ArtifactError(
                f"{stage.folder}: not what {stage.verb} makes of the recipe now ({why}), and neither are the plans. "
                f"{_compile_again(recipe, target)}"
            )


def _verified(recipe: Recipe, target: Target, folder: Path) -> Manifest:
    if target is Target.ONNXRUNTIME:
        return verify_artifact(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no plans are here. {_compile_again(recipe, target)}")
    try:
        return verify_artifact(folder)
    except ArtifactError as error:
        raise ArtifactError(f"{error}. {_compile_again(recipe, target)}") from None


def _profiles(recipe: Recipe, target: Target, graph_folder: Path, engine_folder: Path) -> list[Profile]:
    """The shapes that the engine is made for; a plan has its own, and they have to be those of the recipe."""
    if target is Target.ONNXRUNTIME:
        return _profiles_of_recipe(recipe, graph_folder)
    identity = read_identity(engine_folder)
    held = profiles_from(identity.profiles)
    if identity.graph != sha256_file(graph_folder / MODEL_FILE):
        raise ArtifactError(
            f"{engine_folder}: the plan was compiled from another graph than {graph_folder / MODEL_FILE}. "
            f"{_compile_again(recipe, target)}"
        )
    check_room(recipe, held)
    wanted = _profiles_of_recipe(recipe, graph_folder)
    if target is Target.TENSORRT_TP:
        wanted = [one_profile(wanted)]
    if held != wanted:
        raise ArtifactError(
            f"{engine_folder}: the plan was compiled for {_described(held)}; by tensorrt.candidate_buckets, "
            f"tensorrt.token_buckets, tensorrt.requests and the text settings it is {_described(wanted)} now. "
            f"{_compile_again(recipe, target)}"
        )
    return held


def _profiles_of_recipe(recipe: Recipe, graph_folder: Path) -> list[Profile]:
    inputs = [tensor.name for tensor in onnx.load(graph_folder / MODEL_FILE, load_external_data=False).graph.input]
    return profiles_of(recipe, RequestTokenizer.from_folder(graph_folder), inputs)


def _described(profiles: Sequence[Profile]) -> str:
    """The largest shapes of each profile, of the input that has all sizes."""
    return ", ".join("x".join(map(str, list(profile.values())[-1].largest)) for profile in profiles)


def _engine_files(folder: Path, engine: Manifest, recipe: Recipe, target: Target) -> list[str]:
    """Names of the files that the scorer loads."""
    if target is Target.ONNXRUNTIME:
        return [MODEL_FILE]
    if target is Target.TENSORRT:
        return [PLAN_FILE, IDENTITY_FILE]
    ranks = recipe.tensor_parallel
    names = [PLAN_FILE, *map(rank_plan_file, range(ranks))]
    if any(name not in engine.files for name in names) or rank_plan_file(ranks) in engine.files:
        held = sum(name.startswith(f"{PLAN_FILE}.rank") for name in engine.files)
        raise ArtifactError(
            f"{folder}: plans of {held} ranks; tensor_parallel is {ranks}. {_compile_again(recipe, target)}"
        )
    return [*names, IDENTITY_FILE]


def _compile_again(recipe: Recipe, target: Target) -> str:
    return f"Compile for {target}: {rebuild_command(recipe.tensorrt.precisions[0], recipe.tensor_parallel)}"


def compile_recipe(recipe: Recipe, workspace: Workspace) -> list[Path]:
    """Build the graphs that are not up to date, then a plan of each of ``tensorrt.precisions``.

    Returns:
        The folders of the plans.

    Raises:
        ArtifactError: no TensorRT or no GPU, or TensorRT refuses a graph.
        GateError: a graph made the ranking worse than the budget allows.
        RecipeError: the recipe asks for no precision, or for shapes that cannot be.
    """
    require_precisions(recipe)
    builder = find_builder(recipe.tensorrt.precisions[0])
    build_graphs(recipe, workspace)
    return _made(compile.stage(recipe, workspace, precision, builder) for precision in recipe.tensorrt.precisions)


def compile_ranks_of(recipe: Recipe, workspace: Workspace) -> list[Path]:
    """Build the graphs that are not up to date, cut them, and compile every rank's shard.

    Returns:
        The folders of the plans, one per precision.

    Raises:
        ArtifactError: no TensorRT or no GPU, a graph cannot be cut, or TensorRT refuses a shard.
        GateError: a graph made the ranking worse than the budget allows.
        RecipeError: the recipe asks for no precision.
    """
    require_precisions(recipe)
    builder = find_ranks_builder(recipe.tensorrt.precisions[0], recipe.tensor_parallel)
    build_graphs(recipe, workspace)
    _made(compile_ranks.shards(recipe, workspace, precision) for precision in recipe.tensorrt.precisions)
    return _made(compile_ranks.stage(recipe, workspace, precision, builder) for precision in recipe.tensorrt.precisions)


def build_graphs(recipe: Recipe, workspace: Workspace) -> None:
    """Run the stages up to the graphs of ``tensorrt.precisions``."""
    graphs = {workspace.tensorrt_graph(recipe, precision) for precision in recipe.tensorrt.precisions}
    *_, last = (stage for stage in stages(recipe, workspace) if stage.folder in graphs | {workspace.onnx})
    run_stages(recipe, workspace, until=last.verb)


def _made(stages: Iterable[Stage]) -> list[Path]:
    """Bring stages up to date one after the other; their folders."""
    folders = []
    for stage in stages:
        bring_up_to_date(stage)
        folders.append(stage.folder)
    return folders
