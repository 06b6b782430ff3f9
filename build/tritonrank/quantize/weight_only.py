"""FP32 ONNX -> weights alone in four or eight bits, for small batches that wait for memory and not for arithmetic.

Each run of BLOCK weights of an output channel has a scale of its own. ONNX Runtime's operator
(``com.microsoft.MatMulNBits``) rounds activations to eight bits as they come, one scale per row and block: an outlier
costs its own block alone, and a row is scored alike beside any others (tested within 1e-4). What that costs in time
against eight bits on both sides, and where it pays, is in docs/decoders.md.

Four bits are rounded so that their errors cancel (``rounding.py``). Where a layer in four bits disturbs the logits more
than ``quantize.noise`` allows, it gets eight; where eight are too few, FP32.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from rich.console import Console
from tritonrank_runtime.engine import Feed
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.rungs import EXPORTED, Rung, quantized_name
from tritonrank.artifacts.weight_file import save_graph, share_weights
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.judge.gatekeeper import require_ranking
from tritonrank.quantize.calibration_record import CalibrationRecord, LayerNoise
from tritonrank.quantize.embeddings import shrink_folder
from tritonrank.quantize.int8 import calibration_requests, graph_feeds, quantizable_nodes, split_for_noise
from tritonrank.quantize.rounding import WeightRounder
from tritonrank.quantize.sensitivity import NoiseMeter, quiet_enough, work_of_nodes
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import QuantizeSettings, Recipe
from tritonrank.system.quiet import quiet_libraries

DOMAIN = "com.microsoft"
BLOCK = 32
"""Weights under one scale; the operator wants a power of two from 16 on. Longer blocks take less memory (a scale is 32
bits) and leave more noise."""
INT8_ACTIVATIONS = 4
"""The operator's accuracy level at which it multiplies integers; without it weights become FP32 first, which took twice
the time and more on a CPU with VNNI."""
FEWEST_BITS = {"int4-weights": 4, "int8-weights": 8}
"""By ``quantize.method``."""
LARGEST = {4: 7, 8: 127}
"""Integers go from minus this to this, and are stored with one more added to it."""
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of a block's largest magnitude that its steps may reach to; the one with the least squared error is taken."""

console = Console()


class Chosen(NamedTuple):
    """Linear layers by the bits of their weights, by node name."""

    int4: list[str]
    int8: list[str]
    fp32: list[str]


