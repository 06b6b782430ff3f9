"""The stages in order: dataset -> teacher (-> pruned -> student) -> onnx -> int8 -> repository -> summary.

A stage runs when its settings or its parents changed since it was last published, and is skipped otherwise. Pruning and
distillation are stages of recipes that have a section for them; what comes after them works on what they made.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tritonrank.artifacts import is_current, read_manifest, stage_key, tidy
from tritonrank.artifacts.locks import only_writer, release, take
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.recipe import Recipe

console = Console()


@dataclass(frozen=True)
class Stage:
    """One maker: its verb, its folder, the parents that its output depends on, and the call that makes it."""

    verb: str
    folder: Path
    settings: Callable[[], dict[str, Any]]
    parents: dict[str, Path]
    run: Callable[[], object]

    def key(self) -> str:
        parents = {name: read_manifest(folder) for name, folder in self.parents.items()}
        return stage_key(self.verb, self.settings(), parents)


def stages(recipe: Recipe, workspace: Workspace) -> list[Stage]:
    """All stages of the recipe in the order in which they run."""
    # Imported here, because torch and transformers take seconds and `tritonrank --help` should not.
    from tritonrank.data import prepare
    from tritonrank.graphs import export
    from tritonrank.parallel import shard
    from tritonrank.quantize import int8 as quantize
    from tritonrank.report import summary
    from tritonrank.serve import assemble
    from tritonrank.shrink import distill, prune
    from tritonrank.train import finetune

    w = workspace
    ranker, served = w.ranker(recipe), w.served_model(recipe)
    pruning = Stage(
        "prune",
        w.pruned,
        lambda: prune.prune_settings(recipe),
        {"teacher": w.teacher, "dataset": w.dataset},
        lambda: prune.prune(recipe, w.dataset, w.teacher, w.pruned, w.judgements),
    )
    distilling = Stage(
        "distill",
        w.student,
        lambda: distill.distill_settings(recipe),
        {"pruned": w.pruned, "dataset": w.dataset, "teacher": w.teacher},
        lambda: distill.distill(recipe, w.dataset, w.teacher, w.pruned, w.student, w.judgements),
    )
    quantizing = Stage(
        "quantize",
        w.int8,
        lambda: quantize.quantize_settings(recipe),
        {"onnx": w.onnx, "dataset": w.dataset},
        lambda: quantize.quantize(recipe, w.dataset, w.teacher, w.onnx, w.int8, w.judgements),
    )
    sharding = Stage(
        "shard",
        w.shards,
        lambda: shard.shard_settings(recipe),
        {"model": served, "dataset": w.dataset},
        lambda: shard.shard(recipe, w.dataset, served, w.shards),
    )
    is_sharded = recipe.tensor_parallel > 1
    loaded = w.shards if is_sharded else served
    return [
        Stage(
            "prepare",
            w.dataset,
            lambda: prepare.prepare_settings(recipe),
            {},
            lambda: prepare.prepare(recipe, w.dataset),
        ),
        Stage(
            "finetune",
            w.teacher,
            lambda: finetune.finetune_settings(recipe),
            {"dataset": w.dataset},
            lambda: finetune.finetune(recipe, w.dataset, w.teacher),
        ),
        *([pruning] if recipe.prune else []),
        *([distilling] if recipe.distill else []),
        Stage(
            "export",
            w.onnx,
            lambda: export.export_settings(recipe),
            {"checkpoint": ranker},
            lambda: export.export(recipe, w.dataset, ranker, w.onnx),
        ),
        *([] if recipe.quantize.method == "none" else [quantizing]),
        *tensorrt_stages(recipe, w),
        *([sharding] if is_sharded else []),
        Stage(
            "assemble",
            w.repository,
            lambda: assemble.assemble_settings(recipe),
            {"model": loaded},
            lambda: assemble.assemble(recipe, w.dataset, loaded, w.repository),
        ),
        Stage(
            "summarize",
            w.summary,
            lambda: summary.summary_settings(recipe),
            summary.summary_parents(recipe, w),
            lambda: summary.summarize(recipe, w),
        ),
    ]


def tensorrt_stages(recipe: Recipe, workspace: Workspace) -> list[Stage]:
    """The graphs that ``tensorrt.precisions`` needs, made of the exported checkpoint's FP32 graphs."""
    from tritonrank.graphs import batched, export
    from tritonrank.quantize import halve
    from tritonrank.quantize import int8_tensorrt as quantize_tensorrt

    w, precisions = workspace, recipe.tensorrt.precisions
    source = w.batched_fp32(recipe)
    checkpoint = w.ranker(recipe)
    batching = Stage(
        "export-batched",
        w.onnx_batched,
        lambda: export.export_settings(recipe),
        {"checkpoint": checkpoint, "onnx": w.onnx},
        lambda: batched.export_batched(recipe, w.dataset, checkpoint, w.onnx, w.onnx_batched),
    )
    halving = Stage(
        "fp16",
        w.fp16,
        lambda: halve.halve_settings(recipe),
        halve.halve_parents(w.dataset, source, source),
        lambda: halve.halve(recipe, "fp16", w.dataset, w.teacher, w.onnx, source, source, w.fp16, w.judgements),
    )
    quantizing = Stage(
        "quantize-tensorrt",
        w.int8_tensorrt,
        lambda: quantize_tensorrt.tensorrt_int8_settings(recipe),
        {"source": source, "dataset": w.dataset},
        lambda: quantize_tensorrt.quantize_tensorrt(
            recipe, w.dataset, w.teacher, w.onnx, source, w.int8_tensorrt, w.judgements
        ),
    )
    mixing = Stage(
        "mix",
        w.int8_fp16,
        lambda: halve.halve_settings(recipe),
        halve.halve_parents(w.dataset, w.int8_tensorrt, source),
        lambda: halve.halve(
            recipe, "mix", w.dataset, w.teacher, w.onnx, w.int8_tensorrt, source, w.int8_fp16, w.judgements
        ),
    )
    return [
        *([batching] if precisions and source == w.onnx_batched else []),
        *([halving] if "fp16" in precisions else []),
        *([quantizing] if {"int8", "int8-fp16"} & set(precisions) else []),
        *([mixing] if "int8-fp16" in precisions else []),
    ]


