"""A scale for each row of an activation, in a graph whose scales are fixed: what a decoder's eight bits need.

In a decoder the tokens of one activation differ in size by ten times and more; in Llamas a few tokens, the first of all
rows among them, are a thousand times larger behind the gate of a few layers (Sun et al. 2024, "Massive Activations in
Large Language Models"). One fixed scale for all tokens leaves most of them a few of 256 steps. So each row is divided
by its largest magnitude before the linear layers, and what they give is multiplied by it: y = r ((x / r) W). That
computes the same, and x / r lies between -1 and 1 whatever the token, so that a fixed scale fits all of them. A row's
scale depends on the row alone, so a candidate is scored alike beside any others, which dynamic quantization does not
give: ONNX Runtime's takes one scale per batch.

Ranks that compute a layer together (tensor parallel) would each find another scale in their share of a row, and no
longer give what the whole ranker gave to the gate. So where there are to be ranks, what is split among them keeps a
fixed scale.

It takes four cheap operators per activation and one more per layer; what they cost is in docs/decoders.md.
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

SMALLEST = 1e-12
"""Scale of a row of zeros."""
SUFFIX = "_rows"
"""What is added to the name of an activation when its rows were divided, and to that of a product of those."""

SPLIT_AMONG_RANKS = ("/attention_out", "/ffn_out")
"""How names of a decoder's layers begin that read what ranks have shares of."""


def scale_rows(model: onnx.ModelProto, layers: set[str]) -> list[str]:
    """Give every activation that these layers read a scale per row, in place.

    Args:
        model: an FP32 graph, opset 18 or later.
        layers: names of MatMuls with constant weights; they keep their names.

    Returns:
        The names of the activations.
    """
    graph = model.graph
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.name in layers:
            readers[node.input[0]].append(node)
    if not readers:
        return []
    axis, smallest = f"last_axis{SUFFIX}", f"smallest{SUFFIX}"
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), axis))
    graph.initializer.append(numpy_helper.from_array(np.array(SMALLEST, np.float32), smallest))
    before: dict[str, list[onnx.NodeProto]] = {}
    after: dict[str, onnx.NodeProto] = {}
    for name, nodes in readers.items():
        magnitudes, largest, scale, divided = (
            f"{name}{SUFFIX}{end}" for end in ("_magnitude", "_largest", "_unit", "")
        )
        before[nodes[0].name] = [
            helper.make_node("Abs", [name], [magnitudes], name=magnitudes),
            helper.make_node("ReduceMax", [magnitudes, axis], [largest], name=largest, keepdims=1),
            helper.make_node("Max", [largest, smallest], [scale], name=scale),
            helper.make_node("Div", [name, scale], [divided], name=divided),
        ]
        for node in nodes:
            whole = node.output[0]
            node.input[0], node.output[0] = divided, f"{whole}{SUFFIX}"
            after[node.name] = helper.make_node("Mul", [f"{whole}{SUFFIX}", scale], [whole], name=f"{whole}{SUFFIX}")
    ordered: list[onnx.NodeProto] = []
    for node in graph.node:
        ordered += [*before.get(node.name, ()), node]
        if node.name in after:
            ordered.append(after[node.name])
    del graph.node[:]
    graph.node.extend(ordered)
    return list(readers)
