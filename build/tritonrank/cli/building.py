"""The verbs that build: all stages, one of them, or a repository for a GPU."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritonrank.artifacts.workspace import Target, Workspace
from tritonrank.cli.options import (
    DEFAULT_ARTIFACTS,
    NO_OVERRIDES,
    ArtifactsRoot,
    Overrides,
    RecipePath,
    TargetOption,
    app,
    open_recipe,
)
from tritonrank.cli.panels import Panel

if TYPE_CHECKING:
    from tritonrank.pipeline.prepare import Engine
    from tritonrank.recipe import Recipe


class DataEngine(StrEnum):
    """What makes a dataset."""

    POLARS = "polars"
    SPARK = "spark"


@app.command(rich_help_panel=Panel.BUILD)
def build(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    target: TargetOption = Target.CPU,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Only train on parts of the data, and say what a whole build is likely to give"),
    ] = False,
) -> None:
    """Run all stages, skipping those that are up to date, and end with a table of what was achieved.

    With --quick nothing is built that could be served: four short trainings on up to a tenth of the examples become a
    learning curve, which says with an interval what all of them are likely to give, whether that beats the rankings
    that need no training, and how long the whole takes on this machine. The whole build reuses the prepared data.

    With --target also compile and assemble for GPUs, on the machine that will serve; see `tritonrank assemble --help`.
    Exits with 1 when a step made the ranking worse than its budget allows, with 3 when the build went to its end but
    something that needs no training ranks better beyond doubt (gate.training).
    """
    # Before torch is imported: a fault shows at once.
    loaded, workspace = open_recipe(recipe, overrides, artifacts, target)
    if quick:
        from tritonrank.pipeline.quick import run_quick

        run_quick(loaded, workspace, whole_build_command(recipe, overrides, artifacts, target))
        return
    for_cpu, _ = open_recipe(recipe, overrides, artifacts)  # what the stages make is the CPU's, whatever comes after
    from tritonrank.pipeline.stages import run_stages
    from tritonrank.report.answer import SUMMARY_FILE, exit_code
    from tritonrank.report.summary_table import show_summary

    if target is not Target.CPU:
        from tritonrank.pipeline.gpu_targets import build_target, check_target

        check_target(loaded, target)  # what is missing for it shows before the whole build
    run_stages(for_cpu, workspace)
    show_summary(workspace.summary)
    if target is not Target.CPU:
        typer.echo(f"{build_target(loaded, workspace, target)}")
    raise typer.Exit(exit_code(workspace.summary / SUMMARY_FILE, loaded.gate.training))


def whole_build_command(recipe: Path, overrides: list[str], artifacts: Path, target: Target) -> list[str]:
    """The words to type for what --quick only looked at."""
    words = ["tritonrank", "build", str(recipe)]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--artifacts", str(artifacts)] if artifacts != DEFAULT_ARTIFACTS else []
    return words + (["--target", str(target)] if target is not Target.CPU else [])


def _stage_command(verb: str, help_text: str) -> None:
    def command(
        recipe: RecipePath,
        overrides: Overrides = NO_OVERRIDES,
        artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
        force: Annotated[bool, typer.Option("--force", help="Run this stage even if it is up to date")] = False,
    ) -> None:
        loaded, workspace = open_recipe(recipe, overrides, artifacts)
        from tritonrank.pipeline.stages import run_stages

        run_stages(loaded, workspace, until=verb, force=verb if force else None)

    app.command(
        verb,
        rich_help_panel=Panel.BUILD,
        help=help_text + "\n\nEarlier stages run first where they are not up to date.",
    )(command)


@app.command(rich_help_panel=Panel.BUILD)
def prepare(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    force: Annotated[bool, typer.Option("--force", help="Run this stage even if it is up to date")] = False,
    engine: Annotated[
        DataEngine, typer.Option("--engine", help="What reads the events and makes the lists; both make the same")
    ] = DataEngine.POLARS,
    spark_master: Annotated[
        str | None,
        typer.Option(
            "--spark-master",
            metavar="URL",
            help="Such as local[4], yarn or spark://host:7077. Default: what Spark's own settings name "
            "(SPARK_CONF_DIR, spark-submit), else the cores of this machine",
        ),
    ] = None,
) -> None:
    """Read and check the data; write the examples for training and judging.

    With --engine spark the events are read, cleaned, split and made into lists on a Spark cluster, where they are more
    than this machine can hold (docs/data.md). What comes out is the same, and later stages do not run again for it.
    """
    if spark_master is not None and engine is not DataEngine.SPARK:
        raise typer.BadParameter("goes with --engine spark", param_hint="--spark-master")
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    from tritonrank.pipeline.prepare import HERE, on_spark
    from tritonrank.pipeline.stages import run_stages

    def run(data: "Engine") -> None:
        run_stages(loaded, workspace, until="prepare", force="prepare" if force else None, data=data)

    if engine is DataEngine.POLARS:
        run(HERE)
        return
    from tritonrank.data.spark.session import spark_session

    with spark_session(spark_master) as session:
        run(on_spark(session))


@app.command(rich_help_panel=Panel.BUILD)
def finetune(
    recipe: RecipePath, overrides: Overrides = NO_OVERRIDES, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS
) -> None:
    """Fine-tune the base model. Resumes when interrupted; also under torchrun --nproc-per-node N -m tritonrank.

    Then hold it against what needs no training; gate.training decides what happens if it loses.
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    if not _is_alone():
        _train(loaded, workspace, "finetune")
        return
    from tritonrank.report.answer import COMPARISON_FILE, exit_code

    _train(loaded, workspace, "compare")
    raise typer.Exit(exit_code(workspace.comparison / COMPARISON_FILE, loaded.gate.training))


