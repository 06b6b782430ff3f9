"""The shape and type of every tensor of a graph, found by running it once on a small request with odd sizes.

Exporters write reshapes with computed targets, of which shape inference knows little. A run knows all. Dynamic axes get
different prime numbers, so that an axis of a reshaped tensor can be found again by its size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from tritonrank_runtime.architectures import ARCHITECTURES
from tritonrank_runtime.sessions import RUNTIME_ERRORS

from tritonrank.errors import ArtifactError

SIZES = (5, 7, 11, 13)
FILLERS = {one.name: one.example for kind in ARCHITECTURES for one in kind.inputs if not one.is_text}
TOKEN = 2
"""A token id that every vocabulary has."""


@dataclass(frozen=True)
class Probed:
    """One tensor as it came out of the run."""

    shape: tuple[int, ...]
    type: int
    """TensorProto.FLOAT ..."""


def probe(model: onnx.ModelProto, name: str) -> dict[str, Probed]:
    """What the graph's inputs and all computed tensors look like in the run.

    Args:
        model: a ranker's graph, with standard operators alone.
        name: what errors call it.

    Raises:
        ArtifactError: ONNX Runtime cannot run the graph.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {tensor.name for tensor in shown.graph.output}
    outputs = [out for node in shown.graph.node if node.op_type != "Constant" for out in node.output if out]
    shown.graph.output.extend(onnx.ValueInfoProto(name=out) for out in outputs if out not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    feed = dict(_feeds(model))
    try:
        session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = feed | dict(zip(outputs, session.run(outputs, feed), strict=True))
    except RUNTIME_ERRORS as error:
        raise ArtifactError(f"{name}: ONNX Runtime cannot run it, so its shapes are unknown: {error}") from None
    return {key: Probed(value.shape, helper.np_dtype_to_tensor_dtype(value.dtype)) for key, value in found.items()}


def _feeds(model: onnx.ModelProto) -> Iterator[tuple[str, NDArray[np.generic]]]:
    sizes: dict[str, int] = {}
    for tensor in model.graph.input:
        dims = tensor.type.tensor_type.shape.dim
        for dim in dims:
            if dim.dim_param and dim.dim_param not in sizes:
                sizes[dim.dim_param] = SIZES[len(sizes) % len(SIZES)]
        shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
        yield tensor.name, np.full(shape, FILLERS.get(tensor.name, TOKEN), dtype=dtype)
