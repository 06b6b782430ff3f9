"""SmoothQuant: the smoothed graph computes the same, and its eight-bit form is closer to it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.quantize.int8 import graph_feeds, quantize_graphs
from tritonrank.quantize.sensitivity import NoiseMeter
from tritonrank.quantize.smooth import smooth_graphs
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import QuantizeSettings
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.engines import loaded_files
from tritonrank_runtime.text import RequestTokenizer

CHANNELS = 8
OUTLIER = 3


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """LayerNorm with one loud and one silent channel -> two linear layers that share it, and a residual."""
    generator = np.random.default_rng(4)
    scale = np.ones(CHANNELS, np.float32)
    scale[OUTLIER], scale[5] = 50, 0
    constants = {"scale": scale, "bias": np.zeros(CHANNELS, np.float32)}
    constants |= {name: generator.normal(size=(CHANNELS, 4)).astype(np.float32) for name in ("first", "second")}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["normal"], name="norm"),
        helper.make_node("MatMul", ["normal", "first"], ["y"], name="first_layer"),
        helper.make_node("MatMul", ["normal", "second"], ["z"], name="second_layer"),
        helper.make_node("Neg", ["normal"], ["r"], name="residual"),
    ]
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in "xyzr"}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "toy",
            [tensors["x"]],
            [tensors["y"], tensors["z"], tensors["r"]],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / MODEL_FILE)
    return tmp_path / MODEL_FILE


def run(path: Path, x: NDArray[np.float32], outputs: list[str] | None = None) -> list[NDArray[np.float32]]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(outputs, {"x": x})


def test_a_smoothed_graph_computes_the_same_from_a_narrower_activation(graph: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(5).normal(size=(20, CHANNELS)).astype(np.float32)
    smoothed = tmp_path / "smoothed" / graph.name
    smoothed.parent.mkdir()
    assert smooth_graphs({graph: [{"x": x}]}, smoothed.parent) == {graph: ["normal"]}
    for before, after in zip(run(graph, x), run(smoothed, x), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)

    def spread(path: Path, name: str) -> float:
        model = onnx.load(path)
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        onnx.save(model, tmp_path / "watched.onnx")
        by_channel = np.abs(run(tmp_path / "watched.onnx", x, [name])[0]).max(axis=0)
        return float(by_channel.max() / np.median(by_channel))

    assert spread(smoothed, "normal_smoothed") < spread(graph, "normal") / 3
    names = [node.name for node in onnx.load(smoothed).graph.node]
    assert [name for name in names if name != "normal_smooth"] == ["norm", "first_layer", "second_layer", "residual"]
    assert "normal_smooth" in names, "the residual needs the norm as it was"


def test_a_norm_that_linear_layers_alone_read_takes_the_division_over(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    del model.graph.node[-1], model.graph.output[-1]
    onnx.save(model, graph)
    x = np.random.default_rng(5).normal(size=(20, CHANNELS)).astype(np.float32)
    (tmp_path / "smoothed").mkdir()
    smooth_graphs({graph: [{"x": x}]}, tmp_path / "smoothed")
    smoothed = onnx.load(tmp_path / "smoothed" / graph.name)
    assert [node.name for node in smoothed.graph.node] == ["norm", "first_layer", "second_layer"]
    scales = [numpy_helper.to_array(t) for one in (model, smoothed) for t in one.graph.initializer if t.name == "scale"]
    assert abs(scales[1][OUTLIER]) < abs(scales[0][OUTLIER]) / 3
    for before, after in zip(run(graph, x), run(tmp_path / "smoothed" / graph.name, x), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def gated(path: Path, calls: int) -> Path:
    """Root-mean-square norm -> a gated FFN, called so often with the same weights, and their outputs."""
    generator = np.random.default_rng(6)
    constants: dict[str, NDArray[Any]] = {"two": np.array(2, np.float32), "axis": np.array([-1], np.int64)}
    constants["norm_weight"] = np.geomspace(0.1, 10, CHANNELS).astype(np.float32)
    for name, shape in {"gate": (CHANNELS, 12), "in": (CHANNELS, 12), "out": (12, CHANNELS)}.items():
        constants[name] = generator.normal(size=shape).astype(np.float32)
    constants["in"][:, 7] *= 30  # one neuron is loud
    nodes = []
    for n in range(calls):
        steps = [
            ("Pow", ["x", "two"], "square"),
            ("ReduceMean", [f"square{n}", "axis"], "mean"),
            ("Sqrt", [f"mean{n}"], "root"),
            ("Div", ["x", f"root{n}"], "direction"),
            ("Mul", [f"direction{n}", "norm_weight"], "normal"),
            ("MatMul", [f"normal{n}", "gate"], "gated"),
            ("Sigmoid", [f"gated{n}"], "open"),
            ("Mul", [f"gated{n}", f"open{n}"], "active"),
            ("MatMul", [f"normal{n}", "in"], "inner"),
            ("Mul", [f"active{n}", f"inner{n}"], "product"),
            ("MatMul", [f"product{n}", "out"], "y"),
        ]
        nodes += [helper.make_node(kind, inputs, [f"{made}{n}"], name=f"{made}{n}") for kind, inputs, made in steps]
    shape = ["n", CHANNELS]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, shape) for n in range(calls)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("calls", [1, 2])
def test_a_gated_ffn_is_smoothed_at_no_cost(tmp_path: Path, calls: int) -> None:
    """Into the norm's weight and the columns of what the gate multiplies; weights that two calls share stay shared."""
    source = gated(tmp_path / MODEL_FILE, calls)
    x = np.random.default_rng(5).normal(size=(20, CHANNELS)).astype(np.float32)
    (tmp_path / "smoothed").mkdir()
    found = smooth_graphs({source: [{"x": x}]}, tmp_path / "smoothed")
    assert found[source] == [f"{made}{n}" for n in range(calls) for made in ("normal", "product")]
    before, after = onnx.load(source).graph, onnx.load(tmp_path / "smoothed" / MODEL_FILE).graph
    assert [node.op_type for node in after.node] == [node.op_type for node in before.node]
    changed = {t.name for one, t in zip(before.initializer, after.initializer, strict=True) if one != t}
    assert changed == {"norm_weight", "gate", "in", "out"}
    columns = [
        np.abs(numpy_helper.to_array(t)).max(axis=0) for g in (before, after) for t in g.initializer if t.name == "in"
    ]
    assert columns[1].max() / np.median(columns[1]) < columns[0].max() / np.median(columns[0]) / 3
    for one, other in zip(run(source, x), run(tmp_path / "smoothed" / MODEL_FILE, x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def test_a_graph_without_linear_layers_behind_a_norm_stays_as_it_is(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    for node in model.graph.node[1:3]:
        node.input[0] = "x"
    onnx.save(model, graph)
    (tmp_path / "same").mkdir()
    assert smooth_graphs({graph: [{"x": np.ones((2, CHANNELS), np.float32)}]}, tmp_path / "same") == {graph: []}
    assert onnx.load(tmp_path / "same" / graph.name) == model


@pytest.mark.parametrize("which", ["workspace", "joint_workspace"])
def test_smoothing_reaches_every_norm_and_gelu_and_keeps_the_scores(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    built: Workspace = request.getfixturevalue(which)
    dataset, rules = Dataset.read(built.dataset), open_scorer(built.onnx).tokenizer.rules
    requests = requests_of(dataset, dataset.training[:6], rules)
    tensors = [tensors_of(one, RequestTokenizer.from_folder(built.onnx)) for one in requests]
    smoothed = smooth_graphs(graph_feeds(built.onnx, tensors), tmp_path)
    for path, found in smoothed.items():
        graph = onnx.load(path).graph
        weights = {tensor.name for tensor in graph.initializer}
        producers = {output: node.op_type for node in graph.node for output in node.output}
        linear = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
        expected = {n.input[0] for n in linear if producers[n.input[0]] in {"LayerNormalization", "Mul"}}
        assert set(found) == expected
        assert len(expected) >= 3
    assert NoiseMeter(built.onnx, tensors).of(tmp_path) < 1e-5


def test_smoothing_makes_int8_quieter_where_a_channel_is_loud(workspace: Workspace, tmp_path: Path) -> None:
    dataset, rules = Dataset.read(workspace.dataset), open_scorer(workspace.onnx).tokenizer.rules
    requests: list[Request] = requests_of(dataset, dataset.training[:8], rules)
    tensors = [tensors_of(one, RequestTokenizer.from_folder(workspace.onnx)) for one in requests]
    loud = tmp_path / "loud"
    loud.mkdir()
    for path in (*loaded_files(workspace.onnx), *workspace.onnx.glob("*.json")):
        (loud / path.name).write_bytes(path.read_bytes())
    for path in loud.glob("*.onnx"):
        _make_a_channel_loud(path)
    noise = {}
    for smooth in (False, True):
        folder = tmp_path / str(smooth)
        folder.mkdir()
        quantize_graphs(loud, folder, requests, QuantizeSettings(noise=1_000), smooths=smooth)
        noise[smooth] = NoiseMeter(loud, tensors).of(folder)
    assert noise[True] < noise[False] / 2


def _make_a_channel_loud(path: Path) -> None:
    """One channel of every LayerNorm 60 times larger, and the rows of the linear layers behind it as much smaller."""
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for norm in [node for node in model.graph.node if node.op_type == "LayerNormalization"]:
        readers = [n for n in model.graph.node if norm.output[0] in n.input]
        linear = [n for n in readers if n.op_type == "MatMul" and n.input[1] in weights]
        if not linear:
            continue
        loud = np.ones(numpy_helper.to_array(weights[norm.input[1]]).shape, np.float32)
        loud[OUTLIER] = 60
        name = f"{norm.output[0]}_loud"
        # A norm of its own for the linear layers, so that the residual stays as it was.
        twin = onnx.NodeProto()
        twin.CopyFrom(norm)
        twin.name, twin.output[0] = f"{norm.name}_loud", name
        for place in (1, 2):
            value = numpy_helper.to_array(weights[norm.input[place]]) * loud
            model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{place}"))
            twin.input[place] = f"{name}_{place}"
        model.graph.node.insert(list(model.graph.node).index(norm) + 1, twin)
        for node in linear:
            node.input[0] = name
            weight = weights[node.input[1]]
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / loud[:, None], weight.name))
    onnx.save(model, path)
