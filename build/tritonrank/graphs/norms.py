"""Norms in a graph, by their nodes: one operator, or the handful that a root-mean-square norm is exported as.

ONNX has an operator for the latter only from opset 23, so exporters write x / sqrt(mean(x^2) + epsilon) * weight, and
runtimes that know the pattern make one kernel of it again.
"""

from collections.abc import Iterator

import onnx

from tritonrank.graphs.graph_view import GraphView, label

LAYER_NORM = "LayerNormalization"
ROOT_STEPS = ("Cast", "Add", "Sqrt", "Reciprocal", "Div", "Mul")
"""Operators from the mean of the squares to the product with the weight."""


def composed_norms(view: GraphView) -> set[str]:
    """Labels of the nodes that root-mean-square norms are composed of."""
    return {label(node) for mean in _means_of_squares(view) for node in _norm_around(view, mean)}


def norm_nodes(view: GraphView) -> set[str]:
    """Labels of the nodes of all norms."""
    whole = {label(node) for node in view.graph.node if node.op_type == LAYER_NORM}
    return whole | composed_norms(view)


def _means_of_squares(view: GraphView) -> Iterator[onnx.NodeProto]:
    for node in view.graph.node:
        squares = view.producers.get(node.input[0]) if node.op_type == "ReduceMean" else None
        if squares is not None and (squares.op_type == "Pow" or _is_square(squares)):
            yield node


def _is_square(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "Mul" and node.input[0] == node.input[1])


def _norm_around(view: GraphView, mean: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The squares, their mean, and what follows up to the product with a weight of one number per channel."""
    yield view.producers[mean.input[0]]
    node = mean
    while True:
        yield node
        weights = [view.constant(name) for name in node.input]
        if node.op_type == "Mul" and any(weight is not None and weight.ndim == 1 for weight in weights):
            return
        takers = [taker for name in node.output for taker, _ in view.consumers[name]]
        if len(takers) != 1 or takers[0].op_type not in ROOT_STEPS:
            return
        node = takers[0]
