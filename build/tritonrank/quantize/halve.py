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

import onnx
from rich.console import Console
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.rungs import EXPORTED, FP16, MIXED, Rung
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.errors import GateError
from tritonrank.graphs.graph_view import element_types
from tritonrank.judge.gatekeeper import require_ranking
from tritonrank.quantize.half import ATTENTION_CORE, KINDS, kinds_of_nodes, to_half
from tritonrank.quantize.int8 import calibration_requests, split_for_noise
from tritonrank.quantize.qdq_rules import check_graph
from tritonrank.quantize.sensitivity import NoiseMeter
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import Recipe
from tritonrank.system.progress import track

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


def halve(recipe: Recipe, workspace: Workspace, source: Path, draft: Draft) -> None:
    """Halve, prove, and judge.

    Args:
        recipe: its tensorrt and gate sections.
        workspace: with the dataset, the FP32 graphs (the batched one is what noise is measured against, the one that
            CPUs serve is the parent of the gate) and the teacher.
        source: folder of the graph to halve: the batched FP32 one, or INT8 for TensorRT.
        draft: gets the graph.

    Raises:
        ArtifactError: the graph breaks one of TensorRT's rules.
        GateError: the ranking became worse than the budget allows.
    """
    requests = calibration_requests(recipe, Dataset.read(workspace.dataset), TextRules.load(source))
    asked = draft.parents["source"].metrics.get("int8_nodes", [])
    copy_text_files(source, draft.folder)
    found = halve_graph(source, workspace.batched_fp32(recipe), draft.folder, requests, recipe.tensorrt.half_noise)
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
    rungs = Rung(MIXED if asked else FP16, draft.folder), Rung(EXPORTED, workspace.onnx)
    draft.metrics |= require_ranking(recipe, workspace, "quantize", *rungs)


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
        for kind in track(kinds, "halving each kind"):
            alone[kind] = noise([kind], Path(trial))

    def disturbance(kind: str) -> float:
        added = alone[kind] - before
        return max(added, 0.0) ** 2 / KINDS[kind] if math.isfinite(added) else math.inf  # inf, nan: an overflow

    loudest_first = sorted(kinds, key=disturbance, reverse=True)
    for count in range(len(kinds)):
        kept = with_whole_attention(model, loudest_first[:count], kinds)
        found = noise([kind for kind in kinds if kind not in kept], folder)
        if found <= before + limit:
            return Halved(["score head", *kept], alone, found)
    raise GateError(
        f"gate closed: no part of {source} can be FP16 within tensorrt.half_noise = {limit}; the quietest kind alone "
        f"changes the logits by {min(alone.values()):.4f} of their spread. Raise it, or leave fp16 out of "
        "tensorrt.precisions"
    )


def with_whole_attention(model: onnx.ModelProto, kept: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Kinds that stay in FP32, the whole of attention where a part of it does (``ATTENTION_CORE`` says why).

    A shared-context graph has two products under one softmax, which is never one kernel: there each kind stands alone.
    """
    weighed = {name for node in model.graph.node if node.op_type == "Softmax" for name in node.output}
    taken = {node.op_type for node in model.graph.node if weighed.intersection(node.input)}
    if taken != {"MatMul"} or not ATTENTION_CORE.intersection(kept):
        return [*kept]
    return [*kept, *(kind for kind in kinds if kind in ATTENTION_CORE and kind not in kept)]
