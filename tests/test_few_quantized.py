"""A choice of INT8 layers is cut out of the graph in which all are INT8: the same as quantizing that choice alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.quantize.int8 import (
    _Calibration,
    graph_feeds,
    linear_nodes,
    quantizable_nodes,
    with_few_quantized,
)
from tritonrank.quantize.reduced_range import has_reduced_range
from tritonrank.rankers.scorers import Request, RequestTensors, tensors_of
from tritonrank_runtime.engines import model_files, open_engine


def quantized_alone(source: Path, target: Path, feeds: list[dict[str, np.ndarray]], nodes: list[str]) -> None:
    """ONNX Runtime's own way to quantize only these nodes."""
    quantize_static(
        source,
        target,
        _Calibration(feeds),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=has_reduced_range(),
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=nodes,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "WeightSymmetric": True},
    )


def contents(model: onnx.ModelProto) -> tuple[set[tuple[str, ...]], dict[str, bytes]]:
    nodes = {(node.op_type, node.name, *node.input, "->", *node.output) for node in model.graph.node}
    return nodes, {one.name: numpy_helper.to_array(one).tobytes() for one in model.graph.initializer}


@pytest.fixture
def tensors(workspace: Workspace, held_out: list[Request]) -> list[RequestTensors]:
    return [tensors_of(request, open_scorer(workspace.onnx).tokenizer) for request in held_out[:6]]


@pytest.mark.parametrize("step", [1, 2, 5, 100], ids=["all", "every second", "every fifth", "one"])
def test_a_choice_is_what_quantizing_it_alone_gives(
    workspace: Workspace, tensors: list[RequestTensors], tmp_path: Path, step: int
) -> None:
    nodes = quantizable_nodes(workspace.onnx, [])
    chosen = set(nodes[::step])
    for path, feeds in graph_feeds(workspace.onnx, tensors).items():
        here = linear_nodes(path)
        if not chosen & set(here):
            continue
        quantized_alone(path, tmp_path / "all.onnx", feeds, here)
        quantized_alone(path, tmp_path / "alone.onnx", feeds, [node for node in here if node in chosen])
        few = with_few_quantized(onnx.load(tmp_path / "all.onnx"), onnx.load(path), chosen)
        onnx.checker.check_model(few, full_check=True)
        assert contents(few) == contents(onnx.load(tmp_path / "alone.onnx"))


def test_no_choice_is_the_fp32_graph_again(workspace: Workspace, tensors: list[RequestTensors], tmp_path: Path) -> None:
    for path, feeds in graph_feeds(workspace.onnx, tensors).items():
        quantized_alone(path, tmp_path / "all.onnx", feeds, linear_nodes(path))
        onnx.save(with_few_quantized(onnx.load(tmp_path / "all.onnx"), onnx.load(path), set()), tmp_path / path.name)
    expected, found = open_engine(workspace.onnx).run(tensors), open_engine(tmp_path).run(tensors)
    assert {path.name for path in model_files(tmp_path)} == {path.name for path in model_files(workspace.onnx)}
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))
