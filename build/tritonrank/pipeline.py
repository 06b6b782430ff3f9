"""The stages in order: dataset -> teacher -> onnx -> int8 -> repository -> summary.

A stage runs when its settings or its parents changed since it was last published, and is skipped otherwise.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tritonrank.artifacts import is_current, read_manifest, stage_key
from tritonrank.errors import RecipeError
from tritonrank.recipe import Recipe

console = Console()


@dataclass(frozen=True)
class Workspace:
    """Where the artifacts of one recipe live: ``artifacts/<recipe>/``."""

    root: Path

    @classmethod
    def of(cls, recipe: Recipe, artifacts: Path = Path("artifacts")) -> "Workspace":
        return cls(artifacts / recipe.name)

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def onnx(self) -> Path:
        return self.root / "onnx"

    @property
    def int8(self) -> Path:
        return self.root / "int8"

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def summary(self) -> Path:
        return self.root / "summary"

    @property
    def judgements(self) -> Path:
        return self.root / "judgements"

    def served_model(self, recipe: Recipe) -> Path:
        """The model artifact that the repository serves."""
        return self.onnx if recipe.quantize.method == "none" else self.int8


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
    from tritonrank import assemble, export, finetune, prepare, quantize, summary

    w = workspace
    served = w.served_model(recipe)
    quantizing = Stage(
        "quantize",
        w.int8,
        lambda: quantize.quantize_settings(recipe),
        {"onnx": w.onnx, "dataset": w.dataset},
        lambda: quantize.quantize(recipe, w.dataset, w.teacher, w.onnx, w.int8, w.judgements),
    )
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
        Stage(
            "export",
            w.onnx,
            lambda: export.export_settings(recipe),
            {"checkpoint": w.teacher},
            lambda: export.export(recipe, w.dataset, w.teacher, w.onnx),
        ),
        *([] if recipe.quantize.method == "none" else [quantizing]),
        Stage(
            "assemble",
            w.repository,
            lambda: assemble.assemble_settings(recipe),
            {"model": served},
            lambda: assemble.assemble(recipe, w.dataset, served, w.repository),
        ),
        Stage(
            "summarize",
            w.summary,
            lambda: summary.summary_settings(recipe),
            {"dataset": w.dataset, "checkpoint": w.teacher, "onnx": w.onnx, "served": served},
            lambda: summary.summarize(recipe, w),
        ),
    ]


def run_stages(recipe: Recipe, workspace: Workspace, until: str | None = None, *, force: str | None = None) -> None:
    """Run what is not up to date, one line per stage.

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
        why = "; quantize.method is none" if until == "quantize" else ""
        raise RecipeError(f"{recipe.name}: no stage {until}{why}. Stages: {', '.join(s.verb for s in chosen)}")
    for stage in chosen:
        if stage.verb != force and is_current(stage.folder, stage.key()):
            console.print(f"[bold]{stage.verb:<10}[/] up to date  [dim]{stage.folder}[/]", highlight=False)
        else:
            console.print(f"[bold]{stage.verb:<10}[/] -> {stage.folder}", highlight=False)
            started = time.monotonic()
            stage.run()
            console.print(f"{'':<10} done in {time.monotonic() - started:.1f} s", highlight=False)
        if stage.verb == until:
            return
