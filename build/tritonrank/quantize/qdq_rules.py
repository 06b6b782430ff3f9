"""TensorRT's rules for a strongly typed graph with explicit Q/DQ, proved node by node.

TensorRT takes every precision from the graph, and what breaks a rule it refuses hours later on another machine, or
builds slowly in a higher precision without a word. So the rules are checked where the graph is made. A graph without
Q/DQ (FP32, FP16) is held to the rules about types and operators. The rules are NVIDIA's ("Working with Quantized
Types" in the TensorRT documentation), with three that are ours: weights have one scale per output channel, because one
scale for all costs accuracy and gains nothing; Q/DQ stands around matrix products alone; and the score head has none.

This proves what is asked of TensorRT, not which kernels it takes: that only the engine on its GPU can tell.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto
from rich import box
from rich.console import Console
from rich.table import Table

from tritonrank.artifacts import MANIFEST, read_manifest
from tritonrank.errors import ArtifactError
from tritonrank.graphs.graph_view import FLOATS, PRODUCTS, GraphView, attribute, element_types, label, opset_of

RULES = {
    "operators": "standard operators alone; no QLinear, MatMulInteger or DynamicQuantizeLinear",
    "pair": "a QuantizeLinear feeds DequantizeLinears alone, and these read INT8 from one or from a constant",
    "symmetric": "INT8 with zero points of 0",
    "scale": "scales are constant, finite and above 0; in FP16 they are normal numbers",
    "activation": "an activation has one scale",
    "weight": "a weight has one scale per output channel, along the axis of the output channels",
    "both inputs": "a product with one quantized input has two",
    "placement": "Q/DQ stands before matrix products alone, and not before the score head",
    "types": "all inputs of an operator that have to agree in type do; no DOUBLE",
    "asked": "what was asked to be INT8 is",
}
FURTHER_OPERATORS = {"DistCollective"}
"""TensorRT's own operators in the default domain, which ONNX has no schema of."""
INTEGER_PRODUCTS = {"QLinearMatMul", "MatMulInteger", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"}
SMALLEST_NORMAL_HALF = float(np.finfo(np.float16).smallest_normal)
NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "DOUBLE",
}


