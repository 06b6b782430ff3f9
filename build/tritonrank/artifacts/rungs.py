"""The rungs of a build: its model artifacts, what tables and gates call them, and where they lie.

The first rung is the teacher, the ranker that all others are held against; the last one is what is served. A manifest
keeps the verdict of every gate that a rung went through under ``gate against <name of the other rung>``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tritonrank.artifacts.workspace import Workspace

if TYPE_CHECKING:
    from tritonrank.recipe import Recipe


FINE_TUNED = "fine-tuned"
"""The teacher, where it was trained here."""
CHECKPOINT = "checkpoint"
"""The teacher, where it was taken as it is."""
PRUNED = "pruned"
STUDENT = "student"
EXPORTED = "ONNX FP32"
INT8 = "INT8"
INT8_WEIGHTS = "INT8 weights"
INT4_WEIGHTS = "INT4 weights"
BATCHED = "ONNX FP32, batched"
FP16 = "FP16"
INT8_TENSORRT = "INT8 (TensorRT)"
MIXED = "INT8 + FP16"
TEACHERS = (FINE_TUNED, CHECKPOINT)
QUANTIZED = {"static-int8": INT8, "int8-weights": INT8_WEIGHTS, "int4-weights": INT4_WEIGHTS}
"""What CPUs serve, by ``quantize.method``."""
CHECKPOINT_RUNGS = frozenset({*TEACHERS, PRUNED, STUDENT})
"""Those that are weights for PyTorch; all others are graphs."""
UNCUT = ", uncut"
"""Ends what tables call a teacher that reads whole texts."""

FOLDERS = {
    FINE_TUNED: "teacher",
    PRUNED: "pruned",
    STUDENT: "student",
    EXPORTED: "onnx",
    INT8: "int8",
    INT8_WEIGHTS: "int8-weights",
    INT4_WEIGHTS: "int4-weights",
    BATCHED: "onnx-batched",
    FP16: "fp16",
    INT8_TENSORRT: "int8-tensorrt",
    MIXED: "int8-fp16",
}
"""Folders below artifacts/<recipe>/ in the order of the ladder; a checkpoint lies where a fine-tuned teacher would."""

_GATE = "gate against "


class Rung(NamedTuple):
    """A model artifact and what tables call it."""

    name: str
    folder: Path


def teacher_name(recipe: "Recipe") -> str:
    """What tables call the ranker that everything is held against."""
    return CHECKPOINT if recipe.model.checkpoint else FINE_TUNED


def quantized_name(recipe: "Recipe") -> str:
    """What tables call the quantized graphs that CPUs serve."""
    return QUANTIZED[recipe.quantize.method]


def uncut_name(recipe: "Recipe") -> str:
    """What tables call the teacher with whole texts."""
    return f"{teacher_name(recipe)}{UNCUT}"


def model_rungs(recipe: "Recipe", workspace: Workspace) -> dict[str, Path]:
    """Model artifacts that every build of a recipe makes, by name, from the teacher to what is served."""
    rungs = {teacher_name(recipe): workspace.teacher}
    rungs |= {PRUNED: workspace.pruned} if recipe.prune else {}
    rungs |= {STUDENT: workspace.student} if recipe.distill else {}
    rungs |= {EXPORTED: workspace.onnx}
    return rungs if recipe.quantize.method == "none" else rungs | {quantized_name(recipe): workspace.quantized(recipe)}


def served_rung(recipe: "Recipe", workspace: Workspace) -> str:
    """What tables call the ranker that the repository serves; the last rung where it is a graph for a GPU."""
    folder, rungs = workspace.served_model(recipe), model_rungs(recipe, workspace)
    return next((name for name in rungs if rungs[name] == folder), list(rungs)[-1])


def checkpoint_of(rung: str, recipe: "Recipe", workspace: Workspace) -> Path:
    """The checkpoint whose weights a rung computes with."""
    return model_rungs(recipe, workspace)[rung] if rung in CHECKPOINT_RUNGS else workspace.ranker(recipe)


def gate_metric(other: str) -> str:
    """The entry of a manifest's metrics that keeps the verdict against another rung."""
    return f"{_GATE}{other}"


def gate_verdicts(metrics: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The verdicts of all gates that an artifact went through, from its manifest's metrics."""
    return (verdict for name, verdict in metrics.items() if name.startswith(_GATE))
