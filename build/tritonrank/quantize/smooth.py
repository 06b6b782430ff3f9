"""SmoothQuant: outliers move from activations into weights, before both become eight bits.

A few channels of an activation are ten times larger than the others, and one scale for all of them rounds the others
away. Dividing each channel by a factor before the linear layers, and multiplying the weights' rows by it, computes the
same and leaves ranges that eight bits can hold (Xiao et al. 2023). The factor of channel j is
max|x_j|^a / max|W_j|^(1-a). What attention gives to its output projection has such channels in decoders
(docs/decoders.md has SmolLM2's), and none in encoders, whose is left alone.

The division costs nothing where something before it can take it over: the weight of a norm that linear layers alone
read (a decoder norms before its layers; an encoder's residual reads the norm as well), and of a gated FFN's product the
linear layer that is multiplied by the gate. Elsewhere it is one multiplication per smoothed activation.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tritonrank_runtime.engine import Feed

from tritonrank.artifacts.weight_file import save_graph
from tritonrank.graphs.watch import watched_values

NORM_STRENGTH, PRODUCT_STRENGTH, ATTENTION_STRENGTH = 0.65, 0.9, 0.75
"""The exponent a by what gives the activation: a norm, the last product of a GELU or of a gated FFN, or attention.
These left the least noise on MovieLens calibration requests (docs/log.md has the others)."""
SMOOTHED = ("LayerNormalization", "Mul")
"""Operators that give the activations: the last one of a root-mean-square norm is a product with its weight."""
ATTENTION = "Reshape"
"""The operator that gives a decoder's attention: heads put side by side."""
SMALLEST = 1e-5
"""Channels and weights below this count as this much: a channel that is always 0 needs no factor."""


def smooth_graphs(
    feeds: Mapping[Path, Sequence[Feed]], folder: Path, *, attention: bool = False
) -> dict[Path, list[str]]:
    """Write the graphs of a ranker with smoothed inputs; they compute the same as their sources, up to rounding.

    A layer that is in several graphs (a shared-context ranker's two) gets one factor, fit for the inputs that it has in
    all of them, so that its weights stay the same in all of them.

    Args:
        feeds: FP32 graphs with their calibration inputs.
        folder: where the smoothed graphs go, under the same names; so do those of their nodes.
        attention: what attention gives is smoothed, too.

    Returns:
        For each source the names of the activations that were smoothed.
    """
    graphs = [_Smoothed(path, of_graph, attention) for path, of_graph in feeds.items()]
    for group in _joined(layers for graph in graphs for layers in graph.layers.values()):
        places = [(graph, name) for graph in graphs for name, layers in graph.layers.items() if group & set(layers)]
        largest = np.max([graph.largest[name] for graph, name in places], axis=0)
        weights = [weight for graph, name in places for weight in graph.weights(name)]
        factor = _factor(largest, weights, places[0][0].strength(places[0][1]))
        # In all graphs or in none: the native engine has one layer for both.
        is_free = all(graph.can_be_taken_over(name) for graph, name in places)
        for graph in graphs:
            graph.smooth([name for of_graph, name in places if of_graph is graph], factor, is_free=is_free)
    for path, graph in zip(feeds, graphs, strict=True):
        save_graph(graph.model, folder / path.name)
        onnx.checker.check_model(str(folder / path.name))
    return {path: list(graph.layers) for path, graph in zip(feeds, graphs, strict=True)}


