"""The two graphs of a shared-context ranker: tampering is noticed, and both hold the same layers in INT8."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from stage_runs import run_verb
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.weight_file import ALIGNMENT, SMALLEST
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.errors import ArtifactError, GateError, RecipeError
from tritonrank.graphs import export
from tritonrank.graphs.export import compare_with_torch, export_graphs
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.quantize import int8 as quantize
from tritonrank.quantize.int8 import calibration_requests, graph_feeds, linear_nodes, quantizable_nodes, quantize_graphs
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import QuantizeSettings, Recipe
from tritonrank.serve.models import engine_inputs
from tritonrank_runtime.engine import WEIGHTS_FILE
from tritonrank_runtime.engines import loaded_files, open_engine
from tritonrank_runtime.shared_context import CANDIDATES_FILE, CONTEXT_FILE
from tritonrank_runtime.text import TextRules, copy_text_files

GRAPHS = (CONTEXT_FILE, CANDIDATES_FILE)
TOLERANCE = 1e-4
LAYERS = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
LINEAR = [f"/{name}{suffix}/MatMul" for suffix in ("", "_1") for name in LAYERS]
LAST_FOR_CANDIDATES_ALONE = {"/query_1/MatMul", "/attention_out_1/MatMul", "/ffn_in_1/MatMul", "/ffn_out_1/MatMul"}
"""The last layer's output for context tokens is nobody's input."""


@pytest.fixture(scope="module")
def requests(held_out: list[Request]) -> list[Request]:
    return held_out[:10]


@pytest.fixture(scope="module")
def calibration(workspace: Workspace, tiny_recipe: Recipe) -> list[Request]:
    return calibration_requests(tiny_recipe, Dataset.read(workspace.dataset), TextRules.load(workspace.onnx))


# Export


def signature(path: Path) -> dict[str, tuple[int, list[str | int]]]:
    """Element type and axes of every input and output; a dynamic axis by its name."""
    graph = onnx.load(path).graph
    return {
        tensor.name: (
            tensor.type.tensor_type.elem_type,
            [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim],
        )
        for tensor in [*graph.input, *graph.output]
    }


@pytest.mark.parametrize("rung", ["onnx", "int8"])
def test_names_types_and_axes_are_those_of_every_target(workspace: Workspace, rung: str) -> None:
    folder = getattr(workspace, rung)
    cache = (TensorProto.FLOAT, [2, 4, "context_tokens", 16])  # layers, heads, tokens, head size
    assert signature(folder / CONTEXT_FILE) == {
        "context_ids": (TensorProto.INT32, ["context_tokens"]),
        "context_keys": cache,
        "context_values": cache,
    }
    assert signature(folder / CANDIDATES_FILE) == {
        "context_keys": cache,
        "context_values": cache,
        "candidate_ids": (TensorProto.INT32, ["candidates", "tokens"]),
        "logits": (TensorProto.FLOAT, ["candidates"]),
    }
    assert engine_inputs(folder) == ["context_ids", "candidate_ids"]


@pytest.mark.parametrize("opset", [17, 18])
def test_only_standard_operators_of_the_opset_are_used(workspace: Workspace, opset: int, tmp_path: Path) -> None:
    export_graphs(workspace.teacher, tmp_path, opset)
    for name in GRAPHS:
        model = onnx.load(tmp_path / name)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        assert {tensor.data_type for tensor in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}


def test_quantization_adds_standard_operators_alone(workspace: Workspace) -> None:
    for name in GRAPHS:
        before, after = (onnx.load(folder / name).graph.node for folder in (workspace.onnx, workspace.int8))
        added = {(node.domain, node.op_type) for node in after} - {(node.domain, node.op_type) for node in before}
        assert added == {("", "QuantizeLinear"), ("", "DequantizeLinear")}


@pytest.mark.parametrize("rung", ["onnx", "int8"])
def test_both_graphs_refer_to_weights_that_are_there_once(workspace: Workspace, rung: str) -> None:
    folder = getattr(workspace, rung)
    values: dict[str, set[bytes]] = {}
    for name in GRAPHS:
        graph = onnx.load(folder / name).graph
        values[name] = {t.raw_data for t in graph.initializer if len(t.raw_data) >= SMALLEST and len(t.dims) == 2}
    assert values[CONTEXT_FILE] <= values[CANDIDATES_FILE], "the same layers, to the bit"
    distinct = sum(map(len, values[CANDIDATES_FILE]))
    assert distinct <= (folder / WEIGHTS_FILE).stat().st_size < distinct + 100 * ALIGNMENT
    for name in GRAPHS:
        left = [len(t.raw_data) for t in onnx.load(folder / name, load_external_data=False).graph.initializer]
        assert max(left) < SMALLEST, "the graphs refer to it"
    assert WEIGHTS_FILE in read_manifest(folder).files


Tamper = Callable[[onnx.ModelProto], None]


def change_weight(node_name: str) -> Tamper:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == node_name)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
        values = numpy_helper.to_array(tensor).copy()
        values[3, 5] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def freeze(name: str, axis: int) -> Tamper:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = [tensor for tensor in [*model.graph.input, *model.graph.output] if tensor.name == name]
        tensor.type.tensor_type.shape.dim[axis].dim_value = 2

    return change


def freeze_inside(model: onnx.ModelProto) -> None:
    """A constant number of candidates somewhere inside, under inputs that still promise any."""
    model.graph.initializer.append(helper.make_tensor("frozen_shape", TensorProto.INT64, [2], [2, -1]))
    for node in model.graph.node:
        node.input[:] = ["frozen" if name == "candidate_ids" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Reshape", ["candidate_ids", "frozen_shape"], ["frozen"]))


def rename(old: str, new: str) -> Tamper:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        for tensor in [*model.graph.input, *model.graph.output]:
            tensor.name = new if tensor.name == old else tensor.name

    return change


def swap_keys_and_values(model: onnx.ModelProto) -> None:
    for old, new in (("context_keys", "swap"), ("context_values", "context_keys"), ("swap", "context_values")):
        rename(old, new)(model)


def add_an_axis(model: onnx.ModelProto) -> None:
    rename("logits", "flat")(model)
    model.graph.output[0].name = "logits"
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)
    model.graph.initializer.append(helper.make_tensor("last", TensorProto.INT64, [1], [1]))
    model.graph.node.append(helper.make_node("Unsqueeze", ["flat", "last"], ["logits"]))


DIFFER = r"shape grid"
TAMPERINGS: dict[str, tuple[str, Tamper, str]] = {
    "context weight": (CONTEXT_FILE, change_weight("/ffn_out/MatMul"), DIFFER),
    "context key": (CONTEXT_FILE, change_weight("/key_1/MatMul"), DIFFER),
    "candidate weight": (CANDIDATES_FILE, change_weight("/ffn_out_1/MatMul"), DIFFER),
    "keys and values swapped": (CONTEXT_FILE, swap_keys_and_values, DIFFER),
    "context frozen": (CONTEXT_FILE, freeze("context_ids", 0), "axis 0 of context_ids is frozen"),
    "keys frozen": (CONTEXT_FILE, freeze("context_keys", 2), "axis 2 of context_keys is frozen"),
    "values frozen": (CANDIDATES_FILE, freeze("context_values", 2), "axis 2 of context_values is frozen"),
    "candidates frozen": (CANDIDATES_FILE, freeze("candidate_ids", 0), "axis 0 of candidate_ids is frozen"),
    "tokens frozen": (CANDIDATES_FILE, freeze("candidate_ids", 1), "axis 1 of candidate_ids is frozen"),
    "logits frozen": (CANDIDATES_FILE, freeze("logits", 0), "axis 0 of logits is frozen"),
    "frozen inside": (CANDIDATES_FILE, freeze_inside, "cannot run .* candidates of .* tokens"),
    "context renamed": (CONTEXT_FILE, rename("context_ids", "ids"), r"inputs \['ids'\]; expected \['context_ids'\]"),
    "keys renamed": (CONTEXT_FILE, rename("context_keys", "308"), r"outputs \['308', 'context_values'\]; expected"),
    "candidates renamed": (CANDIDATES_FILE, rename("candidate_ids", "ids"), r"inputs \[.*'ids'\]; expected \['context"),
    "logits renamed": (CANDIDATES_FILE, rename("logits", "308"), r"outputs \['308'\]; expected \['logits'\]"),
    "an axis too many": (CANDIDATES_FILE, add_an_axis, "cannot run|give shape"),
}


@pytest.mark.parametrize(("name", "tamper", "message"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_a_tampered_graph_is_refused(
    name: str, tamper: Tamper, message: str, workspace: Workspace, requests: list[Request], tmp_path: Path
) -> None:
    for path in loaded_files(workspace.onnx):
        shutil.copyfile(path, tmp_path / path.name)
    model = onnx.load(tmp_path / name)
    tamper(model)
    onnx.save(model, tmp_path / name)
    copy_text_files(workspace.onnx, tmp_path)
    with pytest.raises(ArtifactError, match=message) as raised:
        compare_with_torch(workspace.teacher, tmp_path, requests[:2], TOLERANCE)
    assert str(tmp_path) in str(raised.value)


def test_untouched_graphs_are_accepted(workspace: Workspace, requests: list[Request]) -> None:
    difference = compare_with_torch(workspace.teacher, workspace.onnx, requests, TOLERANCE)
    assert 0 < max(difference.on_grid, difference.on_requests) < 1e-5
    metrics = read_manifest(workspace.onnx).metrics
    assert 0 < max(metrics["difference_on_grid"], metrics["difference_on_requests"]) < 1e-5


def test_a_failed_proof_publishes_nothing(
    workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(_: Path, folder: Path) -> None:
        for name in GRAPHS:
            model = onnx.load(workspace.onnx / name)
            change_weight("/ffn_in/MatMul")(model)
            onnx.save(model, folder / name)

    monkeypatch.setattr(export, "export_graphs", tampered)
    with pytest.raises(ArtifactError, match="logits differ from PyTorch"):
        run_verb("export", tiny_recipe, workspace, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_half_of_the_graphs_are_not_assembled(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copyfile(workspace.onnx / CONTEXT_FILE, tmp_path / CONTEXT_FILE)
    with pytest.raises(ArtifactError, match=r"graphs \['context\.onnx'\]; expected model\.onnx, or context\.onnx and"):
        engine_inputs(tmp_path)


# Quantize


def quantized(path: Path) -> set[str]:
    """MatMuls with a DequantizeLinear on both inputs.

    A layer that stays in FP32 has FP32 weights; its input may have been rounded for a neighbour that shares it.
    """
    graph = onnx.load(path).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in graph.node if node.op_type in {"MatMul", "Gemm"}]
    found = {node.name for node in products if node.input[1] in dequantized}
    assert found == {node.name for node in products if set(node.input[:2]) <= dequantized}
    return found


def test_both_graphs_hold_every_linear_layer_in_int8_and_nothing_else(workspace: Workspace) -> None:
    assert sorted(read_manifest(workspace.int8).metrics["int8_nodes"]) == sorted(LINEAR)
    assert read_manifest(workspace.int8).metrics["fp32_nodes"] == []
    assert quantized(workspace.int8 / CONTEXT_FILE) == set(LINEAR) - LAST_FOR_CANDIDATES_ALONE
    assert quantized(workspace.int8 / CANDIDATES_FILE) == set(LINEAR)
    for name in GRAPHS:  # attention's products and the head stay
        products = {n.name for n in onnx.load(workspace.onnx / name).graph.node if n.op_type in {"MatMul", "Gemm"}}
        assert len(products - quantized(workspace.int8 / name)) == {CONTEXT_FILE: 2, CANDIDATES_FILE: 9}[name]


def test_activations_are_unsigned_and_weights_signed_with_a_scale_per_channel(workspace: Workspace) -> None:
    for name in GRAPHS:
        graph = onnx.load(workspace.int8 / name).graph
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        made_by = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            if node.name not in quantized(workspace.int8 / name):
                continue
            activation, weight = (made_by[source] for source in node.input)
            assert made_by[activation.input[0]].op_type == "QuantizeLinear"
            assert values[activation.input[2]].dtype == np.uint8
            assert values[weight.input[0]].dtype == np.int8
            assert values[weight.input[1]].shape == (values[weight.input[0]].shape[1],)


def test_excluded_layers_stay_in_fp32_in_both(workspace: Workspace, calibration: list[Request], tmp_path: Path) -> None:
    settings = QuantizeSettings(noise=1_000, exclude=[r"^/ffn_in/", r"value"])
    nodes = quantize_graphs(workspace.onnx, tmp_path, calibration, settings)
    assert set(nodes) == set(LINEAR) - {"/ffn_in/MatMul", "/value/MatMul", "/value_1/MatMul"}
    assert quantized(tmp_path / CANDIDATES_FILE) == set(nodes)
    assert quantized(tmp_path / CONTEXT_FILE) == set(nodes) - LAST_FOR_CANDIDATES_ALONE


def test_a_graph_without_a_chosen_layer_stays_as_it_is(
    workspace: Workspace, calibration: list[Request], tmp_path: Path
) -> None:
    """An empty list of nodes means all of them to ONNX Runtime."""
    settings = QuantizeSettings(noise=1_000, exclude=["^(?!/query_1/)"])
    assert quantize_graphs(workspace.onnx, tmp_path, calibration, settings, smooths=False) == ["/query_1/MatMul"]
    assert onnx.load(tmp_path / CONTEXT_FILE) == onnx.load(workspace.onnx / CONTEXT_FILE)
    assert quantized(tmp_path / CANDIDATES_FILE) == {"/query_1/MatMul"}


def test_excluding_everything_is_an_error(workspace: Workspace) -> None:
    assert quantizable_nodes(workspace.onnx, []) == sorted(LINEAR, key=quantizable_nodes(workspace.onnx, []).index)
    with pytest.raises(RecipeError, match=r"quantize\.exclude: .* leaves none of the 12 linear layers"):
        quantizable_nodes(workspace.onnx, ["MatMul"])


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_without_the_qdq_asked_for_is_refused(workspace: Workspace, name: str) -> None:
    graph = workspace.onnx / name
    count = len(linear_nodes(graph))
    with pytest.raises(ArtifactError, match=f"{count} of {count} chosen MatMuls found; without Q/DQ"):
        quantize.check_quantized(graph, graph, LINEAR)


def noise_of(folder: Path, workspace: Workspace, calibration: list[Request]) -> float:
    """By hand, on the requests that the noise is measured on."""
    copy_text_files(workspace.onnx, folder)
    exact, rough = open_scorer(workspace.onnx), open_scorer(folder)
    seen = calibration[:: quantize.NOISE_SHARE]
    expected, found = (np.concatenate([one.score(request) for request in seen]) for one in (exact, rough))
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


def test_the_noise_limit_leaves_out_the_same_layers_in_both(
    workspace: Workspace, calibration: list[Request], tmp_path: Path
) -> None:
    everything = noise_of(workspace.int8, workspace, calibration)
    limit = 0.6 * everything
    nodes = quantize_graphs(workspace.onnx, tmp_path, calibration, QuantizeSettings(noise=limit))
    assert 0 < len(nodes) < len(LINEAR)
    assert nodes == [node for node in quantizable_nodes(workspace.onnx, []) if node in nodes], "in their order"
    assert quantized(tmp_path / CANDIDATES_FILE) == set(nodes)
    assert quantized(tmp_path / CONTEXT_FILE) == set(nodes) - LAST_FOR_CANDIDATES_ALONE
    assert noise_of(tmp_path, workspace, calibration) <= limit * 1.001 < everything


def test_a_noise_limit_that_no_layer_meets_closes_the_gate(
    workspace: Workspace, calibration: list[Request], tmp_path: Path
) -> None:
    with pytest.raises(GateError, match=r"no linear layer can be quantized within quantize\.noise"):
        quantize_graphs(workspace.onnx, tmp_path, calibration[:2], QuantizeSettings(noise=1e-9))


def test_calibration_sees_what_serving_will(workspace: Workspace, calibration: list[Request]) -> None:
    scorer = open_scorer(workspace.onnx)
    tensors = [scorer.tensors(request) for request in calibration[:3]]
    feeds = graph_feeds(workspace.onnx, tensors)
    assert list(feeds) == [workspace.onnx / name for name in GRAPHS]
    for feed, request in zip(feeds[workspace.onnx / CONTEXT_FILE], tensors, strict=True):
        assert list(feed) == ["context_ids"]
        np.testing.assert_array_equal(feed["context_ids"], request["context_ids"])
    engine = open_engine(workspace.onnx)
    expected = engine.graph_feeds(tensors)[CANDIDATES_FILE]
    found = feeds[workspace.onnx / CANDIDATES_FILE]
    assert len(found) == len(expected)
    for feed, other in zip(found, expected, strict=True):
        for name in ("context_keys", "context_values", "candidate_ids"):
            np.testing.assert_array_equal(feed[name], other[name])


# What INT8 does to a score


def scores_of(folder: Path, requests: list[Request]) -> list[NDArray[np.float32]]:
    scorer = open_scorer(folder)
    return [scorer.score(request) for request in requests]


def test_int8_follows_fp32(workspace: Workspace, requests: list[Request]) -> None:
    exact, rounded = (np.concatenate(scores_of(folder, requests)) for folder in (workspace.onnx, workspace.int8))
    assert np.abs(exact - rounded).max() > 1e-4
    assert np.corrcoef(exact, rounded)[0, 1] > 0.95


@pytest.mark.parametrize("rung", ["onnx", "int8"])
def test_other_candidates_do_not_move_a_score(workspace: Workspace, requests: list[Request], rung: str) -> None:
    """Reordered, among fewer and alone, so in other groups of other padding; in INT8 too."""
    folder = getattr(workspace, rung)
    request = requests[0]
    (whole,) = scores_of(folder, [request])
    backwards, fewer = (
        Request(request.query, request.history, items) for items in (request.items[::-1], request.items[:7])
    )
    reordered, some = scores_of(folder, [backwards, fewer])
    alone = np.concatenate(scores_of(folder, [Request(request.query, request.history, [one]) for one in request.items]))
    for found, expected in ((reordered[::-1], whole), (some, whole[:7]), (alone, whole)):
        assert np.abs(found - expected).max() <= 1e-5
    assert whole.std() > 1e-3
