"""A shard as the pieces between its collectives, for an engine that does not know ``DistCollective``.

Each piece is a graph of standard operators: whoever runs them (``shard_runner.py``) adds up the partial sums of all
ranks after one piece, and hands what later pieces need on to them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import helper

from tritonrank.graphs.parallel.cut_graph import PARTIAL, SHARE
from tritonrank.graphs.shapes import Probed


@dataclass(frozen=True)
class Segment:
    """One piece, and the sum behind it."""

    model: onnx.ModelProto
    partial: str | None
    """The output that has to be added up over the ranks; None behind the last piece."""
    sum: str | None
    """What later pieces call the sum."""


def segments_of(shard: onnx.ModelProto, probed: Mapping[str, Probed]) -> list[Segment]:
    """Cut a shard behind each partial sum.

    Args:
        shard: one rank's graph, from ``cut_graph``.
        probed: type and number of axes of the whole graph's tensors.
    """
    pieces: list[list[onnx.NodeProto]] = [[]]
    sums: list[onnx.NodeProto] = []
    initializers = {tensor.name: tensor for tensor in shard.graph.initializer}
    from_constants = _nodes_of_constants(shard.graph)
    for node in shard.graph.node:
        if node.op_type == "DistCollective":
            sums.append(node)
            pieces.append([])
        elif node.output[0] not in from_constants:  # those go wherever they are needed
            pieces[-1].append(node)
    wanted = {tensor.name for tensor in shard.graph.output}
    built: list[Segment] = []
    for number in reversed(range(len(pieces))):
        nodes = _with_constants(pieces[number], from_constants)
        made = {name for node in nodes for name in node.output}
        used = {name for node in nodes for name in node.input if name}
        sum_behind = sums[number] if number < len(sums) else None
        if sum_behind is not None:
            wanted = (wanted - {sum_behind.output[0]}) | {sum_behind.input[0]}
        outputs, inputs = sorted(made & wanted), sorted(used - made - set(initializers))
        wanted = (wanted - made) | set(inputs)
        graph = helper.make_graph(
            nodes,
            f"{shard.graph.name} segment {number}",
            [_info(name, shard.graph, probed) for name in inputs],
            [_info(name, shard.graph, probed) for name in outputs],
            [initializers[name] for name in sorted(used & set(initializers))],
        )
        model = helper.make_model(graph, opset_imports=shard.opset_import, ir_version=shard.ir_version)
        partial, total = (None, None) if sum_behind is None else (sum_behind.input[0], sum_behind.output[0])
        built.insert(0, Segment(model, partial, total))
    return built


def _nodes_of_constants(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Nodes that compute from initializers alone, by output."""
    constant = {tensor.name for tensor in graph.initializer}
    found: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.input and all(not name or name in constant for name in node.input):
            constant |= set(node.output)
            found |= dict.fromkeys(node.output, node)
    return found


def _with_constants(nodes: list[onnx.NodeProto], from_constants: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    result: list[onnx.NodeProto] = []
    done: set[str] = set()

    def add(node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in from_constants and name not in done:
                done.update(from_constants[name].output)
                add(from_constants[name])
        result.append(node)

    for node in nodes:
        add(node)
    return result


def _info(name: str, graph: onnx.GraphProto, probed: Mapping[str, Probed]) -> onnx.ValueInfoProto:
    """Type and number of axes; their sizes are left open."""
    for tensor in (*graph.input, *graph.output):
        if tensor.name == name:
            return tensor
    found = probed[re.sub(rf"{SHARE}\d+$", "", name.removesuffix(PARTIAL))]
    return helper.make_tensor_value_info(name, found.type, [None] * len(found.shape))