class _Smoothed:
    """A graph being smoothed: which activations can be, the layers that they feed, and what they reach."""

    def __init__(self, source: Path, feeds: Sequence[Feed], attention: bool) -> None:
        self.model = onnx.load(source)
        self._tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._made_by = {name: node for node in self.model.graph.node for name in node.output}
        operators = (*SMOOTHED, ATTENTION) if attention else SMOOTHED
        smoothed = {node.output[0] for node in self.model.graph.node if node.op_type in operators}
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for name in set(node.input):
                self._readers[name].append(node)
            if node.op_type == "MatMul" and node.input[0] in smoothed and node.input[1] in self._tensors:
                self._consumers[node.input[0]].append(node)
        self.layers = {
            name: [one for node in nodes for one in (node.name, f"{source}: {node.input[1]}")]
            for name, nodes in self._consumers.items()
        }
        """activation -> the names of the linear layers that it feeds, and of their weights, which two may share"""
        self.largest = _largest_by_channel(source, list(self.layers), feeds) if self.layers else {}

    def weights(self, name: str) -> list[NDArray[np.float32]]:
        """The weights of the layers that an activation feeds."""
        return [numpy_helper.to_array(self._tensors[node.input[1]]) for node in self._consumers[name]]

    def strength(self, name: str) -> float:
        """The exponent for an activation."""
        node = self._made_by[name]
        if node.op_type == ATTENTION:
            return ATTENTION_STRENGTH
        is_norm = node.op_type == "LayerNormalization" or bool(self._norm_weights(node))
        return NORM_STRENGTH if is_norm else PRODUCT_STRENGTH

    def can_be_taken_over(self, name: str) -> bool:
        """Whether something before an activation can divide its channels."""
        return bool(self._what_takes_over(name))

    def smooth(self, names: Sequence[str], factor: NDArray[np.float32], *, is_free: bool) -> None:
        """Divide these activations' channels by the factor, and multiply the rows of the weights behind them.

        Args:
            names: of the activations.
            factor: by channel.
            is_free: what is before them takes the division over.
        """
        rows = [(node, 1) for name in names for node in self._consumers[name]]
        self._multiply(rows, factor[:, None])
        columns: list[_Constant] = []
        for name in names:
            if is_free:
                columns += self._what_takes_over(name)
            else:
                self._divide(name, 1 / factor)
        self._multiply(columns, 1 / factor)

    def _what_takes_over(self, name: str) -> list["_Constant"]:
        """The constants before an activation whose channels can be divided in its place."""
        node = self._made_by[name]
        others = len(self._readers[name]) - len(self._consumers[name])
        if others or node.op_type == ATTENTION or any(output.name == name for output in self.model.graph.output):
            return []
        if places := self._norm_weights(node):
            return [(node, place) for place in places]
        return next(filter(None, (self._linear_only_for(node, made) for made in node.input)), [])

    def _norm_weights(self, node: onnx.NodeProto) -> list[int]:
        """Which inputs of a node are a constant for each channel: the weight of a norm, and its bias."""
        constants = {place: self._tensors[name].dims for place, name in enumerate(node.input) if name in self._tensors}
        return [place for place, dims in constants.items() if len(dims) == 1 and dims[0] > 1]

    def _linear_only_for(self, product: onnx.NodeProto, name: str) -> list["_Constant"]:
        """A linear layer's weight and bias if its output goes into this product alone."""
        found: list[_Constant] = []
        node, reader = self._made_by.get(name), product
        while node is not None and self._readers[node.output[0]] == [reader]:
            constants = [place for place, one in enumerate(node.input) if one in self._tensors]
            if node.op_type == "MatMul" and constants == [1]:
                return [*found, (node, 1)]
            if node.op_type != "Add" or len(constants) != 1:
                break
            found.append((node, constants[0]))
            node, reader = self._made_by.get(node.input[1 - constants[0]]), node
        return []

    def _multiply(self, constants: Iterable["_Constant"], by: NDArray[np.float32]) -> None:
        """Multiply constants, each once however many nodes read it; other readers keep it as it was."""
        uses: defaultdict[str, list[_Constant]] = defaultdict(list)
        for node, place in constants:
            uses[node.input[place]].append((node, place))
        for name, readers in uses.items():
            tensor = self._tensors[name]
            value = numpy_helper.to_array(tensor) * by
            if len(readers) == len(self._readers[name]):
                tensor.CopyFrom(numpy_helper.from_array(value, name))
                continue
            own = f"{name}_of_{readers[0][0].output[0]}"
            self.model.graph.initializer.append(numpy_helper.from_array(value, own))
            self._tensors[own] = self.model.graph.initializer[-1]
            self._readers[own] = [node for node, _ in readers]
            self._readers[name] = [node for node in self._readers[name] if node not in self._readers[own]]
            for node, place in readers:
                node.input[place] = own

    def _divide(self, name: str, inverse: NDArray[np.float32]) -> None:
        graph = self.model.graph
        for node in self._consumers[name]:
            node.input[0] = f"{name}_smoothed"
        graph.initializer.append(numpy_helper.from_array(inverse, f"{name}_factor"))
        place = next(i for i, node in enumerate(graph.node) if name in node.output) + 1
        multiply = helper.make_node("Mul", [name, f"{name}_factor"], [f"{name}_smoothed"], name=f"{name}_smooth")
        graph.node.insert(place, multiply)


_Constant = tuple[onnx.NodeProto, int]
"""A constant as an input of a node."""


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
