"""The checker of TensorRT's rules: a right graph has no fault, and every planted fault is found and named by node."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonrank import cli
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.quantize.qdq_rules import RULES, check_graph, check_model

WIDTH, OUT = 6, 4


def right_graph(kind: str = "MatMul", scale_type: type = np.float32, opset: int = 19) -> onnx.ModelProto:
    """norm -> Q -> DQ -> product with an INT8 weight -> Add -> head; the same in FP16 with ``scale_type``."""
    float_type = TensorProto.FLOAT16 if scale_type is np.float16 else TensorProto.FLOAT
    is_gemm = kind == "Gemm"
    weight = np.arange(-12, 12, dtype=np.int8).reshape((OUT, WIDTH) if is_gemm else (WIDTH, OUT))
    values = {
        "norm_weight": np.ones(WIDTH, scale_type),
        "x_scale": np.array(0.02, scale_type),
        "x_zero": np.array(0, np.int8),
        "w": weight,
        "w_scale": np.linspace(0.01, 0.04, OUT).astype(scale_type),
        "w_zero": np.zeros(OUT, np.int8),
        "bias": np.full(OUT, 0.5, scale_type),
        "head_w": np.ones((OUT, 1), scale_type),
    }
    product_inputs, products = ["x_real", "w_real"], {"transB": 1} if is_gemm else {}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "norm_weight"], ["normed"], "norm"),
        helper.make_node("QuantizeLinear", ["normed", "x_scale", "x_zero"], ["x_int8"], "x_q"),
        helper.make_node("DequantizeLinear", ["x_int8", "x_scale", "x_zero"], ["x_real"], "x_dq"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], "w_dq", axis=0 if is_gemm else 1),
        helper.make_node(kind, product_inputs, ["product"], "layer", **products),
        helper.make_node("Add", ["product", "bias"], ["biased"], "add"),
        helper.make_node("MatMul", ["biased", "head_w"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "right",
        [helper.make_tensor_value_info("x", float_type, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", float_type, ["rows", 1])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.name == name)


def put(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next((one for one in model.graph.initializer if one.name == name), None)
    if tensor is None:
        tensor = model.graph.initializer.add()
    tensor.CopyFrom(numpy_helper.from_array(value, name))


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
@pytest.mark.parametrize("scale_type", [np.float32, np.float16])
def test_a_right_graph_has_no_fault(kind: str, scale_type: type) -> None:
    report = check_model(right_graph(kind, scale_type), "right", ["layer"])
    assert report.faults == []
    assert report.int8 == ["layer"]
    assert [product.scales for product in report.products] == [OUT, 0]
    report.require()


Plant = Callable[[onnx.ModelProto], None]


def asymmetric(model: onnx.ModelProto) -> None:
    put(model, "x_zero", np.array(3, np.int8))


def unsigned(model: onnx.ModelProto) -> None:
    put(model, "x_zero", np.array(0, np.uint8))


def no_zero_point(model: onnx.ModelProto) -> None:
    del node(model, "x_q").input[2]


def one_channel_asymmetric(model: onnx.ModelProto) -> None:
    put(model, "w_zero", np.array([0, 0, -1, 0], np.int8))


def wrong_axis(model: onnx.ModelProto) -> None:
    node(model, "w_dq").attribute[0].i = 0
    put(model, "w_scale", np.linspace(0.01, 0.04, WIDTH).astype(np.float32))
    put(model, "w_zero", np.zeros(WIDTH, np.int8))


def one_scale_for_the_weight(model: onnx.ModelProto) -> None:
    put(model, "w_scale", np.array(0.1, np.float32))
    put(model, "w_zero", np.array(0, np.int8))


def too_few_scales(model: onnx.ModelProto) -> None:
    put(model, "w_scale", np.full(OUT - 1, 0.1, np.float32))


def scale_per_activation_channel(model: onnx.ModelProto) -> None:
    put(model, "x_scale", np.full(WIDTH, 0.1, np.float32))


def bare_activation(model: onnx.ModelProto) -> None:
    node(model, "layer").input[0] = "normed"


def bare_weight(model: onnx.ModelProto) -> None:
    put(model, "w_float", np.ones((WIDTH, OUT), np.float32))
    node(model, "layer").input[1] = "w_float"


def zero_scale(model: onnx.ModelProto) -> None:
    put(model, "x_scale", np.array(0, np.float32))


def negative_scale(model: onnx.ModelProto) -> None:
    put(model, "w_scale", np.array([0.1, -0.1, 0.1, 0.1], np.float32))


def infinite_scale(model: onnx.ModelProto) -> None:
    put(model, "w_scale", np.array([0.1, np.inf, 0.1, 0.1], np.float32))


def computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Abs", ["x_scale"], ["x_scale_abs"], "abs"))
    node(model, "x_q").input[1] = "x_scale_abs"


def other_scale(model: onnx.ModelProto) -> None:
    put(model, "another", np.array(0.5, np.float32))
    node(model, "x_dq").input[1] = "another"


def quantized_bias(model: onnx.ModelProto) -> None:
    node(model, "add").input[0] = "x_real"


def quantized_head(model: onnx.ModelProto) -> None:
    put(model, "head_int8", np.ones((OUT, 1), np.int8))
    put(model, "head_scale", np.array([0.1], np.float32))
    dequantize = helper.make_node("DequantizeLinear", ["head_int8", "head_scale"], ["head_real"], "head_dq", axis=1)
    model.graph.node.insert(6, dequantize)
    node(model, "head").input[0] = "x_real"
    node(model, "head").input[1] = "head_real"


def integer_leak(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["x_int8"], ["leak"], "leak"))


def no_quantize(model: onnx.ModelProto) -> None:
    model.graph.node.remove(node(model, "x_q"))
    model.graph.input.add().CopyFrom(helper.make_tensor_value_info("x_int8", TensorProto.INT8, ["rows", WIDTH]))


def mixed_types(model: onnx.ModelProto) -> None:
    put(model, "bias", np.full(OUT, 0.5, np.float16))


def double(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["y"], ["y64"], "widen", to=TensorProto.DOUBLE))
    model.graph.node.append(helper.make_node("Neg", ["y64"], ["negative"], "neg"))


def half_scale_of_old_opset(model: onnx.ModelProto) -> None:
    put(model, "x_scale", np.array(0.02, np.float16))
    model.opset_import[0].version = 18


def foreign_operator(model: onnx.ModelProto) -> None:
    node(model, "add").domain = "com.microsoft"
    model.opset_import.add().CopyFrom(helper.make_opsetid("com.microsoft", 1))


def integer_product(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("MatMulInteger", ["x_int8", "w"], ["sums"], "integer"))


PLANTED: dict[Plant, tuple[str, str, str]] = {
    asymmetric: ("x_q", "symmetric", "zero point 3 of type int8"),
    unsigned: ("x_q", "symmetric", "zero point 0 of type uint8"),
    no_zero_point: ("x_q", "symmetric", "gives UINT8"),
    one_channel_asymmetric: ("w_dq", "symmetric", "zero point -1"),
    wrong_axis: ("w_dq", "weight", "scales along axis 0 .* output channels are axis 1"),
    one_scale_for_the_weight: ("w_dq", "weight", "one scale for the weight of layer; expected 4"),
    too_few_scales: ("w_dq", "weight", "3 scales for the 4 output channels of layer"),
    scale_per_activation_channel: ("x_dq", "activation", "6 scales for the activation"),
    bare_activation: ("layer", "both inputs", r"input 0 \(normed\) has no Q/DQ"),
    bare_weight: ("layer", "both inputs", r"input 1 \(w_float\) has no Q/DQ"),
    zero_scale: ("x_q", "scale", "1 of 1 scales are 0.0"),
    negative_scale: ("w_dq", "scale", "1 of 4 scales are -0.1"),
    infinite_scale: ("w_dq", "scale", "1 of 4 scales are inf"),
    computed_scale: ("x_q", "scale", "is computed"),
    other_scale: ("x_dq", "pair", "its scale differs from that of x_q"),
    quantized_bias: ("x_dq", "placement", "Add add reads it"),
    quantized_head: ("head", "placement", "the score"),
    integer_leak: ("x_q", "pair", "goes to Identity"),
    no_quantize: ("x_dq", "pair", "reads from an input of the graph"),
    mixed_types: ("add", "types", "Add mixes FP16 and FP32"),
    double: ("neg", "types", "takes DOUBLE"),
    half_scale_of_old_opset: ("x_q", "types", "opset 18 does not take FP16"),
    foreign_operator: ("add", "operators", "com.microsoft.Add"),
    integer_product: ("integer", "operators", "no MatMulInteger"),
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_and_named(plant: Plant) -> None:
    model = right_graph()
    plant(model)
    report = check_model(model, "planted.onnx")
    name, rule, message = PLANTED[plant]
    found = [fault for fault in report.faults if (fault.node, fault.rule) == (name, rule)]
    assert found, report.faults
    with pytest.raises(ArtifactError, match=rf"planted\.onnx: .*\n(.*\n)*.*{name}: {rule}: .*{message}"):
        report.require()


def test_every_rule_is_planted_against() -> None:
    assert {rule for _, rule, _ in PLANTED.values()} | {"asked"} == set(RULES)


def test_scales_that_fp16_can_only_hold_roughly_are_faults() -> None:
    model = right_graph(scale_type=np.float16)
    put(model, "w_scale", np.array([0.01, 3e-5, 0.01, 0.01], np.float16))
    assert [str(fault) for fault in check_model(model, "m").faults] == [
        "w_dq: scale: 1 of 4 scales are below 6.10e-05, too small for FP16"
    ]


def test_what_was_asked_for_has_to_be_there_and_nothing_else() -> None:
    model = right_graph()
    assert [str(fault) for fault in check_model(model, "m", ["layer", "head", "gone"]).faults] == [
        "head: asked: asked to be INT8, but it computes in FP32",
        "gone: asked: asked to be INT8, but there is no such product",
    ]
    assert [fault.node for fault in check_model(model, "m", []).faults] == ["layer"]


def check(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["tritonrank", "check-graph", str(path)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


def test_the_command_prints_a_table_and_exits_with_1_on_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(right_graph(), path)
    assert check(path, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "2 products (1 FP32, 1 INT8): all 10 rules hold" in out
    assert json.loads(out.splitlines()[-1]) == {"graph": str(path), "int8": ["layer"], "faults": []}

    model = right_graph()
    asymmetric(model)
    onnx.save(model, path)
    assert check(path, monkeypatch) == 1
    out = capsys.readouterr().out
    assert "symmetric  x_q: zero point 3 of type int8; expected 0 of int8" in out
    assert json.loads(out.splitlines()[-1])["faults"][0]["node"] == "x_q"


def test_what_is_no_graph_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        check_graph(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(ArtifactError, match="not an ONNX graph"):
        check_graph(tmp_path / "text.onnx")


def test_the_int8_graph_for_cpus_breaks_the_rules_that_it_should(workspace: Workspace) -> None:
    """u8 activations are for CPUs: TensorRT takes symmetric ones alone."""
    report = check_graph(workspace.int8 / "candidates.onnx")
    assert "symmetric" in {fault.rule for fault in report.faults}
    assert len(report.int8) == 12
    assert check_graph(workspace.onnx / "candidates.onnx").faults == []