_stage_command("prune", "Cut layers, heads, neurons and tokens of the fine-tuned ranker (section `prune`).")


@app.command(rich_help_panel=Panel.BUILD)
def distill(
    recipe: RecipePath, overrides: Overrides = NO_OVERRIDES, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS
) -> None:
    """Let the pruned ranker learn from the unpruned one. Resumes when interrupted; also under torchrun."""
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    _train(loaded, workspace, "distill")


_stage_command("export", "Write the checkpoint as ONNX and prove that it computes the same.")
_stage_command("quantize", "Write the INT8 graph; the gate decides whether it may stand.")
_stage_command("retriever", "Learn to find items by history and query; Recall on the whole catalogue decides.")
_stage_command("catalogue", "Write the items as retrieval sees them: vectors, words, neighbours, popularity.")
_stage_command("blend", "Learn the order of what retrieval finds, from all signals; the gate decides.")
_stage_command("shard", "Cut the served model into tensor_parallel ranks; prove that they score as the whole.")


@app.command("compile", rich_help_panel=Panel.BUILD)
def compile_command(
    recipe: RecipePath, overrides: Overrides = NO_OVERRIDES, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS
) -> None:
    """Build TensorRT plans of tensorrt.precisions; their graphs are made, and judged by the gate, first.

    With `tensorrt` for the GPU of this machine; with `tensorrt_rtx` ahead of time, without a GPU, to see that the
    graphs compile. For example: tritonrank compile build/recipes/demo.yaml --set 'tensorrt.precisions=[fp16]'
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    # A model that needs several GPUs may not fit on one.
    target = Target.TENSORRT_TP if loaded.tensor_parallel > 1 else Target.TENSORRT
    loaded, workspace = open_recipe(recipe, overrides, artifacts, target)
    from tritonrank.pipeline.gpu_targets import compile_ranks_of, compile_recipe

    for folder in (compile_ranks_of if target is Target.TENSORRT_TP else compile_recipe)(loaded, workspace):
        typer.echo(f"{folder}")


@app.command(rich_help_panel=Panel.BUILD)
def assemble(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    force: Annotated[bool, typer.Option("--force", help="Run this stage even if it is up to date")] = False,
    target: TargetOption = Target.CPU,
) -> None:
    """Write the Triton model repository.

    Earlier stages run first where they are not up to date. Before plans nothing runs, as it would take a compilation:
    where the recipe would make other plans by now, the command that compiles them is named.

    To clients all targets are alike; they differ in what computes the scores:

    cpu: ONNX Runtime in Triton's Python backend, on any machine. Writes `repository`.

    onnxruntime: Triton's ONNX Runtime backend on GPUs, for machines without TensorRT plans. The first of
    tensorrt.precisions that is fp16 or fp32, else fp32. Writes `repository-onnxruntime`.

    tensorrt: the plan of the first of tensorrt.precisions, compiled before on the GPU that serves: tritonrank compile.
    Writes `repository-tensorrt`.

    tensorrt-tp: the plans of all GPUs that compute each layer together, compiled with the same tensor_parallel. Writes
    `repository-tensorrt-tp`.

    For example: tritonrank assemble build/recipes/demo.yaml --set 'tensorrt.precisions=[fp16]' --target tensorrt
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts, target)
    if target is Target.CPU:
        from tritonrank.pipeline.stages import run_stages

        run_stages(loaded, workspace, until="assemble", force="assemble" if force else None)
        return
    from tritonrank.pipeline.gpu_targets import assemble_target

    typer.echo(f"{assemble_target(loaded, workspace, target, force=force)}")


def _train(recipe: "Recipe", workspace: Workspace, verb: str) -> None:
    """Run the stages up to one that trains, or one process's part of it under torchrun."""
    from tritonrank.pipeline.stages import run_stages, take_part_in

    if _is_alone():
        run_stages(recipe, workspace, until=verb)
    else:
        take_part_in(verb, recipe, workspace)


def _is_alone() -> bool:
    """Not one of several processes of torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1
