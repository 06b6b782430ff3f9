"""An ONNX graph as something to walk: who makes a tensor, who takes it, what is constant, what type it has."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

PRODUCTS = ("MatMul", "Gemm")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


class GraphView:
    """Look-ups over the nodes of a model; a snapshot: build it again after changing the graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.producers = {output: node for node in model.graph.node for output in node.output if output}
        self.consumers: defaultdict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name:
                    self.consumers[name].append((node, place))
        self._constants = dict(constant_tensors(model.graph))
        self.outputs = {tensor.name for tensor in model.graph.output}

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """The value of a constant tensor; None for what is computed or not there."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def made_by(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of this type."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == op_type else None

    def linear_weight(self, node: onnx.NodeProto) -> str | None:
        """The second input of a product if it is constant, behind a DequantizeLinear (and a QuantizeLinear) or not."""
        if node.op_type not in PRODUCTS:
            return None
        name = node.input[1]
        for op_type in ("DequantizeLinear", "QuantizeLinear"):
            if (made_by := self.made_by(name, op_type)) is not None:
                name = made_by.input[0]
        return name if self.is_constant(name) else None


def constant_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Initializers and the tensors of Constant nodes, by the name under which nodes use them."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], node.attribute[0].t


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor that inference can tell (TensorProto.FLOAT ...)."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = [*graph.input, *graph.output, *graph.value_info]
    types = {tensor.name: tensor.type.tensor_type.elem_type for tensor in typed}
    types |= {name: tensor.data_type for name, tensor in constant_tensors(graph)}
    return {name: kind for name, kind in types.items() if kind}


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the graph uses."""
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))


def label(node: onnx.NodeProto) -> str:
    """What messages call a node: its name, or its type and first output where it has none."""
    return node.name or f"{node.op_type} -> {node.output[0]}"


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((int(one.i) for one in node.attribute if one.name == name), default)
