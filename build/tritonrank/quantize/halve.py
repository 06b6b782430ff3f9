"""A graph becomes FP16 where that does not matter: the FP32 one (``fp16``), or the INT8 one for TensorRT (``mix``).

How it is written is in ``half.py``; here is decided what stays in FP32. Each kind of operator is halved alone and its
noise measured on calibration requests; that list goes into the manifest. Then all kinds together: while they change the
logits by more than ``tensorrt.half_noise``, the kind that disturbs most for its work goes back to FP32. A mixed graph
may have that noise on top of what its INT8 layers have: the least change before a rounding to INT8 draws that rounding
anew, so noise on the same few requests goes up or down by a tenth without anything having become worse.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.progress import track
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import read_manifest, write_artifact
from tritonrank.data.prepare import Dataset
from tritonrank.errors import GateError
from tritonrank.graphs.graph_view import element_types
from tritonrank.judge.gatekeeper import FINE_TUNED, Rung, gate_settings, require_ranking
from tritonrank.quantize.half import KINDS, kinds_of_nodes, to_half
from tritonrank.quantize.int8 import CALIBRATION_CANDIDATES, calibration_requests, split_for_noise
from tritonrank.quantize.qdq_rules import check_graph
from tritonrank.quantize.sensitivity import NoiseMeter
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import Recipe

console = Console()


@dataclass(frozen=True)
class Halved:
    """What was found for one graph."""

    kept: list[str]
    """kinds of operators in FP32, the score head among them"""
    noise_by_kind: dict[str, float]
    """noise of the graph with one kind alone in FP16"""
    noise: float
    """of the graph as it was written"""


def halve_settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "half_noise": recipe.tensorrt.half_noise,
        "calibration_examples": recipe.quantize.calibration_examples,
        "calibration_candidates": CALIBRATION_CANDIDATES,
        "gate": gate_settings(recipe, "quantize"),
        "seed": recipe.seed,
    }


def halve_parents(dataset_folder: Path, source: Path, exact: Path) -> dict[str, Path]:
    """What the artifact is made from; the dataset calibrates and judges it."""
    return {"source": source, "exact": exact, "dataset": dataset_folder}


def halve(
    recipe: Recipe,
    verb: str,
    dataset_folder: Path,
    teacher_folder: Path,
    onnx_folder: Path,
    source: Path,
    exact: Path,
    folder: Path,
    judgements: Path,
) -> None:
    """Halve, prove, judge, and publish if the gate passes.

    Args:
        recipe: its tensorrt and gate sections.
        verb: the stage: ``fp16`` or ``mix``.
        dataset_folder: calibration and test examples.
        teacher_folder: the fine-tuned ranker, before anything was pruned.
        onnx_folder: the FP32 graph that is served on CPUs, the parent of the gate.
        source: the graph to halve: FP32, or INT8 for TensorRT.
        exact: the FP32 graph that noise is measured against.
        folder: where the artifact goes.
        judgements: cache of judgements.

    Raises:
        ArtifactError: the graph breaks one of TensorRT's rules.
        GateError: the ranking became worse than the budget allows; nothing was published.
    """
    made_from = {name: read_manifest(f) for name, f in halve_parents(dataset_folder, source, exact).items()}
    requests = calibration_requests(recipe, Dataset.read(dataset_folder), TextRules.load(source))
    asked = made_from["source"].metrics.get("int8_nodes", [])
    with write_artifact(folder, verb, halve_settings(recipe), made_from) as draft:
        copy_text_files(source, draft.folder)
        found = halve_graph(source, exact, draft.folder, requests, recipe.tensorrt.half_noise)
        check_graph(draft.folder / MODEL_FILE, asked).require()
        alone = ", ".join(f"{kind} {noise:.4f}" for kind, noise in found.noise_by_kind.items())
        console.print(f"  noise of each kind alone in FP16: {alone}", highlight=False)
        console.print(f"  FP16 with {' and '.join(found.kept)} in FP32: noise {found.noise:.4f}", highlight=False)
        draft.metrics |= {
            "fp32_kinds": found.kept,
            "noise_by_kind": found.noise_by_kind,
            "noise": found.noise,
            "int8_nodes": asked,
        }
        child = Rung("INT8 + FP16" if asked else "FP16", draft.folder)
        rungs = child, Rung("ONNX FP32", onnx_folder), Rung(FINE_TUNED, teacher_folder)
        draft.metrics |= require_ranking(recipe, "quantize", *rungs, dataset_folder, judgements)


def halve_graph(source: Path, exact: Path, folder: Path, requests: Sequence[Request], limit: float) -> Halved:
    """Write model.onnx with as much FP16 as the limit allows.

    Args:
        source: folder of the graph to halve.
        exact: folder of the FP32 graph that noise is measured against.
        folder: where model.onnx goes.
        requests: calibration requests.
        limit: largest noise that FP16 may add.

    Raises:
        GateError: FP16 disturbs too much whatever stays in FP32.
    """
    tokenizer = RequestTokenizer.from_folder(source, cache_entries=100_000)
    _, kept_aside = split_for_noise([tensors_of(request, tokenizer) for request in requests])
    meter = NoiseMeter(exact, kept_aside)
    model = onnx.load(source / MODEL_FILE)
    present = kinds_of_nodes(model, element_types(model))
    kinds = [kind for kind in KINDS if present[kind]]
    before = meter.of(source)  # 0 for an FP32 graph

    def noise(halved: Sequence[str], target: Path) -> float:
        onnx.save(to_half(model, keep=[kind for kind in kinds if kind not in halved]), target / MODEL_FILE)
        return meter.of(target)

    alone = {}
    with tempfile.TemporaryDirectory() as trial:
        for kind in track(kinds, "  halving each kind", transient=True):
            alone[kind] = noise([kind], Path(trial))

    def disturbance(kind: str) -> float:
        added = alone[kind] - before
        return max(added, 0.0) ** 2 / KINDS[kind] if math.isfinite(added) else math.inf  # inf, nan: an overflow

    loudest_first = sorted(kinds, key=disturbance, reverse=True)
    for count in range(len(kinds)):
        kept = loudest_first[:count]
        found = noise([kind for kind in kinds if kind not in kept], folder)
        if found <= before + limit:
            return Halved(["score head", *kept], alone, found)
    raise GateError(
        f"gate closed: no part of {source} can be FP16 within tensorrt.half_noise = {limit}; the quietest kind alone "
        f"changes the logits by {min(alone.values()):.4f} of their spread. Raise it, or leave fp16 out of "
        "tensorrt.precisions"
    )
