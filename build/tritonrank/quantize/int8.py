"""FP32 ONNX -> static INT8 for CPUs: u8 activations, s8 weights, explicit Q/DQ around the matrix products.

Every activation has one scale, fixed by calibration on real training requests with true padding. Dynamic INT8 takes
one scale per batch instead, so that a score depends on its batch mates; it is offered for comparison only. Weights
have one scale per output channel, and are rounded so that their errors cancel (rounding.py). Products without constant
weights (attention scores) and the head stay in FP32, and so do the linear layers that would disturb the logits more
than ``quantize.noise`` allows: a few layers of an encoder have activations with outliers that one scale cannot hold.

The gate judges the result before it is published, against the FP32 graph and against the fine-tuned checkpoint.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from rich.console import Console
from tritonrank_runtime.engine import Feed
from tritonrank_runtime.engines import model_files, open_engine
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.rungs import EXPORTED, INT8, Rung
from tritonrank.artifacts.weight_file import is_large, save_graph, share_weights
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.judge.gatekeeper import require_ranking
from tritonrank.quantize.calibration_record import CalibrationRecord, LayerNoise, record_activations
from tritonrank.quantize.embeddings import shrink_folder
from tritonrank.quantize.reduced_range import has_reduced_range
from tritonrank.quantize.rounding import WeightRounder
from tritonrank.quantize.row_scales import SPLIT_AMONG_RANKS, scale_rows
from tritonrank.quantize.sensitivity import NoiseMeter, quiet_enough, work_of_nodes
from tritonrank.quantize.smooth import smooth_graphs
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.scorers import Request, RequestTensors, tensors_of
from tritonrank.recipe import QuantizeSettings, Recipe
from tritonrank.system.quiet import quiet_libraries

CALIBRATION_CANDIDATES = 8
"""Taken from each calibration request: what more requests show is worth more than what more candidates show."""

NOISE_SHARE = 4
"""One calibration request in so many is kept out of the calibration, and the noise of a graph is measured on those:
scales and weights are fitted to the others."""

LARGEST_WEIGHT = 127
LARGEST_WEIGHT_REDUCED = 64
"""Symmetric s8 weights as ``quantize_static`` scales them, whole and with the reduced range."""
HEAD_ROWS = 2
"""Outputs of a head at the most: the score, or the two logits that it is the difference of."""

console = Console()


def quantize(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Quantize, and judge.

    Args:
        recipe: its quantize and gate sections.
        workspace: with the dataset, the FP32 graph, which is the parent of the gate, and the teacher.
        draft: gets the INT8 graphs.

    Raises:
        GateError: the ranking became worse than the budget allows.
        RecipeError: quantize.exclude leaves nothing to quantize.
    """
    onnx_folder = workspace.onnx
    requests = calibration_requests(recipe, Dataset.read(workspace.dataset), TextRules.load(onnx_folder))
    copy_text_files(onnx_folder, draft.folder)
    nodes = quantize_graphs(onnx_folder, draft.folder, requests, recipe.quantize, ranks=recipe.tensor_parallel)
    if recipe.quantize.embeddings:
        shrink_folder(draft.folder)
    share_weights(draft.folder)
    kept = sorted(set(quantizable_nodes(onnx_folder, [])) - set(nodes))
    stayed = f"; {len(kept)} stay in FP32 (fp32_nodes in the manifest names them)" if kept else ""
    console.print(f"  INT8: {len(nodes)} of {len(nodes) + len(kept)} linear layers{stayed}", highlight=False)
    rungs = Rung(INT8, draft.folder), Rung(EXPORTED, onnx_folder)
    draft.metrics |= require_ranking(recipe, workspace, "quantize", *rungs)
    draft.metrics |= {"int8_nodes": nodes, "fp32_nodes": kept, "reduce_range": has_reduced_range()}