@dataclass(frozen=True)
class Fault:
    """One broken rule."""

    node: str
    rule: str
    """a key of RULES"""
    message: str

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.message}"


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm and what it computes in."""

    node: str
    kind: str
    """linear (constant weights) or attention"""
    precision: str
    """INT8 (both inputs), FP16 or FP32; '?' where the type cannot be inferred"""
    scales: int
    """scales of its quantized weight: 0 = not quantized"""


@dataclass(frozen=True)
class GraphReport:
    """What a graph holds and what is wrong with it."""

    graph: str
    products: list[Product]
    faults: list[Fault]

    @property
    def int8(self) -> list[str]:
        """Products with both inputs in INT8."""
        return [product.node for product in self.products if product.precision == "INT8"]

    def require(self) -> None:
        """Raise unless every rule holds.

        Raises:
            ArtifactError: names every fault by node and rule.
        """
        if self.faults:
            lines = "\n".join(f"  {fault}" for fault in self.faults)
            raise ArtifactError(f"{self.graph}: {len(self.faults)} fault(s) by TensorRT's rules:\n{lines}")


def check_graph(path: Path, asked: Collection[str] | None = None) -> GraphReport:
    """Walk a graph and hold it against every rule.

    Args:
        path: an ONNX file.
        asked: names of the products that have to be INT8 on both inputs, and no others; None: whatever there is.

    Raises:
        ArtifactError: the file cannot be read as ONNX.
    """
    try:
        model = onnx.load(path)
        model.graph.node[0]
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file. Build one: tritonrank build RECIPE") from None
    except (OSError, DecodeError, IndexError) as error:  # IndexError: nothing is in it
        raise ArtifactError(f"{path}: not an ONNX graph ({type(error).__name__}: {error})") from None
    return check_model(model, str(path), asked)


def check_model(model: onnx.ModelProto, name: str, asked: Collection[str] | None = None) -> GraphReport:
    """Like ``check_graph``, for a model in memory."""
    try:
        view, types = GraphView(model), element_types(model)
    except onnx.shape_inference.InferenceError as error:
        raise ArtifactError(f"{name}: not a valid graph: {error}") from None
    products = [_product(view, types, node) for node in model.graph.node if node.op_type in PRODUCTS]
    faults = [
        *_operator_faults(model),
        *_type_faults(model, types),
        *(fault for node in model.graph.node for fault in _node_faults(view, types, node)),
        *(_asked_faults(products, asked) if asked is not None else ()),
    ]
    return GraphReport(name, products, faults)


def asked_of(path: Path) -> list[str] | None:
    """The INT8 products that the manifest beside a graph names; None without a manifest or without INT8."""
    if not (path.parent / MANIFEST).is_file():
        return None
    nodes = read_manifest(path.parent).metrics.get("int8_nodes")
    return list(nodes) if isinstance(nodes, list) else None


def show_report(report: GraphReport, console: Console) -> None:
    """A table of the products, the faults, and one line of JSON for scripts."""
    table = Table(title=report.graph, box=box.SIMPLE, title_justify="left")
    for column in ("product", "kind", "computes in", "weight scales"):
        table.add_column(column, overflow="fold")
    for product in report.products:
        table.add_row(product.node, product.kind, product.precision, str(product.scales or ""))
    console.print(table)
    for fault in report.faults:
        console.print(f"[red]{fault.rule}[/]  ", end="")
        console.print(f"{fault.node}: {fault.message}", markup=False, highlight=False, soft_wrap=True)
    precisions = [product.precision for product in report.products]
    counts = ", ".join(f"{precisions.count(one)} {one}" for one in sorted(set(precisions)))
    found = f"{len(report.faults)} fault(s)" if report.faults else f"all {len(RULES)} rules hold"
    console.print(f"{len(report.products)} products ({counts}): {found}", highlight=False)
    print(json.dumps({"graph": report.graph, "int8": report.int8, "faults": [vars(fault) for fault in report.faults]}))


def _product(view: GraphView, types: dict[str, int], node: onnx.NodeProto) -> Product:
    dequantized = [view.made_by(name, "DequantizeLinear") for name in node.input[:2]]
    weight = dequantized[1]
    scales = view.constant(weight.input[1]) if weight is not None else None
    computed = NAMES.get(types.get(node.output[0], 0), "?")
    return Product(
        label(node),
        "linear" if view.linear_weight(node) is not None else "attention",
        "INT8" if all(dequantized) else computed,
        0 if scales is None or view.linear_weight(node) is None else int(scales.size),
    )


def _node_faults(view: GraphView, types: dict[str, int], node: onnx.NodeProto) -> Iterator[Fault]:
    if node.op_type == "QuantizeLinear":
        yield from _quantize_faults(view, node)
    elif node.op_type == "DequantizeLinear":
        yield from _dequantize_faults(view, types, node)
    elif node.op_type in PRODUCTS:
        yield from _product_faults(view, node)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _zero_point_faults(view, node)
        yield from _scale_faults(view, types, node)


def _quantize_faults(view: GraphView, node: onnx.NodeProto) -> Iterator[Fault]:
    takers = view.consumers[node.output[0]]
    others = sorted({taker.op_type for taker, _ in takers} - {"DequantizeLinear"})
    if others or not takers or node.output[0] in view.outputs:
        found = ", ".join(others) or ("nothing" if not takers else "an output of the graph")
        yield Fault(label(node), "pair", f"its INT8 output goes to {found}; only a DequantizeLinear may take it")


def _dequantize_faults(view: GraphView, types: dict[str, int], node: onnx.NodeProto) -> Iterator[Fault]:
    source = node.input[0]
    quantize = view.made_by(source, "QuantizeLinear")
    if quantize is None and not view.is_constant(source):
        made_by = view.producers.get(source)
        found = f"{made_by.op_type} {label(made_by)}" if made_by else "an input of the graph"
        yield Fault(label(node), "pair", f"reads from {found}; expected a QuantizeLinear or a constant")
    if quantize is not None:
        ours, theirs = (view.constant(one.input[1]) for one in (node, quantize))
        if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
            yield Fault(label(node), "pair", f"its scale differs from that of {label(quantize)}")
        if quantize.input[1] != node.input[1] and types.get(quantize.input[1]) != types.get(node.input[1]):
            yield Fault(label(node), "types", f"the type of its scale differs from that of {label(quantize)}")
    for taker, place in view.consumers[node.output[0]]:
        if taker.op_type not in PRODUCTS:
            yield Fault(label(node), "placement", f"{taker.op_type} {label(taker)} reads it; only products may")
        elif place > 1:
            yield Fault(label(node), "placement", f"it quantizes the bias of {label(taker)}")
    if node.output[0] in view.outputs:
        yield Fault(label(node), "placement", "it quantizes an output of the graph")


def _product_faults(view: GraphView, node: onnx.NodeProto) -> Iterator[Fault]:
    dequantized = [view.made_by(name, "DequantizeLinear") for name in node.input[:2]]
    if not any(dequantized):
        return
    if not all(dequantized):
        bare = 0 if dequantized[0] is None else 1
        yield Fault(label(node), "both inputs", f"input {bare} ({node.input[bare]}) has no Q/DQ, the other one has")
    weight_name = view.linear_weight(node)
    weight = None if weight_name is None else view.constant(weight_name)
    for place, dequantize in enumerate(dequantized):
        scale = None if dequantize is None else view.constant(dequantize.input[1])
        if dequantize is None or scale is None:
            continue
        if place == 1 and weight is not None:
            yield from _weight_faults(node, dequantize, scale, weight)
        elif scale.size != 1:
            message = f"{scale.size} scales for the activation {dequantize.input[0]}; expected one"
            yield Fault(label(dequantize), "activation", message)


def _weight_faults(
    node: onnx.NodeProto, dequantize: onnx.NodeProto, scale: NDArray[np.generic], weight: NDArray[np.generic]
) -> Iterator[Fault]:
    is_transposed = node.op_type == "Gemm" and attribute(node, "transB", 0) == 1
    expected = 0 if is_transposed else weight.ndim - 1
    axis = attribute(dequantize, "axis", 1)
    axis = axis if axis >= 0 else axis + weight.ndim
    channels = weight.shape[expected]
    if channels == 1:
        yield Fault(label(node), "placement", "it gives one number per row, the score: INT8 gains nothing there")
    elif scale.ndim != 1 or scale.size == 1:
        yield Fault(label(dequantize), "weight", f"one scale for the weight of {label(node)}; expected {channels}")
    elif axis != expected:
        message = f"scales along axis {axis} of the weight of {label(node)}; its output channels are axis {expected}"
        yield Fault(label(dequantize), "weight", message)
    elif scale.size != channels:
        message = f"{scale.size} scales for the {channels} output channels of {label(node)}"
        yield Fault(label(dequantize), "weight", message)


def _zero_point_faults(view: GraphView, node: onnx.NodeProto) -> Iterator[Fault]:
    name = node.input[2] if len(node.input) > 2 else ""
    zero_point = view.constant(name) if name else None
    if name and zero_point is None:
        yield Fault(label(node), "symmetric", f"its zero point {name} is computed; it has to be a constant 0")
    elif zero_point is not None and (zero_point.dtype != np.int8 or np.any(zero_point != 0)):
        found = zero_point.ravel()[np.argmax(np.abs(zero_point.ravel().astype(np.int64)))]
        yield Fault(label(node), "symmetric", f"zero point {found} of type {zero_point.dtype}; expected 0 of int8")
    elif zero_point is None:
        stored = view.constant(node.input[0]) if node.op_type == "DequantizeLinear" else None
        is_int8 = attribute(node, "output_dtype", 0) == TensorProto.INT8 or (
            stored.dtype == np.int8 if stored is not None else node.op_type == "DequantizeLinear"
        )
        if not is_int8:
            yield Fault(label(node), "symmetric", "without a zero point it gives UINT8; expected 0 of int8")


def _scale_faults(view: GraphView, types: dict[str, int], node: onnx.NodeProto) -> Iterator[Fault]:
    scale = view.constant(node.input[1])
    if scale is None:
        yield Fault(label(node), "scale", f"its scale {node.input[1]} is computed; it has to be constant")
        return
    values = scale.astype(np.float64).ravel()
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        yield Fault(label(node), "scale", f"{wrong.size} of {values.size} scales are {wrong[0]}; expected above 0")
    elif types.get(node.input[1]) == TensorProto.FLOAT16 and values.min() < SMALLEST_NORMAL_HALF:
        few = int((values < SMALLEST_NORMAL_HALF).sum())
        message = f"{few} of {values.size} scales are below {SMALLEST_NORMAL_HALF:.2e}, too small for FP16"
        yield Fault(label(node), "scale", message)


def _operator_faults(model: onnx.ModelProto) -> Iterator[Fault]:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield Fault(label(node), "operators", f"{node.domain}.{node.op_type} is not a standard operator")
        elif node.op_type in INTEGER_PRODUCTS:
            yield Fault(label(node), "operators", f"TensorRT has no {node.op_type}; write Q/DQ around a product")


def _type_faults(model: onnx.ModelProto, types: dict[str, int]) -> Iterator[Fault]:
    """Hold every node against ONNX's own schema of its operator: inputs of one type variable have one type."""
    version = opset_of(model)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type in FURTHER_OPERATORS:
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, version)
        except onnx.defs.SchemaError:
            yield Fault(label(node), "operators", f"opset {version} has no operator {node.op_type}")
            continue
        allowed = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}
        found: defaultdict[str, set[int]] = defaultdict(set)
        for place, name in enumerate(node.input):
            parameter = schema.inputs[min(place, len(schema.inputs) - 1)]
            kind = types.get(name)
            if name and kind is not None:
                found[parameter.type_str].add(kind)
        for variable, kinds in found.items():
            names = " and ".join(sorted(NAMES.get(kind, TensorProto.DataType.Name(kind)) for kind in kinds))
            strings = {f"tensor({onnx.helper.tensor_dtype_to_string(kind).split('.')[-1].lower()})" for kind in kinds}
            if len(kinds) > 1 and any(kind in FLOATS for kind in kinds):
                yield Fault(label(node), "types", f"{node.op_type} mixes {names}; a Cast is missing")
            elif TensorProto.DOUBLE in kinds:
                yield Fault(label(node), "types", f"{node.op_type} takes DOUBLE, which TensorRT does not compute")
            elif any(kind in FLOATS for kind in kinds) and not strings <= allowed.get(variable, {variable}):
                yield Fault(label(node), "types", f"{node.op_type} of opset {version} does not take {names} there")


def _asked_faults(products: list[Product], asked: Collection[str]) -> Iterator[Fault]:
    found = {product.node: product.precision for product in products}
    for name in asked:
        if name not in found:
            yield Fault(name, "asked", "asked to be INT8, but there is no such product")
        elif found[name] != "INT8":
            yield Fault(name, "asked", f"asked to be INT8, but it computes in {found[name]}")
    for name, precision in found.items():
        if precision == "INT8" and name not in set(asked):
            yield Fault(name, "asked", "INT8, but nobody asked for it")
