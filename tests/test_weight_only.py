"""Weights alone in four or eight bits: the operator computes what was rounded, and the noise limit is kept."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from stage_runs import run_verb
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.rungs import INT4_WEIGHTS, model_rungs, served_rung
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import GateError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline import stages
from tritonrank.quantize import weight_only
from tritonrank.quantize.int8 import quantizable_nodes
from tritonrank.quantize.sensitivity import NoiseMeter
from tritonrank.quantize.weight_only import BLOCK, LARGEST, BlockWriter, block_scales, packed, write_weight_only
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import QuantizeSettings, Recipe
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.engines import loaded_files
from tritonrank_runtime.text import RequestTokenizer

INPUTS, OUTPUTS = 80, 24  # two blocks and a half


@pytest.fixture
def layer(tmp_path: Path) -> tuple[Path, NDArray[np.float32], NDArray[np.float32]]:
    """A graph of one linear layer, its weight, and inputs whose channels go up and down together."""
    generator = np.random.default_rng(7)
    weight = generator.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    x = (generator.normal(size=(200, 6)) @ generator.normal(size=(6, INPUTS))).astype(np.float32)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "weight"], ["y"], name="layer")],
            "toy",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUTPUTS])],
            [numpy_helper.from_array(weight, "weight")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / MODEL_FILE)
    return tmp_path / MODEL_FILE, weight, x


def run(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_the_operator_computes_with_what_was_rounded(
    layer: tuple[Path, NDArray[np.float32], NDArray[np.float32]],
    bits: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, weight, x = layer
    scales = block_scales(weight, bits)
    assert scales.shape == (3, OUTPUTS)
    steps = scales.repeat(BLOCK, axis=0)[:INPUTS]
    by_hand = np.clip(np.rint(weight / steps), -LARGEST[bits], LARGEST[bits]) * steps
    assert np.abs(by_hand - weight).max() < steps.max() * (0.51 if bits == 8 else 3)
    (tmp_path / "few").mkdir()
    errors = {}
    for level in (0, weight_only.INT8_ACTIVATIONS):
        monkeypatch.setattr(weight_only, "INT8_ACTIVATIONS", level)
        BlockWriter({source: [{"x": x}]}, rounds=False).write(tmp_path / "few", {"layer": bits})
        errors[level] = np.abs(run(tmp_path / "few" / MODEL_FILE, x) - x @ by_hand).max() / (x @ by_hand).std()
    assert errors[0] < 1e-5, "without rounding the activations"
    assert errors[weight_only.INT8_ACTIVATIONS] < 0.05


def test_bytes_hold_two_numbers_the_first_one_below() -> None:
    integers = np.array([[-7], [7], [0]], dtype=np.int8)
    assert packed(integers, 4)[0, 0, :2].tolist() == [1 | 15 << 4, 8 | 8 << 4]
    assert packed(integers, 4).shape == (1, 1, BLOCK // 2)
    assert packed(integers, 8)[0, 0, :4].tolist() == [121, 135, 128, 128]


def test_errors_of_four_bits_cancel_where_inputs_go_together(
    layer: tuple[Path, NDArray[np.float32], NDArray[np.float32]], tmp_path: Path
) -> None:
    source, _, x = layer
    error = {}
    for rounds in (True, False):
        (tmp_path / str(rounds)).mkdir()
        BlockWriter({source: [{"x": x}]}, rounds=rounds).write(tmp_path / str(rounds), {"layer": 4})
        error[rounds] = float(np.square(run(tmp_path / str(rounds) / MODEL_FILE, x) - run(source, x)).mean())
    assert error[True] < error[False] / 4


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_its_batch_mates(
    layer: tuple[Path, NDArray[np.float32], NDArray[np.float32]], bits: int, tmp_path: Path
) -> None:
    """Within the last bits of a sum: one row alone goes through another kernel than many do."""
    source, _, x = layer
    (tmp_path / "few").mkdir()
    BlockWriter({source: [{"x": x}]}).write(tmp_path / "few", {"layer": bits})
    whole = run(tmp_path / "few" / MODEL_FILE, x)
    for rows in (1, 2, 3, 7, 64):
        np.testing.assert_allclose(run(tmp_path / "few" / MODEL_FILE, x[:rows]), whole[:rows], rtol=1e-4, atol=1e-4)


# Whole rankers


@pytest.fixture(scope="module")
def requests(held_out: list[Request]) -> list[Request]:
    return [Request(one.query, one.history, one.items[:8]) for one in held_out[:12]]


@pytest.mark.parametrize(("method", "most", "largest_share"), [("int8-weights", 0.15, 0.3), ("int4-weights", 0.5, 0.2)])
def test_a_ranker_becomes_smaller_and_ranks_alike(
    workspace: Workspace, requests: list[Request], tmp_path: Path, method: str, most: float, largest_share: float
) -> None:
    for path in workspace.onnx.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = QuantizeSettings(method=method, noise=most)
    chosen = write_weight_only(workspace.onnx, tmp_path, requests, settings)
    assert sorted([*chosen.int4, *chosen.int8]) == sorted(quantizable_nodes(workspace.onnx, []))
    assert bool(chosen.int4) == (method == "int4-weights")
    few, full = open_scorer(tmp_path), open_scorer(workspace.onnx)
    scores = [(few.score(one), full.score(one)) for one in requests]
    assert np.corrcoef(*np.concatenate(scores, axis=1))[0, 1] > 1 - most**2
    # Embeddings stay as they are, and so does what is not a linear layer.
    assert linear_bytes(tmp_path) < largest_share * linear_bytes(workspace.onnx)


def linear_bytes(folder: Path) -> int:
    """Bytes of the linear layers' weights, scales included, in the graph that has all layers."""
    graph = onnx.load(folder / "candidates.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer}
    linear = [node for node in graph.node if node.op_type in {"MatMul", "MatMulNBits"}]
    return sum(tensors.get(name, 0) for node in linear for name in node.input[1:])


def test_layers_that_disturb_in_four_bits_get_eight(
    workspace: Workspace, requests: list[Request], tmp_path: Path
) -> None:
    tensors = [tensors_of(one, RequestTokenizer.from_folder(workspace.onnx)) for one in requests]
    meter = NoiseMeter(workspace.onnx, tensors[::4])
    (tmp_path / "all").mkdir()
    every = quantizable_nodes(workspace.onnx, [])
    write_weight_only(workspace.onnx, tmp_path / "all", requests, QuantizeSettings(method="int4-weights", noise=1e3))
    loud = meter.of(tmp_path / "all")
    (tmp_path / "few").mkdir()
    settings = QuantizeSettings(method="int4-weights", noise=loud * 0.6)
    chosen = write_weight_only(workspace.onnx, tmp_path / "few", requests, settings)
    assert chosen.int4
    assert chosen.int8
    assert len(chosen.int4) + len(chosen.int8) == len(every)
    assert meter.of(tmp_path / "few") <= loud * 0.6
    operators = {node.name: node for node in onnx.load(tmp_path / "few" / "candidates.onnx").graph.node}
    for bits, nodes in ((4, chosen.int4), (8, chosen.int8)):
        assert {next(a.i for a in operators[node].attribute if a.name == "bits") for node in nodes} == {bits}


def test_a_limit_that_no_layer_meets_closes_the_gate(
    workspace: Workspace, requests: list[Request], tmp_path: Path
) -> None:
    with pytest.raises(GateError, match=r"no linear layer can be quantized within quantize\.noise"):
        write_weight_only(workspace.onnx, tmp_path, requests, QuantizeSettings(method="int8-weights", noise=1e-7))


def test_a_recipe_chooses_it_and_the_gate_judges_it(workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path) -> None:
    settings = tiny_recipe.quantize.model_copy(update={"method": "int4-weights", "noise": 0.5})
    recipe = tiny_recipe.model_copy(update={"quantize": settings})
    run_verb("quantize", recipe, workspace, tmp_path / "int4-weights")
    metrics = read_manifest(tmp_path / "int4-weights").metrics
    assert metrics["gate against ONNX FP32"]["passed"]
    assert metrics["int4_nodes"]
    assert sum(
        (tmp_path / "int4-weights" / path.name).stat().st_size for path in loaded_files(tmp_path / "int4-weights")
    )
    assert model_rungs(recipe, workspace)[INT4_WEIGHTS] == workspace.root / "int4-weights"
    assert served_rung(recipe, workspace) == INT4_WEIGHTS
    closed = recipe.model_copy(
        update={"gate": recipe.gate.model_copy(update={"quantize_budget": 1e-9, "budget": 1e-9})}
    )
    with pytest.raises(GateError, match="INT4 weights was not published"):
        run_verb("quantize", closed, workspace, tmp_path / "closed")
    assert "quantize" in {stage.verb for stage in stages.stages(recipe, workspace)}