def quantize_graphs(
    onnx_folder: Path,
    folder: Path,
    requests: list[Request],
    settings: QuantizeSettings,
    *,
    smooths: bool = True,
    ranks: int = 1,
) -> list[str]:
    """Write the Q/DQ graphs with as many INT8 layers as the noise limit allows, and return their node names.

    The two graphs of a shared-context ranker hold the same layers: one is INT8 in both or in neither. calibration.json
    beside them records what was seen on the way. ``smooths``: outliers of activations move into the weights first
    (SmoothQuant), which halves the noise of INT8. ``ranks``: what ``tensor_parallel`` will cut the graphs into.

    Raises:
        ArtifactError: a written graph does not hold the Q/DQ pairs that were asked for.
        GateError: not even one layer can be quantized within the noise limit.
        RecipeError: quantize.exclude leaves no node to quantize.
    """
    tokenizer = RequestTokenizer.from_folder(onnx_folder, cache_entries=100_000)
    tensors = [tensors_of(request, tokenizer) for request in requests]
    nodes = quantizable_nodes(onnx_folder, settings.exclude)
    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        fitted, kept_aside = split_for_noise(tensors)
        is_decoder = architecture_named(tokenizer.rules.architecture).norms_first
        by_graph = graph_feeds(onnx_folder, fitted)
        writer = GraphWriter(by_graph, Path(scratch), smooths=smooths, is_decoder=is_decoder, ranks=ranks)
        writer.write(folder, nodes)
        noise = NoiseMeter(onnx_folder, kept_aside)
        final = all_layers = noise.of(folder)
        if all_layers > settings.noise:
            work: Counter[str] = Counter()
            for path, feeds in writer.feeds.items():
                work.update(work_of_nodes(path, feeds))
            nodes = quiet_enough(nodes, work, writer.write, noise, folder, settings.noise)
            final = noise.of(folder)
        found = LayerNoise(settings.noise, all_layers, final, noise.by_layer)
        CalibrationRecord(found, record_activations(folder, writer.feeds)).save(folder)
    for source in model_files(onnx_folder):
        check_quantized(source, folder / source.name, nodes)
    return nodes


class GraphWriter:
    """Writes Q/DQ graphs of any choice of nodes; calibrates, scales and rounds once, for all of them.

    A layer's scales and integers do not depend on which other layers are quantized. So each graph is quantized whole
    the first time, and every choice is that one with the other layers' Q/DQ pairs taken out again.

    Args:
        feeds: FP32 graphs with their calibration inputs.
        scratch: a folder for what lies between.
        smooths: outliers of activations move into the weights first.
        is_decoder: the graphs are a decoder's. Its attention is smoothed, too, and each row of an activation gets a
            scale of its own (row_scales.py).
        ranks: that a decoder's layers will be cut into.
        rounds: weights are rounded so that their errors cancel (rounding.py), else each to the nearest step.
    """

    def __init__(
        self,
        feeds: Mapping[Path, list[Feed]],
        scratch: Path,
        *,
        smooths: bool = True,
        is_decoder: bool = False,
        ranks: int = 1,
        rounds: bool = True,
    ) -> None:
        self.feeds = dict(feeds)
        self._scratch, self._rounds = scratch, rounds
        if smooths:
            smooth_graphs(self.feeds, scratch, attention=is_decoder)
            self.feeds = {scratch / graph.name: feeds for graph, feeds in self.feeds.items()}
        if is_decoder:
            self.feeds = {_with_row_scales(graph, scratch, ranks): feeds for graph, feeds in self.feeds.items()}
        self._fp32 = {path: onnx.load(path) for path in self.feeds}
        self._quantized: dict[Path, onnx.ModelProto] = {}

    def write(self, folder: Path, nodes: list[str]) -> None:
        """Write the graphs with these nodes quantized, which must be among those of the first call."""
        if not self._quantized:
            self._quantize(nodes)
        for source, fp32 in self._fp32.items():
            quantized = self._quantized.get(source, fp32)
            save_graph(with_few_quantized(quantized, fp32, set(nodes)), folder / source.name)

    def _quantize(self, nodes: list[str]) -> None:
        rounder = WeightRounder(self.feeds) if self._rounds else None
        for source, feeds in self.feeds.items():
            chosen = [node for node in linear_nodes(source) if node in set(nodes)]
            if not chosen:  # an empty list would mean all of them
                continue
            path = self._scratch / f"{source.stem}.qdq.onnx"
            quantize_static(
                source,
                path,
                _Calibration(feeds),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=has_reduced_range(),
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=chosen,
                calibrate_method=CalibrationMethod.MinMax,  # what is rare is not clipped
                use_external_data_format=is_large(self._fp32[source]),
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "WeightSymmetric": True},
            )
            if rounder:
                rounder.apply(path, LARGEST_WEIGHT_REDUCED if has_reduced_range() else LARGEST_WEIGHT)
            self._quantized[source] = onnx.load(path)


def _with_row_scales(source: Path, scratch: Path, ranks: int) -> Path:
    """A graph's copy in which the inputs of linear layers have a scale per row."""
    model, path = onnx.load(source), scratch / source.name
    names = linear_nodes(source)
    scale_rows(model, {name for name in names if ranks == 1 or not name.startswith(SPLIT_AMONG_RANKS)})
    save_graph(model, path)
    return path


