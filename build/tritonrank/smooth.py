"""SmoothQuant: outliers move from activations into weights, before both become eight bits.

A few channels of an activation are ten times larger than the others, and one scale for all of them rounds the others
away. Dividing each channel by a factor before the linear layers, and multiplying the weights' rows by it, computes the
same and leaves ranges that eight bits can hold (Xiao et al. 2023). The factor of channel j is
max|x_j|^a / max|W_j|^(1-a). It costs one multiplication per smoothed activation. What attention gives to its output
projection has no such channels and is left alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tritonrank.engine import Feed
from tritonrank.watch import watched_values

STRENGTHS = {"LayerNormalization": 0.65, "Mul": 0.9}
"""The exponent a by the operator that gives the activation: a LayerNorm, or the last product of a GELU. These left the
least noise on MovieLens calibration requests (docs/log.md has the others)."""
SMALLEST = 1e-5
"""Channels and weights below this count as this much: a channel that is always 0 needs no factor."""


def smooth_graph(source: Path, target: Path, feeds: Sequence[Feed]) -> list[str]:
    """Write the graph with smoothed inputs; it computes the same as the source, up to rounding.

    Args:
        source: an FP32 graph.
        target: the smoothed one; nodes keep their names.
        feeds: calibration inputs.

    Returns:
        The names of the activations that were smoothed.
    """
    model = onnx.load(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    strengths = {n.output[0]: STRENGTHS[n.op_type] for n in model.graph.node if n.op_type in STRENGTHS}
    consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[0] in strengths and node.input[1] in weights:
            consumers[node.input[0]].append(node)
    largest = _largest_by_channel(source, list(consumers), feeds) if consumers else {}
    for name, nodes in consumers.items():
        factor = _factor(largest[name], [weights[node.input[1]] for node in nodes], strengths[name])
        for node in nodes:
            weight = weights[node.input[1]]
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * factor[:, None], weight.name))
            node.input[0] = f"{name}_smoothed"
        model.graph.initializer.append(numpy_helper.from_array(1 / factor, f"{name}_factor"))
        place = next(i for i, node in enumerate(model.graph.node) if name in node.output) + 1
        multiply = helper.make_node("Mul", [name, f"{name}_factor"], [f"{name}_smoothed"], name=f"{name}_smooth")
        model.graph.node.insert(place, multiply)
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return list(consumers)


def _factor(largest: NDArray[np.float32], weights: list[TensorProto], strength: float) -> NDArray[np.float32]:
    rows = np.max([np.abs(numpy_helper.to_array(weight)).max(axis=1) for weight in weights], axis=0)
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