def quantize_weights(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Quantize, and judge.

    Args:
        recipe: its quantize and gate sections.
        workspace: with the dataset, the FP32 graph, which is the parent of the gate, and the teacher.
        draft: gets the graphs.

    Raises:
        GateError: the ranking became worse than the budget allows.
        RecipeError: quantize.exclude leaves nothing to quantize.
    """
    source = workspace.onnx
    requests = calibration_requests(recipe, Dataset.read(workspace.dataset), TextRules.load(source))
    copy_text_files(source, draft.folder)
    chosen = write_weight_only(source, draft.folder, requests, recipe.quantize)
    if recipe.quantize.embeddings:
        shrink_folder(draft.folder)
    share_weights(draft.folder)
    counts = ", ".join(f"{len(nodes)} in {kind.upper()}" for kind, nodes in chosen._asdict().items() if nodes)
    console.print(f"  weights of linear layers: {counts} (the manifest names them)", highlight=False)
    rungs = Rung(quantized_name(recipe), draft.folder), Rung(EXPORTED, source)
    draft.metrics |= require_ranking(recipe, workspace, "quantize", *rungs)
    draft.metrics |= {f"{kind}_nodes": nodes for kind, nodes in chosen._asdict().items()}


def write_weight_only(
    onnx_folder: Path, folder: Path, requests: Sequence[Request], settings: QuantizeSettings
) -> Chosen:
    """Write the graphs with as few bits per weight as the noise limit allows; calibration.json says what was seen.

    Args:
        onnx_folder: the FP32 graphs with their text files.
        folder: gets the graphs.
        requests: calibration requests.
        settings: the recipe's quantize section, its method one of ``FEWEST_BITS``.

    Raises:
        GateError: not even one layer can have so few bits within the noise limit.
        RecipeError: quantize.exclude leaves no node to quantize.
    """
    tokenizer = RequestTokenizer.from_folder(onnx_folder, cache_entries=100_000)
    nodes = quantizable_nodes(onnx_folder, settings.exclude)
    fitted, kept_aside = split_for_noise([tensors_of(request, tokenizer) for request in requests])
    with quiet_libraries():
        writer = BlockWriter(graph_feeds(onnx_folder, fitted))
        meter = NoiseMeter(onnx_folder, kept_aside)
        int8, all_layers = _fitting(writer, meter, folder, settings.noise, nodes, 8, {})
        int4: list[str] = []
        if FEWEST_BITS[settings.method] == 4:
            others = dict.fromkeys(int8, 8)
            int4, all_layers = _fitting(writer, meter, folder, settings.noise, int8, 4, others)
        CalibrationRecord(LayerNoise(settings.noise, all_layers, meter.of(folder), meter.by_layer), []).save(folder)
    bits = {**dict.fromkeys(int8, 8), **dict.fromkeys(int4, 4)}
    linear = quantizable_nodes(onnx_folder, [])
    return Chosen(int4, [node for node in int8 if bits[node] == 8], [node for node in linear if node not in bits])


def _fitting(
    writer: "BlockWriter",
    meter: NoiseMeter,
    folder: Path,
    limit: float,
    nodes: list[str],
    bits: int,
    others: Mapping[str, int],
) -> tuple[list[str], float]:
    """Write as many of the nodes in so few bits as the limit allows; which, and the noise with all of them.

    Args:
        writer: writes graphs.
        meter: measures them.
        folder: where the chosen graphs go.
        limit: largest noise.
        nodes: the layers to choose from.
        bits: of their weights.
        others: bits of the layers that are not chosen; FP32 where it does not name them.
    """

    def write(target: Path, chosen: list[str]) -> None:
        writer.write(target, {**others, **dict.fromkeys(chosen, bits)})

    write(folder, nodes)
    noise = meter.of(folder)
    if noise <= limit:
        return nodes, noise
    work: Counter[str] = Counter()
    for path, feeds in writer.feeds.items():
        work.update(work_of_nodes(path, feeds))
    return quiet_enough(nodes, work, write, meter, folder, limit), noise


class BlockWriter:
    """Writes graphs with any choice of layers in few bits; rounds each layer once.

    Args:
        feeds: FP32 graphs with their calibration inputs.
        rounds: four bits are rounded so that their errors cancel, else each to the nearest step.
    """

    def __init__(self, feeds: Mapping[Path, list[Feed]], *, rounds: bool = True) -> None:
        self.feeds = dict(feeds)
        self._rounds = rounds
        self._rounder = WeightRounder(self.feeds)
        self._models = {path: onnx.load(path) for path in self.feeds}
        self._blocks: dict[tuple[str, int], tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}

    def write(self, folder: Path, bits: Mapping[str, int]) -> None:
        """Write the graphs with the weights of these nodes in so many bits."""
        for source, fp32 in self._models.items():
            # Without the weights first: a copy of all of them would be made for every choice.
            copy = onnx.ModelProto(ir_version=fp32.ir_version, opset_import=fp32.opset_import)
            copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
            graph = copy.graph
            graph.name = fp32.graph.name
            graph.input.extend(fp32.graph.input)
            graph.output.extend(fp32.graph.output)
            added: dict[str, NDArray[Any]] = {}
            for node in fp32.graph.node:
                few = bits.get(node.name)
                graph.node.append(node if few is None else self._few_bits(node, few, added))
            read = {name for node in graph.node for name in node.input}
            graph.initializer.extend(tensor for tensor in fp32.graph.initializer if tensor.name in read)
            graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in added.items())
            save_graph(copy, folder / source.name)

    def _few_bits(self, node: onnx.NodeProto, bits: int, added: dict[str, NDArray[Any]]) -> onnx.NodeProto:
        """The operator in place of a MatMul; its constants are added."""
        blocks, scales = f"{node.input[1]}_int{bits}", f"{node.input[1]}_scales{bits}"
        added[blocks], added[scales] = self._layer(node.name, bits)
        inputs, outputs = self._rounder.weights[node.name].shape
        return helper.make_node(
            "MatMulNBits",
            [node.input[0], blocks, scales],
            [*node.output],
            name=node.name,
            domain=DOMAIN,
            K=inputs,
            N=outputs,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def _layer(self, name: str, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        if (name, bits) not in self._blocks:
            weight = self._rounder.weights[name]
            scales = block_scales(weight, bits)
            steps = scales.repeat(BLOCK, axis=0)[: len(weight)]
            if self._rounds and bits == 4:
                integers = self._rounder.rounded(name, steps, LARGEST[bits])
            else:
                integers = np.clip(np.rint(weight / steps), -LARGEST[bits], LARGEST[bits]).astype(np.int8)
            self._blocks[name, bits] = packed(integers, bits), np.ascontiguousarray(scales.T)
        return self._blocks[name, bits]


def block_scales(weight: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """(inputs, outputs) -> (blocks, outputs): the step of each block of BLOCK inputs; zeros fill up the last one."""
    inputs, outputs = weight.shape
    blocks = np.pad(weight, ((0, -inputs % BLOCK), (0, 0))).reshape(-1, BLOCK, outputs)
    largest = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), np.finfo(np.float32).tiny * LARGEST[bits])
    tried = [largest * np.float32(clip / LARGEST[bits]) for clip in (CLIPS if bits == 4 else CLIPS[:1])]

    def error(steps: NDArray[np.float32]) -> NDArray[np.float32]:
        rounded = np.clip(np.rint(blocks / steps), -LARGEST[bits], LARGEST[bits]) * steps
        summed: NDArray[np.float32] = ((rounded - blocks) ** 2).sum(axis=1, keepdims=True)
        return summed

    best = np.argmin([error(steps) for steps in tried], axis=0)[np.newaxis]
    return np.asarray(np.take_along_axis(np.stack(tried), best, axis=0)[0, :, 0], dtype=np.float32)


def packed(integers: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """(inputs, outputs) signed -> (outputs, blocks, bytes of a block), as the operator reads it: the middle of the
    range is 0, and of two numbers in a byte the first is in the lower half."""
    inputs, outputs = integers.shape
    stored = np.pad(integers, ((0, -inputs % BLOCK), (0, 0))).astype(np.int16) + LARGEST[bits] + 1
    by_block = stored.astype(np.uint8).T.reshape(outputs, -1, BLOCK)
    return by_block if bits == 8 else by_block[..., 0::2] | (by_block[..., 1::2] << np.uint8(4))
