"""FP32 ONNX -> INT8 as TensorRT takes it: explicit Q/DQ, symmetric, on both inputs of the linear layers.

Other than for CPUs, activations are signed and their zero points 0; one scale per activation, one per output channel of
a weight. Each Q/DQ pair feeds products alone, so that LayerNorms, residual sums, GELU, softmax and the score head see
what was never rounded. Scales are numbers that FP16 holds exactly, so the mixed graph (``mix``) has the same steps.

Activation ranges come from real training requests with their true padding; all methods of ``calibrate.py`` are tried,
and the one that changes the logits least is taken. If that is more than ``tensorrt.noise``, a run over the layers finds
those that disturb most for their work, and they stay in higher precision. ``qdq_rules`` proves the result, and the gate
judges it.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from rich.console import Console
from tritonrank_runtime.engine import MODEL_FILE, Feed
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.rungs import EXPORTED, INT8_TENSORRT, Rung
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.graphs.graph_view import constant_tensors, opset_of
from tritonrank.judge.gatekeeper import require_ranking
from tritonrank.quantize.calibrate import LEVELS, METHODS, Magnitudes, activation_magnitudes
from tritonrank.quantize.half import SMALLEST_HALF
from tritonrank.quantize.int8 import calibration_requests, graph_feeds, linear_nodes, quantizable_nodes, split_for_noise
from tritonrank.quantize.qdq_rules import check_graph
from tritonrank.quantize.sensitivity import NoiseMeter, quiet_enough, work_of_nodes
from tritonrank.quantize.smooth import smooth_graphs
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import Recipe

FEWEST_OPSET = 19
"""From here on QuantizeLinear and DequantizeLinear take FP16."""
SMALLEST_RANGE = 1e-6
"""An activation that is always 0 needs a scale above 0 all the same."""
RECORDED_BINS = 64

console = Console()


@dataclass(frozen=True)
class Calibration:
    """What was found for the INT8 layers of one graph."""

    method: str
    noise_by_method: dict[str, float]
    """noise of the graph with all layers in INT8"""
    noise: float
    """noise of the graph as it was written"""
    nodes: list[str]
    """INT8 layers"""
    ranges: dict[str, float]
    """by activation"""
    magnitudes: dict[str, Magnitudes]


def quantize_tensorrt(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Quantize, prove, and judge.

    Args:
        recipe: its quantize, tensorrt and gate sections.
        workspace: with the dataset, the batched or joint FP32 graph, the one that CPUs serve, which is the parent of
            the gate, and the teacher.
        draft: gets the graph.

    Raises:
        ArtifactError: the graph breaks one of TensorRT's rules.
        GateError: the ranking became worse than the budget allows.
        RecipeError: quantize.exclude leaves nothing to quantize.
    """
    source = workspace.batched_fp32(recipe)
    requests = calibration_requests(recipe, Dataset.read(workspace.dataset), TextRules.load(source))
    copy_text_files(source, draft.folder)
    found = quantize_graph(source, draft.folder, requests, recipe)
    kept = sorted(set(linear_nodes(source / MODEL_FILE)) - set(found.nodes))
    compared = ", ".join(f"{method} {noise:.3f}" for method, noise in found.noise_by_method.items())
    console.print(f"  noise of all layers by calibration: {compared}; taken: {found.method}", highlight=False)
    stayed = f"; {len(kept)} stay in FP32 (fp32_nodes in the manifest names them)" if kept else ""
    console.print(
        f"  INT8 on both inputs: {len(found.nodes)} of {len(found.nodes) + len(kept)} linear layers, "
        f"noise {found.noise:.3f}{stayed}",
        highlight=False,
    )
    draft.metrics |= {
        "int8_nodes": found.nodes,
        "fp32_nodes": kept,
        "calibration": found.method,
        "noise_by_calibration": found.noise_by_method,
        "noise": found.noise,
        "activations": {name: _recorded(found, name) for name in found.ranges},
    }
    rungs = Rung(INT8_TENSORRT, draft.folder), Rung(EXPORTED, workspace.onnx)
    draft.metrics |= require_ranking(recipe, workspace, "quantize", *rungs)


def quantize_graph(
    source: Path, folder: Path, requests: Sequence[Request], recipe: Recipe, *, smooths: bool = True
) -> Calibration:
    """Write model.onnx with as many INT8 layers as ``tensorrt.noise`` allows, and prove TensorRT's rules on it.

    Of all methods to choose activation ranges the one with the least noise is taken. ``smooths`` as of
    ``int8.quantize_graphs``.

    Raises:
        ArtifactError: a rule is broken.
        GateError: not even one layer can be quantized within the noise limit.
        RecipeError: quantize.exclude leaves no node to quantize.
    """
    tokenizer = RequestTokenizer.from_folder(source, cache_entries=100_000)
    tensors = [tensors_of(request, tokenizer) for request in requests]
    nodes = quantizable_nodes(source, recipe.quantize.exclude)
    fitted, kept_aside = split_for_noise(tensors)
    ((graph, feeds),) = graph_feeds(source, fitted).items()
    noise = NoiseMeter(source, kept_aside)
    with tempfile.TemporaryDirectory() as scratch:
        fp32 = Path(scratch) / graph.name
        if smooths:
            is_decoder = architecture_named(tokenizer.rules.architecture).norms_first
            smooth_graphs({graph: feeds}, fp32.parent, attention=is_decoder)
        else:
            shutil.copyfile(graph, fp32)
        writer = _Writer(fp32, nodes, feeds)
        by_method: dict[str, float] = {}
        for method in METHODS:
            writer.method = method
            writer.write(folder, nodes)
            by_method[method] = noise.of(folder)
        writer.method = min(by_method, key=lambda method: by_method[method])
        writer.write(folder, nodes)
        if by_method[writer.method] > recipe.tensorrt.noise:
            work = work_of_nodes(graph, feeds)
            nodes = quiet_enough(nodes, work, writer.write, noise, folder, recipe.tensorrt.noise, "tensorrt.noise")
    check_graph(folder / MODEL_FILE, nodes).require()
    ranges = {writer.inputs[node]: writer.range_of(writer.inputs[node]) for node in nodes}
    return Calibration(writer.method, by_method, noise.of(folder), nodes, ranges, writer.magnitudes)


