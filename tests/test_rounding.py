"""Rounding weights so that errors cancel: less error than to the nearest, on the same steps."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from tritonrank.quantize.rounding import WeightRounder, gram_matrices, round_weights
from tritonrank_runtime.engine import Feed

LARGEST = 127


def correlated(rows: int = 400, channels: int = 96) -> NDArray[np.float32]:
    """Activations whose channels go up and down together, a few of them loud."""
    random = np.random.default_rng(3)
    mixed = random.normal(size=(rows, 12)) @ random.normal(size=(12, channels)) + 0.1 * random.normal(
        size=(rows, channels)
    )
    return (mixed * np.where(np.arange(channels) % 17 == 0, 20, 1)).astype(np.float32)


def weights(channels: int = 96, outputs: int = 40) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weight = np.random.default_rng(4).normal(size=(channels, outputs)).astype(np.float32)
    return weight, np.abs(weight).max(axis=0) / LARGEST


def gram(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return rows.T.astype(np.float64) @ rows.astype(np.float64)


def nearest(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.round(weight / scales)


def output_error(rows: NDArray[np.float32], weight: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    return float(np.square(rows @ (weight - rounded)).sum())


def test_errors_cancel_on_correlated_inputs() -> None:
    rows = correlated()
    weight, scales = weights()
    compensated = round_weights(weight, scales, gram(rows), LARGEST)
    assert compensated.dtype == np.int8
    assert np.abs(compensated.astype(int)).max() <= LARGEST
    plain = output_error(rows, weight, nearest(weight, scales) * scales)
    assert output_error(rows, weight, compensated * scales) < plain / 5


def test_rows_that_were_not_seen_gain_as_well() -> None:
    rows = correlated(800)
    weight, scales = weights()
    compensated = round_weights(weight, scales, gram(rows[:400]), LARGEST)
    plain = output_error(rows[400:], weight, nearest(weight, scales) * scales)
    assert output_error(rows[400:], weight, compensated * scales) < plain / 3


def test_inputs_without_correlation_are_rounded_to_the_nearest() -> None:
    weight, scales = weights()
    found = round_weights(weight, scales, np.diag(np.random.default_rng(5).uniform(1, 9, len(weight))), LARGEST)
    np.testing.assert_array_equal(found, nearest(weight, scales))


@pytest.mark.parametrize("dead", [[0], list(range(96))])
def test_channels_that_are_always_zero_do_no_harm(dead: list[int]) -> None:
    rows = correlated()
    rows[:, dead] = 0
    weight, scales = weights()
    found = round_weights(weight, scales, gram(rows), LARGEST)
    np.testing.assert_array_equal(found[dead], nearest(weight, scales)[dead])


def test_nothing_leaves_the_range() -> None:
    rows = correlated()
    weight, scales = weights()
    found = round_weights(weight, scales * LARGEST / 64, gram(rows), 64)
    assert np.abs(found.astype(int)).max() <= 64


def _graph(path: Path, weight: NDArray[np.float32]) -> Path:
    tensors = [("x", ["rows", weight.shape[0]]), ("y", ["rows", weight.shape[1]])]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in tensors)
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"], name="linear")]
    graph = helper.make_graph(nodes, "one", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def test_gram_matrices_add_up_over_feeds(tmp_path: Path) -> None:
    rows = correlated()
    path = _graph(tmp_path / "one.onnx", weights()[0])
    feeds = [{"x": rows[:100]}, {"x": rows[100:]}]
    found = gram_matrices(path, ["r"], feeds)["r"]
    np.testing.assert_allclose(found, gram(np.maximum(rows, 0)), rtol=1e-4)


def test_a_graph_keeps_its_scales_and_gets_new_integers(tmp_path: Path) -> None:
    rows, (weight, _) = correlated(), weights()
    source = _graph(tmp_path / "one.onnx", weight)
    quantize_static(
        source,
        tmp_path / "int8.onnx",
        _Feeds([{"x": rows}]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        extra_options={"WeightSymmetric": True},
    )
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    rounder = WeightRounder({source: [{"x": rows}]})
    rounder.apply(tmp_path / "int8.onnx", LARGEST)
    after = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["w_quantized"]
    inputs = np.maximum(rows, 0)
    errors = [output_error(inputs, weight, v["w_quantized"] * v["w_scale"]) for v in (before, after)]
    assert errors[1] < errors[0] / 3