def run_stages(recipe: Recipe, workspace: Workspace, until: str | None = None, *, force: str | None = None) -> None:
    """Run what is not up to date, one line per stage.

    One process at a time builds in a workspace: a second one waits for the first, unless all is up to date.

    Args:
        recipe: what to build.
        workspace: where.
        until: the last verb to run; all of them by default.
        force: run this verb even if it is up to date.

    Raises:
        RecipeError: the recipe has no stage ``until``; without it all stages would run.
    """
    chosen = stages(recipe, workspace)
    if until is not None and until not in {stage.verb for stage in chosen}:
        absent = {"quantize": "quantize.method is none", "shard": "tensor_parallel is 1"}
        absent |= {verb: f"the recipe has no {verb} section" for verb in ("prune", "distill")}
        why = f"; {absent[until]}" if until in absent else ""
        raise RecipeError(f"{recipe.name}: no stage {until}{why}. Stages: {', '.join(s.verb for s in chosen)}")
    from tritonrank.train.finetune import check_models

    check_models(recipe, workspace.teacher)
    if until is not None:
        chosen = chosen[: [stage.verb for stage in chosen].index(until) + 1]
    taken = take(workspace.root, wait=False)
    if taken is False and force is None and _all_current(chosen):
        for stage in chosen:
            _say_up_to_date(stage)
        return
    try:
        with only_writer(workspace.root):
            for stage in chosen:
                tidy(stage.folder)
            _run_in_order(chosen, force)
    finally:
        if taken:
            release(workspace.root)


def _run_in_order(chosen: list[Stage], force: str | None) -> None:
    for stage in chosen:
        if stage.verb != force and is_current(stage.folder, stage.key()):
            _say_up_to_date(stage)
            continue
        console.print(f"[bold]{stage.verb:<10}[/] -> {stage.folder}", highlight=False)
        started = time.monotonic()
        stage.run()
        console.print(f"{'':<10} done in {time.monotonic() - started:.1f} s", highlight=False)


def _all_current(chosen: list[Stage]) -> bool:
    """Whether nothing is to be done, while another process may be writing."""
    try:
        return all(is_current(stage.folder, stage.key()) for stage in chosen)
    except ArtifactError:
        return False


def _say_up_to_date(stage: Stage) -> None:
    console.print(f"[bold]{stage.verb:<10}[/] up to date  [dim]{stage.folder}[/]", highlight=False)
