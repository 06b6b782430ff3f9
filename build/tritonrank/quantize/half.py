"""FP32 ONNX -> FP16 ONNX, with FP32 kept where a sensitivity run shows that it matters.

TensorRT takes precision from the graph alone, so every tensor gets a type here, and a Cast stands wherever two parts
of different types meet. Constants that FP16 cannot hold (masks of -3e38) become MASKED_SCORE, whose exponential is 0
all the same. The score head computes a single number per candidate: it always stays in FP32, and so do the logits. So
do three parts of a decoder that FP16 cannot hold or tell apart: the squares in its root-mean-square norms, the angles
of its rotary positions, and the caps on its attention scores. Everything else is FP16 if it disturbs the logits little
enough; if not, the kinds of operators that disturb most for their work (LayerNorms, say) go back to FP32 first.

ONNX Runtime has hardly any FP16 kernels for CPUs: it computes in FP32 and leaves the roundings out, overflow included.
A gate over that would always pass. ``rounding_twin`` therefore writes every rounding as a pair of Casts in an FP32
graph, which ONNX Runtime keeps, and that twin is what is judged. A GPU that fuses operators rounds less often.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tritonrank_runtime.network import MASKED_SCORE

from tritonrank.graphs.graph_view import GraphView, constant_tensors, element_types, label
from tritonrank.graphs.norms import composed_norms, norm_nodes

LARGEST_HALF = float(np.finfo(np.float16).max)
SMALLEST_HALF = float(np.finfo(np.float16).smallest_normal)
SUMS = {"Add", "Expand", "Unsqueeze"}
MASKING = {"Mul", "Sub", "Where", "Cast", "Concat", "Reshape"}
PICKING = {"Gather", "GatherElements", "Reshape", "Squeeze"}
"""What takes rows out of the residual stream."""
TURNING = {"Cos", "Sin"}
EXACT = ("head", "exact")
"""Kinds that stay in FP32 in any case."""
KINDS = {
    "embeddings": 1.0,
    "layer norm": 1.0,
    "residual": 1.0,
    "activation": 1.0,
    "softmax": 1.0,
    "attention": 30.0,
    "linear": 300.0,
}
"""Kinds of operators, and roughly how the GPU's time is shared among them: what is FP32 should cost little."""
ATTENTION_CORE = frozenset({"softmax", "attention"})
"""From queries, keys and values to what is attended. Both in FP32, with Casts of queries, keys and values before them
and one behind, are the pattern that TensorRT (since 11.3) runs as one fused FP16 kernel with sums in FP32. One of them
alone would cut the fused kernel in two."""


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy in FP16.

    Args:
        model: FP32, with Q/DQ or without; inputs are integers. With Q/DQ its opset is 19 or later.
        keep: kinds (keys of KINDS) whose operators stay in FP32; those of ``EXACT`` do in any case.

    Returns:
        A graph with the same inputs and FP32 outputs; weights are FP16 where all who read them are.
    """
    types = element_types(model)
    kinds = kinds_of_nodes(model, types)
    return _Halving(model, types, {name for kind in (*keep, *EXACT) for name in kinds[kind]}).run()


def kinds_of_nodes(model: onnx.ModelProto, types: Mapping[str, int]) -> dict[str, list[str]]:
    """Labels of the floating-point operators by kind; apart are the score head (kind ``head``) and what FP16 cannot
    hold (kind ``exact``)."""
    view = GraphView(model)
    kinds: dict[str, list[str]] = {kind: [] for kind in (*KINDS, *EXACT)}
    norms = norm_nodes(view)
    head, exact = _after_the_last_norm(view, norms), composed_norms(view) | _angles(view) | _caps(view)
    has_seen_norm = False
    for node in model.graph.node:
        touches_floats = any(types.get(name) == TensorProto.FLOAT for name in (*node.input, *node.output))
        if not touches_floats or node.op_type == "Constant":
            continue
        kind = _kind(view, norms, node)
        if label(node) in head:
            kind = "head"
        elif label(node) in exact:
            kind = "exact"
        elif not has_seen_norm and _leads_to(view, node, norms, SUMS | {"Gather"}):
            kind = "embeddings"
        has_seen_norm = has_seen_norm or label(node) in norms
        kinds[kind].append(label(node))
    return kinds


class _Halving:
    """Rewrites the nodes in order, and makes each tensor in the type that who reads it wants."""

    def __init__(self, model: onnx.ModelProto, types: Mapping[str, int], keep: Collection[str]) -> None:
        self._source, self._types, self._keep = model, types, keep
        self._constants = dict(constant_tensors(model.graph))
        self._made: dict[str, int] = {}
        """The type in which a floating-point tensor was made."""
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}

    def run(self) -> onnx.ModelProto:
        for node in self._source.graph.node:
            if node.op_type != "Constant":
                self._add(node)
        for tensor in self._source.graph.output:
            if self._made.get(tensor.name) == TensorProto.FLOAT16:
                self._restore_output(tensor.name)
        result = onnx.ModelProto()
        result.CopyFrom(self._source)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(self._nodes)
        result.graph.initializer.extend(self._tensors.values())
        onnx.checker.check_model(result, full_check=True)
        return result

    def _add(self, node: onnx.NodeProto) -> None:
        wanted = TensorProto.FLOAT if label(node) in self._keep else TensorProto.FLOAT16
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._input(name, wanted) for name in node.input]
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            copy.attribute[0].i = wanted
        elif node.op_type == "ConstantOfShape" and self._types.get(node.output[0]) == TensorProto.FLOAT:
            value = numpy_helper.to_array(node.attribute[0].t)
            copy.attribute[0].t.CopyFrom(_constant(value, wanted, ""))
        self._nodes.append(copy)
        self._made |= {name: wanted for name in node.output if self._types.get(name) == TensorProto.FLOAT}

    def _input(self, name: str, wanted: int) -> str:
        """The tensor in the type that is wanted: itself, its constant, or a Cast of it."""
        if name in self._constants:
            return self._constant_input(name, wanted)
        made = self._made.get(name)
        if made is None or made == wanted:
            return name
        target = f"{name}_{'fp16' if wanted == TensorProto.FLOAT16 else 'fp32'}"
        if target not in self._made:
            self._nodes.append(helper.make_node("Cast", [name], [target], name=f"{target}_cast", to=wanted))
            self._made[target] = wanted
        return target

    def _constant_input(self, name: str, wanted: int) -> str:
        tensor = self._constants[name]
        if tensor.data_type == TensorProto.FLOAT and wanted == TensorProto.FLOAT16:
            target = f"{name}_fp16"
            if target not in self._tensors:
                self._tensors[target] = _constant(numpy_helper.to_array(tensor), wanted, target)
            return target
        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(numpy_helper.to_array(tensor), name)
        return name

    def _restore_output(self, name: str) -> None:
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [f"{name}_half" if one == name else one for one in names]
        cast = helper.make_node("Cast", [f"{name}_half"], [name], name=f"{name}_cast", to=TensorProto.FLOAT)
        self._nodes.append(cast)


def _constant(value: np.ndarray[Any, Any], wanted: int, name: str) -> TensorProto:
    if wanted != TensorProto.FLOAT16:
        return numpy_helper.from_array(value, name)
    value = np.where(np.abs(value) > LARGEST_HALF, np.sign(value) * -MASKED_SCORE, value)
    # A single number that would vanish (an epsilon under a root) becomes the smallest that does not.
    is_lost = (value.size == 1) & (value != 0) & (np.abs(value) < SMALLEST_HALF)
    value = np.where(is_lost, np.sign(value) * SMALLEST_HALF, value)
    return numpy_helper.from_array(value.astype(np.float16), name)


def _kind(view: GraphView, norms: Collection[str], node: onnx.NodeProto) -> str:
    if label(node) in norms:
        return "layer norm"
    if node.op_type in ("MatMul", "Gemm"):
        return "linear" if view.linear_weight(node) is not None else "attention"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return "linear"
    if node.op_type == "Softmax" or _leads_to(view, node, _labels(view, {"Softmax"}), SUMS | MASKING):
        return "softmax"
    if node.op_type == "Add" and any(view.is_constant(name) for name in node.input):
        sources = [view.producers.get(name) for name in node.input]
        if any(source is not None and view.linear_weight(source) is not None for source in sources):
            return "linear"  # its bias
    if _leads_to(view, node, norms, SUMS | PICKING):
        return "residual"
    return "activation"


def _labels(view: GraphView, op_types: Collection[str]) -> set[str]:
    return {label(node) for node in view.graph.node if node.op_type in op_types}


def _leads_to(view: GraphView, node: onnx.NodeProto, targets: Collection[str], through: Collection[str]) -> bool:
    """Whether the node and all that reads it, operators of these types, end in one of these nodes."""
    if node.op_type not in through:
        return False
    takers = [taker for name in node.output for taker, _ in view.consumers[name]]
    return bool(takers) and all(label(t) in targets or _leads_to(view, t, targets, through) for t in takers)


def _angles(view: GraphView) -> set[str]:
    """What positions are turned by, from the positions to cosine and sine: at 300, FP16 counts in quarters."""
    found: set[str] = set()
    waiting = [node for node in view.graph.node if node.op_type in TURNING]
    while waiting:
        node = waiting.pop()
        if label(node) not in found:
            found.add(label(node))
            waiting += [view.producers[name] for name in node.input if name in view.producers]
    return found


def _caps(view: GraphView) -> set[str]:
    """tanh(scores / cap) * cap before a softmax: near the cap, FP16 would make neighbours equal."""
    softmax, found = _labels(view, {"Softmax"}), set[str]()
    for node in view.graph.node:
        takers = [taker for name in node.output for taker, _ in view.consumers[name]]
        if node.op_type == "Tanh" and takers and all(_leads_to(view, t, softmax, SUMS | MASKING) for t in takers):
            divided = view.made_by(node.input[0], "Div")
            found |= {label(one) for one in (divided, node, *takers) if one is not None}
    return found


def _after_the_last_norm(view: GraphView, norms: Collection[str]) -> set[str]:
    """Everything between the last norms and the logits: the pooler, if there is one, and the head."""
    found: set[str] = set()
    waiting = [view.producers[name] for name in view.outputs if name in view.producers]
    while waiting:
        node = waiting.pop()
        if label(node) in norms or node.op_type == "Constant" or label(node) in found:
            continue
        found.add(label(node))
        waiting += [view.producers[name] for name in node.input if name in view.producers]
    return found