def with_few_quantized(quantized: onnx.ModelProto, fp32: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """A copy of a Q/DQ graph in which only some layers are quantized, as ``quantize_static`` writes it for these alone.

    An activation is quantized when one of these layers reads it, and then for all that read it.

    Args:
        quantized: made of ``fp32``, the nodes' names kept.
        fp32: where the other layers' weights come from.
        nodes: names of the MatMuls that stay quantized.
    """
    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    exact = _values_before_rounding(result.graph)
    stay = {node.input[0] for node in result.graph.node if node.name in nodes}
    weights = {node.name: node.input[1] for node in fp32.graph.node if node.op_type == "MatMul"}
    for node in result.graph.node:
        if node.name in weights and node.name not in nodes:
            node.input[1] = weights[node.name]
        if node.op_type != "DequantizeLinear":
            node.input[:] = [name if name in stay else exact.get(name, name) for name in node.input]
    _drop_unread(result.graph)
    present = {tensor.name for tensor in result.graph.initializer}
    read = {name for node in result.graph.node for name in node.input}
    result.graph.initializer.extend(tensor for tensor in fp32.graph.initializer if tensor.name in read - present)
    return result


def _values_before_rounding(graph: onnx.GraphProto) -> dict[str, str]:
    """For each activation that was quantized and dequantized the one that it was before."""
    before = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    pairs = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in before]
    return {node.output[0]: before[node.input[0]] for node in pairs}


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the nodes and constants that lead nowhere."""
    outputs = {tensor.name for tensor in graph.output}
    while True:  # of a pair first what dequantizes, then what quantizes
        read = {name for node in graph.node for name in node.input} | outputs
        unread = [node for node in graph.node if not read & set(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def quantizable_nodes(folder: Path, exclude: list[str]) -> list[str]:
    """The linear layers of the encoder by node name, less the excluded, in the order of the graphs.

    Raises:
        RecipeError: nothing is left.
    """
    linear = list(dict.fromkeys(node for path in model_files(folder) for node in linear_nodes(path)))
    kept = [name for name in linear if not any(re.search(pattern, name) for pattern in exclude)]
    if not kept:
        raise RecipeError(f"quantize.exclude: {exclude} leaves none of the {len(linear)} linear layers of {folder}")
    return kept


def linear_nodes(path: Path) -> list[str]:
    """MatMuls with constant weights.

    The head costs nothing and stays in FP32: a Gemm on [CLS] alone, or a MatMul that gives a number or two per
    candidate.
    """
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer if tensor.dims and tensor.dims[-1] > HEAD_ROWS}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def graph_feeds(folder: Path, requests: list[RequestTensors]) -> dict[Path, list[Feed]]:
    """What each FP32 graph of a folder is fed with for these requests, with their true padding."""
    feeds = open_engine(folder).graph_feeds(requests)
    return {folder / name: one for name, one in feeds.items()}


def split_for_noise(requests: Sequence[RequestTensors]) -> tuple[list[RequestTensors], list[RequestTensors]]:
    """Calibration requests that scales and weights are fitted to, and those on which the noise is measured."""
    fitted = [request for number, request in enumerate(requests) if number % NOISE_SHARE]
    return fitted or list(requests), list(requests[::NOISE_SHARE])


def calibration_requests(recipe: Recipe, dataset: Dataset, rules: TextRules) -> list[Request]:
    """Training requests spread over the users, never judged ones, with a few candidates each."""
    generator = np.random.default_rng(recipe.seed)
    wanted = min(recipe.quantize.calibration_examples, len(dataset.training))
    picks = generator.choice(len(dataset.training), size=wanted, replace=False)
    requests = requests_of(dataset, [dataset.training[i] for i in sorted(picks)], rules)
    return [Request(r.query, r.history, r.items[:CALIBRATION_CANDIDATES]) for r in requests]


class _Calibration(CalibrationDataReader):
    """One request at a time."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._remaining = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._remaining, None)


def check_quantized(source: Path, path: Path, nodes: list[str]) -> None:
    """Count what is really in the file: each chosen MatMul has a DequantizeLinear on both inputs."""
    chosen = set(nodes) & set(linear_nodes(source))
    graph = onnx.load(path).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    bare = [n.name for n in graph.node if n.name in chosen and not set(n.input) <= dequantized]
    found = sum(node.name in chosen for node in graph.node)
    if bare or found != len(chosen):
        raise ArtifactError(
            f"{path}: {found} of {len(chosen)} chosen MatMuls found; without Q/DQ on both inputs: {bare}"
        )
