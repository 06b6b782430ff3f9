"""Weights rounded so that their errors cancel, instead of each to its nearest step.

Rounding one weight of an output channel shifts that channel's sums by an error that the activations make known: inputs
go up and down together, so the weights that are not rounded yet can take the error back. Doing this weight by weight,
the heaviest inputs first, leaves 5 to 15 times less error in a layer's output than rounding to the nearest, for the
same eight bits and scales and at no cost in serving (GPTQ, Frantar et al. 2022). After SmoothQuant, which moves
outliers into the weights, they are where most of the noise of INT8 comes from.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tritonrank_runtime.engine import Feed

from tritonrank.artifacts.weight_file import save_graph
from tritonrank.graphs.watch import watched_values
from tritonrank.system.progress import track

DAMPING = 0.01
"""Share of the mean of the Gram matrix's diagonal that is added to it, as in the paper: inputs that hardly vary in the
calibration requests must not be corrected without bounds."""
ROWS_AT_ONCE = 1_024
"""Rows of activations that go into one product: adding up a matrix of inputs x inputs after each request, of a few
dozen rows, took most of the time."""
BLOCK = 64
"""Inputs whose errors are carried over to the rest at once: a matrix product instead of single rows."""


class WeightRounder:
    """Rounds the weights of a ranker's linear layers; each layer once, however many Q/DQ graphs have it.

    A layer that is in several graphs (a shared-context ranker's two) is rounded for the inputs that it has in all of
    them, and has the same integers in all of them.
    """

    def __init__(self, feeds: Mapping[Path, Sequence[Feed]]) -> None:
        """Read the weights; what goes into the layers is looked at when the first one is rounded.

        Args:
            feeds: the FP32 graphs (smoothed, if they are) that are quantized, with their calibration inputs.
        """
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._grams: dict[str, NDArray[np.float64]] = {}
        self._rounded: dict[str, NDArray[np.int8]] = {}
        self._feeds, self._inputs = dict(feeds), dict[Path, dict[str, str]]()
        for source in feeds:
            model = onnx.load(source)
            weights = {tensor.name: tensor for tensor in model.graph.initializer}
            linear = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
            self._weights |= {node.name: numpy_helper.to_array(weights[node.input[1]]) for node in linear}
            self._inputs[source] = {node.name: node.input[0] for node in linear}

    def _take_statistics(self) -> None:
        for source, inputs in self._inputs.items():
            grams = gram_matrices(source, sorted(set(inputs.values())), self._feeds[source])
            for name, activation in inputs.items():
                gram = grams[activation]
                self._grams[name] = self._grams[name] + gram if name in self._grams else gram

    @property
    def weights(self) -> Mapping[str, NDArray[np.float32]]:
        """(inputs, outputs) of every linear layer, by node name."""
        return self._weights

    def rounded(self, name: str, scales: NDArray[np.float32], largest: int) -> NDArray[np.int8]:
        """A layer's integers, as ``round_weights`` finds them for what the layer reads."""
        if not self._grams:
            self._take_statistics()
        return round_weights(self._weights[name], scales, self._grams[name], largest)

    def apply(self, path: Path, largest: int) -> None:
        """Replace the integers of all quantized layers in a Q/DQ graph of one of the sources; scales stay.

        Args:
            path: a graph written by ``quantize_static`` with symmetric weights, one scale per output channel.
            largest: integers go from -largest to largest.
        """
        model = onnx.load(path)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        quantized = {
            n.name: dequantizers[n.input[1]] for n in model.graph.node if n.input[1:2] and n.input[1] in dequantizers
        }
        chosen = [name for name in self._weights if name in quantized]
        for name in track(chosen, "rounding weights"):
            integers, scales = (constants[tensor] for tensor in quantized[name].input[:2])
            if name not in self._rounded:
                self._rounded[name] = self.rounded(name, numpy_helper.to_array(scales), largest)
            integers.CopyFrom(numpy_helper.from_array(self._rounded[name], integers.name))
        save_graph(model, path)


def round_weights(
    weight: NDArray[np.float32], scales: NDArray[np.float32], gram: NDArray[np.float64], largest: int
) -> NDArray[np.int8]:
    """Integers q for which the layer's output with q * scales is close to that with the weight.

    Args:
        weight: (inputs, outputs).
        scales: (outputs,), the step of each output channel, or (inputs, outputs), that of each weight.
        gram: (inputs, inputs), X^T X of calibration activations X.
        largest: integers go from -largest to largest.

    Returns:
        (inputs, outputs) integers that nearly minimize the sum of squares of X (weight - q * scales).
    """
    inputs = len(gram)
    heaviest_first = np.argsort(-np.diag(gram), kind="stable")
    damped = gram + np.eye(inputs) * max(DAMPING * float(np.diag(gram).mean()), 1e-12)
    damped = damped[np.ix_(heaviest_first, heaviest_first)]
    # Row i of this upper triangle says how the inputs after i make up for an error in i (section 3.3 of the paper).
    makes_up = np.linalg.cholesky(np.linalg.inv(damped)).T
    remaining = weight[heaviest_first].astype(np.float64)
    steps = np.broadcast_to(scales, weight.shape)[heaviest_first]
    integers = np.empty_like(remaining)
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        errors = np.empty((end - start, weight.shape[1]))
        for i in range(start, end):
            integers[i] = np.clip(np.round(remaining[i] / steps[i]), -largest, largest)
            errors[i - start] = (remaining[i] - integers[i] * steps[i]) / makes_up[i, i]
            remaining[i + 1 : end] -= np.outer(makes_up[i, i + 1 : end], errors[i - start])
        remaining[end:] -= makes_up[start:end, end:].T @ errors
    in_order = np.empty(weight.shape, dtype=np.int8)
    in_order[heaviest_first] = integers
    return in_order


def gram_matrices(source: Path, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, NDArray[np.float64]]:
    """X^T X of each named activation over all feeds; X has a row per token and a column per channel (last axis)."""
    waiting: defaultdict[str, list[NDArray[np.float32]]] = defaultdict(list)
    grams: dict[str, NDArray[np.float64]] = {}

    def add_waiting(name: str) -> None:
        rows = np.concatenate(waiting.pop(name))
        product = rows.T @ rows
        if name in grams:
            grams[name] += product
        else:
            grams[name] = product.astype(np.float64)

    for values in watched_values(source, names, feeds):
        for name, value in values.items():
            waiting[name].append(value.reshape(-1, value.shape[-1]))
            if sum(map(len, waiting[name])) >= ROWS_AT_ONCE:
                add_waiting(name)
    for name in list(waiting):
        add_waiting(name)
    return grams
