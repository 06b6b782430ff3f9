"""SmoothQuant: outliers move from activations into weights, before both become eight bits.

A few channels of an activation are ten times larger than the others, and one scale for all of them rounds the others
away. Dividing each channel by a factor before the linear layers, and multiplying the weights' rows by it, computes the
same and leaves ranges that eight bits can hold (Xiao et al. 2023). The factor of channel j is
max|x_j|^a / max|W_j|^(1-a). It costs one multiplication per smoothed activation. What attention gives to its output
projection has no such channels and is left alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tritonrank_runtime.engine import Feed

from tritonrank.graphs.watch import watched_values

STRENGTHS = {"LayerNormalization": 0.65, "Mul": 0.9}
"""The exponent a by the operator that gives the activation: a LayerNorm, or the last product of a GELU. These left the
least noise on MovieLens calibration requests (docs/log.md has the others)."""
SMALLEST = 1e-5
"""Channels and weights below this count as this much: a channel that is always 0 needs no factor."""


def smooth_graphs(feeds: Mapping[Path, Sequence[Feed]], folder: Path) -> dict[Path, list[str]]:
    """Write the graphs of a ranker with smoothed inputs; they compute the same as their sources, up to rounding.

    A layer that is in several graphs (a shared-context ranker's two) gets one factor, fit for the inputs that it has in
    all of them, so that its weights stay the same in all of them.

    Args:
        feeds: FP32 graphs with their calibration inputs.
        folder: where the smoothed graphs go, under the same names; so do those of their nodes.

    Returns:
        For each source the names of the activations that were smoothed.
    """
    graphs = [_Smoothed(path, of_graph) for path, of_graph in feeds.items()]
    for group in _joined(layers for graph in graphs for layers in graph.layers.values()):
        places = [(graph, name) for graph in graphs for name, layers in graph.layers.items() if group & set(layers)]
        largest = np.max([graph.largest[name] for graph, name in places], axis=0)
        weights = {layer: weight for graph, name in places for layer, weight in graph.weights(name).items()}
        strength = places[0][0].strengths[places[0][1]]
        factor = _factor(largest, list(weights.values()), strength)
        for graph, name in places:
            graph.smooth(name, factor)
    for path, graph in zip(feeds, graphs, strict=True):
        onnx.checker.check_model(graph.model)
        onnx.save(graph.model, folder / path.name)
    return {path: list(graph.layers) for path, graph in zip(feeds, graphs, strict=True)}


class _Smoothed:
    """A graph being smoothed: which activations can be, the layers that they feed, and what they reach."""

    def __init__(self, source: Path, feeds: Sequence[Feed]) -> None:
        self.model = onnx.load(source)
        self._tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.strengths = {n.output[0]: STRENGTHS[n.op_type] for n in self.model.graph.node if n.op_type in STRENGTHS}
        self._consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            if node.op_type == "MatMul" and node.input[0] in self.strengths and node.input[1] in self._tensors:
                self._consumers[node.input[0]].append(node)
        self.layers = {name: [node.name for node in nodes] for name, nodes in self._consumers.items()}
        """activation -> the names of the linear layers that it feeds"""
        self.largest = _largest_by_channel(source, list(self.layers), feeds) if self.layers else {}

    def weights(self, name: str) -> dict[str, NDArray[np.float32]]:
        """The weights of the layers that an activation feeds, by layer."""
        return {n.name: numpy_helper.to_array(self._tensors[n.input[1]]) for n in self._consumers[name]}

    def smooth(self, name: str, factor: NDArray[np.float32]) -> None:
        """Divide an activation's channels by the factor, and multiply the rows of the weights behind it."""
        for node, weight in zip(self._consumers[name], self.weights(name).values(), strict=True):
            tensor = self._tensors[node.input[1]]
            tensor.CopyFrom(numpy_helper.from_array(weight * factor[:, None], tensor.name))
            node.input[0] = f"{name}_smoothed"
        graph = self.model.graph
        graph.initializer.append(numpy_helper.from_array(1 / factor, f"{name}_factor"))
        place = next(i for i, node in enumerate(graph.node) if name in node.output) + 1
        multiply = helper.make_node("Mul", [name, f"{name}_factor"], [f"{name}_smoothed"], name=f"{name}_smooth")
        graph.node.insert(place, multiply)


def _joined(groups: Iterable[Sequence[str]]) -> list[set[str]]:
    """Groups of layers, those with a layer in common made one."""
    joined: list[set[str]] = []
    for group in groups:
        touching = [other for other in joined if other & set(group)]
        joined = [other for other in joined if other not in touching] + [set(group).union(*touching)]
    return joined


def _factor(
    largest: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], strength: float
) -> NDArray[np.float32]:
    rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    factor = np.maximum(largest, SMALLEST) ** strength / np.maximum(rows, SMALLEST) ** (1 - strength)
    return np.asarray(factor, dtype=np.float32)


def _largest_by_channel(source: Path, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude of each channel (last axis) over all feeds."""
    largest: dict[str, NDArray[np.float32]] = {}
    for values in watched_values(source, names, feeds):
        for name, value in values.items():
            found = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, 0), found)
    return largest
