"""An FP32 graph that computes what its FP16 one does: ONNX Runtime has hardly any FP16 kernels for CPUs.

It computes in FP32 and leaves the roundings out, overflow included, and a gate over that would always pass. So every
rounding is written as a pair of Casts, which ONNX Runtime keeps, and that twin is what is judged. A GPU that fuses
operators rounds less often.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tritonrank_runtime.engine import Engine
from tritonrank_runtime.engines import model_files, open_engine
from tritonrank_runtime.kept_states import EXACT_BITS

from tritonrank.artifacts.weight_file import save_graph
from tritonrank.graphs.graph_view import constant_tensors, element_types

MOVES = {
    "Reshape", "Transpose", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Split", "Identity", "Expand",
    "Flatten", "Where",
}  # fmt: skip
"""Operators that hand values on as they are: nothing to round after them."""


TWIN = "rounding twin"
"""Marks one in its metadata."""


def rounding_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """An FP32 graph that computes what the FP16 one does where every operator rounds its result.

    Products and sums inside an operator are FP32, as a GPU accumulates them.
    """
    types = element_types(model)
    is_half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:], twin.graph.initializer[:], twin.graph.value_info[:]
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        twin.graph.initializer.append(tensor)
    for node in model.graph.node:
        copy = twin.graph.node.add()
        copy.CopyFrom(node)
        rounded = [name for name in node.output if name in is_half]
        if node.op_type == "Cast" and rounded:
            copy.attribute[0].i = TensorProto.FLOAT
        _widen_constants(copy)
        if node.op_type in MOVES:
            continue
        for name in rounded:
            copy.output[list(copy.output).index(name)] = f"{name}_exact"
            for source, target, kind in (
                (f"{name}_exact", f"{name}_rounded", TensorProto.FLOAT16),
                (f"{name}_rounded", name, TensorProto.FLOAT),
            ):
                twin.graph.node.append(helper.make_node("Cast", [source], [target], name=target, to=kind))
    for tensor in (*twin.graph.input, *twin.graph.output):
        if tensor.type.tensor_type.elem_type == TensorProto.FLOAT16:
            tensor.type.tensor_type.elem_type = TensorProto.FLOAT
    twin.metadata_props.add(key=TWIN, value=f"of an FP16 graph, by {__name__}")
    return twin


def open_rounding_engine(folder: Path, context_cache_bits: int = EXACT_BITS) -> Engine:
    """The engine of a folder's graphs; FP16 ones run as their rounding twins, so that FP16 is what is judged."""
    if not any(_has_half(onnx.load(path)) for path in model_files(folder)):
        return open_engine(folder, context_cache_bits=context_cache_bits)
    with tempfile.TemporaryDirectory() as scratch:
        write_rounding_twins(folder, Path(scratch))
        return open_engine(Path(scratch), context_cache_bits=context_cache_bits)


def write_rounding_twins(folder: Path, target: Path) -> None:
    """Copy a folder's graphs, whole; FP16 ones as their rounding twins."""
    for path in model_files(folder):
        model = onnx.load(path)
        save_graph(rounding_twin(model) if _has_half(model) else model, target / path.name)


def _widen_constants(node: onnx.NodeProto) -> None:
    for one in node.attribute:
        if one.type == onnx.AttributeProto.TENSOR and one.t.data_type == TensorProto.FLOAT16:
            one.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one.t).astype(np.float32)))


def _has_half(model: onnx.ModelProto) -> bool:
    if any(prop.key == TWIN for prop in model.metadata_props):
        return False  # it rounds to FP16, and computes in FP32
    casts = (node.attribute[0].i for node in model.graph.node if node.op_type == "Cast")
    kinds = {*casts, *(tensor.data_type for _, tensor in constant_tensors(model.graph))}
    return TensorProto.FLOAT16 in kinds