class _Writer:
    """Writes Q/DQ graphs of any choice of nodes; sees the calibration requests once."""

    def __init__(self, fp32: Path, nodes: Sequence[str], feeds: Sequence[Feed]) -> None:
        self._model = with_opset(onnx.load(fp32), FEWEST_OPSET)
        self.method = "minmax"
        chosen = set(nodes)
        self.inputs = {node.name: node.input[0] for node in self._model.graph.node if node.name in chosen}
        self.magnitudes = activation_magnitudes(fp32, sorted(set(self.inputs.values())), feeds)

    def range_of(self, activation: str) -> float:
        return METHODS[self.method](self.magnitudes[activation])

    def write(self, folder: Path, nodes: list[str]) -> None:
        scales = {name: half_scale(self.range_of(name)) for name in {self.inputs[node] for node in nodes}}
        onnx.save(insert_qdq(self._model, nodes, scales), folder / MODEL_FILE)


def insert_qdq(model: onnx.ModelProto, nodes: Sequence[str], scales: Mapping[str, float]) -> onnx.ModelProto:
    """A copy with Q/DQ around products.

    Args:
        model: FP32, opset 19 or later; the products have constant weights (in, out).
        nodes: names of the MatMuls that become INT8.
        scales: of each activation that they read.
    """
    weights = dict(constant_tensors(model.graph))
    chosen = set(nodes)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.value_info[:]
    constants: dict[str, NDArray[Any]] = {}
    done: set[str] = set()
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.name in chosen:
            activation, weight = node.input[0], node.input[1]
            if activation not in done:
                constants[f"{activation}_scale"] = np.array(scales[activation], dtype=np.float32)
                constants[f"{activation}_zero"] = np.array(0, dtype=np.int8)
                result.graph.node.extend(_activation_pair(activation))
            if weight not in done:
                values, channels = quantized_weight(numpy_helper.to_array(weights[weight]))
                constants[f"{weight}_int8"], constants[f"{weight}_scale"] = values, channels
                constants[f"{weight}_zero"] = np.zeros(channels.size, dtype=np.int8)
                names = [f"{weight}_int8", f"{weight}_scale", f"{weight}_zero"]
                result.graph.node.append(
                    helper.make_node("DequantizeLinear", names, [f"{weight}_real"], f"{weight}_dequantize", axis=1)
                )
            done |= {activation, weight}
            copy.input[:] = [f"{activation}_real", f"{weight}_real"]
        result.graph.node.append(copy)
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    read = {name for node in result.graph.node for name in node.input}
    unread = [tensor for tensor in result.graph.initializer if tensor.name not in read]
    for tensor in unread:
        result.graph.initializer.remove(tensor)
    return result


def quantized_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(in, out) -> INT8 values and one scale per output channel."""
    scales = np.array([half_scale(float(largest)) for largest in np.abs(weight).max(axis=0)], dtype=np.float32)
    values = np.clip(np.round(weight / scales), -LEVELS, LEVELS).astype(np.int8)
    return values, scales


def half_scale(limit: float) -> float:
    """The scale that spreads a range over the levels: exact in FP16, normal there, and never so small that it clips."""
    wanted = max(limit, SMALLEST_RANGE) / LEVELS
    scale = np.float16(wanted)
    if float(scale) < wanted:
        scale = np.nextafter(scale, np.float16(np.inf))
    return max(float(scale), SMALLEST_HALF)


def with_opset(model: onnx.ModelProto, fewest: int) -> onnx.ModelProto:
    """The model in this opset, or in its own if that is later."""
    return model if opset_of(model) >= fewest else onnx.version_converter.convert_version(model, fewest)


def _activation_pair(name: str) -> list[onnx.NodeProto]:
    parameters = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_int8"], f"{name}_quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_int8", *parameters], [f"{name}_real"], f"{name}_dequantize"),
    ]


def _recorded(found: Calibration, name: str) -> dict[str, Any]:
    """A histogram coarse enough for a manifest."""
    seen = found.magnitudes[name]
    counts = seen.counts.reshape(RECORDED_BINS, -1).sum(axis=1)
    return {"range": found.ranges[name], "largest": seen.largest, "counts": counts.tolist()}
