"""Where a ranker's graph may be cut so that several devices compute one layer together.

A layer has two halves, attention and FFN, of one form: linear layers that widen (query, key, value; FFN in), something
that treats each head or neuron alone, and one linear layer that sums over them (attention out; FFN out). So the first
are split by column, the last by row, each rank computes its own heads and neurons, and what the ranks have is added up
(all-reduce). Shoeybi et al. 2019, "Megatron-LM", section 3. Embeddings, LayerNorms, the biases after a sum and the
score head stay whole on every rank: they are cheap, and all ranks hold the same hidden states between the sums.

The layers are found by structure, not by name. A layer split by row leads through additions alone into a LayerNorm, and
back from its input one meets linear layers before any LayerNorm: those are split by column. From there the split axis
is followed through every operator; whatever it meets on the way (biases, scales, the head count in a reshape) is noted
to be cut along. An operator for which this is not understood is an error, not a guess.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any

import onnx
from onnx import helper

from tritonrank.errors import ArtifactError
from tritonrank.graphs.graph_view import GraphView, attribute, label
from tritonrank.graphs.shapes import Probed, probe

HEADS_OF_INPUTS = {"context_keys": 1, "context_values": 1, "prefix_keys": 1, "prefix_values": 1}
"""The axis of the key heads in what one graph of a split ranker hands to the other."""
CONSTANT_CHAIN = {"Identity", "Cast", "QuantizeLinear", "DequantizeLinear"}
"""What may stand between a stored weight and the operator that uses it."""
ELEMENTWISE = {
    "Abs", "Add", "Cast", "Clip", "Div", "Equal", "Erf", "Exp", "Gelu", "Identity", "Max", "Min", "Mul", "Neg", "Pow",
    "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where",
}  # fmt: skip
REGROUPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Cut:
    """A constant input of a node of which each rank gets one piece."""

    node: int
    place: int
    axis: int


@dataclass(frozen=True)
class Resize:
    """A Reshape whose target holds, at this place, an extent that each rank has only its share of."""

    node: int
    place: int


@dataclass
class Plan:
    """What has to change in a graph; the same for every number of ranks. Nodes are places in ``graph.node``."""

    cuts: list[Cut] = field(default_factory=list)
    resizes: list[Resize] = field(default_factory=list)
    reduces: list[int] = field(default_factory=list)
    """Products whose results have to be added up over the ranks."""
    split_inputs: dict[str, int] = field(default_factory=dict)
    """Axis along which a rank has its share of a graph input."""
    split_outputs: dict[str, int] = field(default_factory=dict)
    extents: dict[int, str] = field(default_factory=dict)
    """Sizes that the number of ranks has to divide, and an operator where each was met."""
    probed: dict[str, Probed] = field(default_factory=dict)

    def ranks(self) -> list[int]:
        """The numbers of ranks that this graph can be cut into."""
        largest = gcd(*self.extents)
        return [number for number in range(1, largest + 1) if largest % number == 0]


def shard_plan(model: onnx.ModelProto, name: str) -> Plan:
    """Find what to cut.

    Args:
        model: one graph of a ranker: joint, batched, context or candidates; FP32, FP16 or with Q/DQ.
        name: what errors call it.

    Raises:
        ArtifactError: no layer of the known form is there, or a split axis meets an operator that is not understood.
    """
    return _Planner(model, name).run()


def constant_source(view: GraphView, name: str) -> str | None:
    """The stored tensor behind a chain of casts and Q/DQ; None for what depends on an input."""
    while (node := view.producers.get(name)) is not None and node.op_type in CONSTANT_CHAIN:
        name = node.input[0]
    return name if view.is_constant(name) else None


class _Planner:
    """Walks the nodes in order and follows the split axis."""

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self._model, self._name = model, name
        self._view = GraphView(model)
        self._plan = Plan(probed=probe(model, name))
        self._axes: dict[str, int] = {}
        """The axis along which each split tensor is split; what is not here is whole on every rank."""
        self._rules: dict[str, Callable[[int, onnx.NodeProto], Iterator[int] | None]] = {
            "Softmax": self._softmax,
            "QuantizeLinear": self._quantize,
            "DequantizeLinear": self._quantize,
            "Transpose": self._transpose,
            "Concat": self._concat,
            "Split": self._split,
            "Slice": self._slice,
            "Gather": self._gather,
            "MatMul": self._product,
            "ReduceMean": self._mean,
            "Shape": self._shape,
        }

    def run(self) -> Plan:
        by_row, by_column = self._layers()
        if not by_column:
            raise ArtifactError(
                f"{self._name}: no attention or FFN of the known form (linear layers, something per head or neuron, a "
                "linear layer, LayerNorm). Sharding knows the graphs that `tritonrank export` writes"
            )
        self._name_key_heads()
        for tensor in self._model.graph.input:
            if tensor.name in HEADS_OF_INPUTS:
                self._mark(tensor.name, HEADS_OF_INPUTS[tensor.name])
                self._plan.split_inputs[tensor.name] = HEADS_OF_INPUTS[tensor.name]
        for place, node in enumerate(self._model.graph.node):
            if node.output[0] in by_column:
                if node.input[0] in self._axes:
                    raise self._not_understood(node, "a layer to be split by column gets what is split already")
                self._cut(place, node, 1, 1)
                self._mark(node.output[0], self._rank(node.output[0]) - 1)
            elif node.output[0] in by_row:
                if self._axes.get(node.input[0]) != self._rank(node.input[0]) - 1:
                    raise self._not_understood(node, "a layer to be split by row does not get split features")
                self._cut(place, node, 1, 0)
                self._plan.reduces.append(place)
            elif any(source in self._axes for source in node.input):
                self._follow(place, node)
        for tensor in self._model.graph.output:
            if tensor.name in self._axes:
                if tensor.name not in HEADS_OF_INPUTS:
                    raise ArtifactError(f"{self._name}: output {tensor.name} would be split over the ranks")
                self._plan.split_outputs[tensor.name] = self._axes[tensor.name]
        return self._plan

    def _name_key_heads(self) -> None:
        """Let errors call the key heads what they are: with grouped queries they are few, and decide."""
        for tensor in (*self._model.graph.input, *self._model.graph.output):
            if tensor.name not in HEADS_OF_INPUTS:
                continue
            heads = self._shape_of(tensor.name)[HEADS_OF_INPUTS[tensor.name]]
            if heads == 1:
                raise ArtifactError(
                    f"{self._name}: all queries share one key head, which ranks cannot share out; leave "
                    "tensor_parallel at 1"
                )
            self._plan.extents[heads] = "heads of keys"

    def _layers(self) -> tuple[set[str], set[str]]:
        """Outputs of the products to split by row, and of those to split by column."""
        by_row, by_column = set(), set()
        for node in self._model.graph.node:
            if self._is_linear(node) and self._leads_to_norm(node.output[0]):
                sources = self._linear_sources(node.input[0])
                if sources:
                    by_row.add(node.output[0])
                    by_column |= sources
        for tensor in self._model.graph.output:  # the last layer of a context: keys and values, and nothing after them
            if tensor.name in HEADS_OF_INPUTS:
                by_column |= self._linear_sources(tensor.name)
        return by_row, by_column - by_row

    def _leads_to_norm(self, name: str) -> bool:
        for node, _ in self._view.consumers[name]:
            if node.op_type == "LayerNormalization" or self._is_mean_square(node):
                return True
            if node.op_type in {"Add", "Cast"} and self._leads_to_norm(node.output[0]):
                return True
        return False

    def _row_scale(self, node: onnx.NodeProto) -> str | None:
        """The scale per row that a node multiplies a layer's result by (quantize/row_scales.py); None: it does not."""
        if node.op_type != "Mul":
            return None
        return next((name for name in node.input if self._is_row_scale(name)), None)

    def _is_row_scale(self, name: str) -> bool:
        node = self._view.producers.get(name)
        if node is None or node.op_type != "Max":
            return False
        makers = (self._view.producers.get(source) for source in node.input)
        return any(maker is not None and maker.op_type == "ReduceMax" for maker in makers)

    def _is_mean_square(self, node: onnx.NodeProto) -> bool:
        """Whether a root-mean-square norm begins here, which the exporter writes as its operations."""
        return node.op_type == "Pow" and any(
            user.op_type == "ReduceMean" for user, _ in self._view.consumers[node.output[0]]
        )

    def _linear_sources(self, name: str) -> set[str]:
        """The linear layers that come first on every way back; none where a LayerNorm comes before them."""
        found: set[str] = set()
        pending, seen = [name], set()
        while pending:
            name = pending.pop()
            node = self._view.producers.get(name)
            if node is None or name in seen or node.op_type == "Shape":
                continue
            seen.add(name)
            if self._is_linear(node):
                found.add(name)
            elif node.op_type == "LayerNormalization":
                return set()
            else:
                scale = self._row_scale(node)
                pending += [source for source in node.input if source and source != scale]
        return found

    def _is_linear(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and constant_source(self._view, node.input[1]) is not None

    def _follow(self, place: int, node: onnx.NodeProto) -> None:
        """Find the split axis of a node's results from that of its inputs."""
        axes: Iterator[int] | None
        if node.op_type in ELEMENTWISE:
            axes = self._elementwise(place, node)
        elif node.op_type in REGROUPING:
            axes = self._regroup(place, node)
        elif node.op_type in self._rules:
            axes = self._rules[node.op_type](place, node)
        else:
            raise self._not_understood(node, f"{node.op_type} over a split axis")
        for output, axis in zip(node.output, axes or (), strict=False):
            self._mark(output, axis)

    def _elementwise(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        """Broadcasting counts axes from the right."""
        from_right = {self._rank(name) - self._axes[name] for name in node.input if name in self._axes}
        if len(from_right) > 1:
            raise self._not_understood(node, "its inputs are split along different axes")
        (distance,) = from_right
        extent = next(self._shape_of(name)[-distance] for name in node.input if name in self._axes)
        for number, name in enumerate(node.input):
            shape = self._shape_of(name) if name else ()
            if name in self._axes or len(shape) < distance or shape[-distance] == 1:
                continue
            if shape[-distance] != extent or constant_source(self._view, name) is None:
                raise self._not_understood(node, f"{name} is whole, but meets a split axis")
            self._cut(place, node, number, len(shape) - distance)
        yield self._rank(node.output[0]) - distance

    def _softmax(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        axis = self._axes[node.input[0]]
        if attribute(node, "axis", -1) % self._rank(node.input[0]) == axis:
            raise self._not_understood(node, "a softmax over the split axis")
        yield axis

    def _mean(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        """The norm of each head's queries and keys."""
        axis, rank = self._axes[node.input[0]], self._rank(node.input[0])
        given = self._view.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        axes = _integers(node, "axes") if given is None else [int(one) for one in given.reshape(-1)]
        if not axes or axis in {one % rank for one in axes} or not attribute(node, "keepdims", 1):
            raise self._not_understood(node, "a mean over the split axis")
        yield axis

    def _quantize(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        if any(prod(self._shape_of(name)) != 1 for name in node.input[1:] if name):
            raise self._not_understood(node, "an activation with more than one scale")
        yield self._axes[node.input[0]]

    def _regroup(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        """A reshape keeps the order of the elements, so the axis is where as many elements follow one of its steps."""
        source, target = self._shape_of(node.input[0]), self._shape_of(node.output[0])
        axis = self._axes[node.input[0]]
        block = prod(source[axis:])
        places = [new for new in range(len(target)) if prod(target[new:]) == block and target[new] > 1]
        if len(places) != 1 or node.input[0] not in self._axes:
            raise self._not_understood(node, f"{list(source)} -> {list(target)} tears the split axis {axis} apart")
        if node.op_type == "Reshape":
            self._check_target(place, node, places[0], axis)
        yield places[0]

    def _check_target(self, place: int, node: onnx.NodeProto, new: int, old: int) -> None:
        given = target_element(self._view, node.input[1], new)
        if given is not None and given > 0:
            self._plan.resizes.append(Resize(place, new))
        elif given == 0 and new != old:
            raise self._not_understood(node, "it copies the extent of another axis")

    def _transpose(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        order = _integers(node, "perm") or list(reversed(range(self._rank(node.input[0]))))
        yield order.index(self._axes[node.input[0]])

    def _concat(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        axes = {self._axes.get(name) for name in node.input}
        rank = self._rank(node.output[0])
        axis = self._axes.get(node.input[0])
        if len(axes) != 1 or axis is None or attribute(node, "axis", 0) % rank == axis:
            raise self._not_understood(node, "it joins what is split in different ways")
        yield axis

    def _split(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        axis = self._axes[node.input[0]]
        if attribute(node, "axis", 0) % self._rank(node.input[0]) == axis:
            raise self._not_understood(node, "it takes the split axis apart")
        yield from [axis] * len(node.output)

    def _slice(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        axis = self._axes[node.input[0]]
        sliced = self._view.constant(node.input[3]) if len(node.input) > 3 else None
        rank = self._rank(node.input[0])
        if sliced is None or axis in {int(one) % rank for one in sliced.reshape(-1)}:
            raise self._not_understood(node, "it takes a part of the split axis")
        yield axis

    def _gather(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        axis = self._axes.get(node.input[0])
        gathered = attribute(node, "axis", 0) % self._rank(node.input[0])
        if axis is None or axis == gathered or node.input[1] in self._axes:
            raise self._not_understood(node, "it picks from the split axis")
        yield axis if axis < gathered else axis + self._rank(node.input[1]) - 1

    def _product(self, place: int, node: onnx.NodeProto) -> Iterator[int]:
        """Attention: one product per head, so both sides are split by head."""
        left, right = (self._axes.get(name) for name in node.input)
        ranks = [self._rank(name) for name in node.input]
        if left is None or right is None or ranks[0] - left != ranks[1] - right or ranks[0] - left < 3:
            raise self._not_understood(node, "a product that does not keep the heads apart")
        yield self._rank(node.output[0]) - (ranks[0] - left)

    def _shape(self, place: int, node: onnx.NodeProto) -> None:
        """Shapes are those of the rank's own share."""

    def _mark(self, name: str, axis: int) -> None:
        self._axes[name] = axis
        self._plan.extents.setdefault(self._shape_of(name)[axis], name)

    def _cut(self, place: int, node: onnx.NodeProto, number: int, axis: int) -> None:
        self._plan.cuts.append(Cut(place, number, axis))
        self._plan.extents.setdefault(self._shape_of(node.input[number])[axis], label(node))

    def _shape_of(self, name: str) -> tuple[int, ...]:
        if name in self._plan.probed:
            return self._plan.probed[name].shape
        value = self._view.constant(name)
        assert value is not None, name
        return value.shape

    def _rank(self, name: str) -> int:
        return len(self._shape_of(name))

    def _not_understood(self, node: onnx.NodeProto, why: str) -> ArtifactError:
        return ArtifactError(
            f"{self._name}: {label(node)} ({node.op_type}) cannot be sharded: {why}. "
            "Sharding knows the graphs that `tritonrank export` writes"
        )


def target_element(view: GraphView, name: str, place: int) -> int | None:
    """One element of a reshape's target; None where it is computed from a shape."""
    constant = view.constant(name)
    if constant is not None:
        return int(constant.reshape(-1)[place])
    node = view.producers[name]
    if node.op_type == "Concat":
        # Exporters join targets from pieces of one element each.
        return target_element(view, node.input[place], 0) if len(node.input) > place else None
    if node.op_type in {"Unsqueeze", "Identity", "Cast"}:
        return target_element(view, node.input[0], place)
    return None


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    values: Any = next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), [])
    return [int(value) for value in values]
