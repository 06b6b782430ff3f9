"""The graphs for TensorRT: FP32, FP16, INT8 and mixed, judged on the CPU; test_engines.py has all families."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tensorrt_ladder import LINEAR_LAYERS, PRECISIONS, TensorRTLadder, check_ladder, tiny_ladder
from test_families import REQUESTS
from tritonrank.errors import ArtifactError, GateError
from tritonrank.graphs.batched import compare_batched, export_batched_graph, padded_requests
from tritonrank.graphs.graph_view import GraphView, element_types, opset_of
from tritonrank.graphs.rounding_twin import open_rounding_engine, rounding_twin, write_rounding_twins
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.quantize import halve as halving
from tritonrank.quantize.calibrate import LEVELS, METHODS, Magnitudes
from tritonrank.quantize.half import ATTENTION_CORE, KINDS, to_half
from tritonrank.quantize.halve import halve_graph, with_whole_attention
from tritonrank.quantize.int8_tensorrt import half_scale, insert_qdq, quantize_graph, quantized_weight
from tritonrank.quantize.qdq_rules import check_graph
from tritonrank.rankers.shared_context import load_shared_context_ranker
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shared_context import NAMES, SHARED_CONTEXT
from tritonrank_runtime.split_engine import BatchedEngine


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> TensorRTLadder:
    return tiny_ladder("bert", SHARED_CONTEXT, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module", params=[SHARED_CONTEXT, JOINT])
def ladder(
    request: pytest.FixtureRequest, shared: TensorRTLadder, tmp_path_factory: pytest.TempPathFactory
) -> TensorRTLadder:
    return (
        shared if request.param == SHARED_CONTEXT else tiny_ladder("roberta", JOINT, tmp_path_factory.mktemp("joint"))
    )


# Both architectures


def test_every_graph_keeps_the_rules_and_follows_fp32(ladder: TensorRTLadder) -> None:
    check_ladder(ladder)


def test_inputs_and_outputs_stay_and_logits_are_fp32(ladder: TensorRTLadder) -> None:
    expected = None
    for precision in PRECISIONS:
        graph = onnx.load(ladder.graph(precision)).graph
        found = [(tensor.name, tensor.type) for tensor in (*graph.input, *graph.output)]
        expected = expected or found
        assert found == expected, precision
        assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


# The batched graph


def test_padding_on_every_axis_changes_no_score(shared: TensorRTLadder) -> None:
    scorer = open_scorer(shared.onnx)
    tensors = [scorer.tensors(request) for request in REQUESTS]
    expected = open_engine(shared.onnx).run(tensors)
    batched = open_engine(shared.folders["fp32"])
    assert isinstance(batched, BatchedEngine)
    for shape, more in (((0, 0, 0), 0), ((60, 16, 40), 0), ((0, 30, 0), 2)):
        found = batched.run_padded(padded_requests(NAMES, tensors, shape, more))
        assert found.shape == (3 + more, max(shape[1], len(REQUESTS[2].items)))
        assert np.isfinite(found).all(), "padding alone gives numbers too: one NaN would spread in a reduction"
        for row, scores in zip(found, expected, strict=False):
            np.testing.assert_allclose(row[: len(scores)], scores, atol=1e-5)


def test_int8_scores_do_not_depend_on_what_else_is_in_the_batch(shared: TensorRTLadder) -> None:
    scorer = open_scorer(shared.onnx)
    tensors = [scorer.tensors(request) for request in REQUESTS]
    engine = open_engine(shared.folders["int8"])
    assert isinstance(engine, BatchedEngine)
    together = engine.run_padded(padded_requests(NAMES, tensors, (60, 16, 40), 1))
    for row, request in zip(together, tensors, strict=False):
        alone = engine.run_padded(padded_requests(NAMES, [request]))[0]
        np.testing.assert_allclose(row[: len(alone)], alone, atol=1e-5)


def test_the_batched_graph_proves_itself(shared: TensorRTLadder) -> None:
    ranker = load_shared_context_ranker(str(shared.checkpoint)).eval()
    difference = compare_batched(ranker, shared.folders["fp32"], shared.onnx, REQUESTS, 1e-4)
    assert 0 < difference.on_grid < 1e-5
    assert 0 < difference.on_requests < 1e-5


def forget_the_mask(model: onnx.ModelProto) -> None:
    """Padding is attended to: right for whoever tests without padding."""
    for tensor in (one.attribute[0].t for one in model.graph.node if one.op_type == "Constant"):
        if tensor.data_type == TensorProto.FLOAT and numpy_helper.to_array(tensor).min() < -1_000:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0), tensor.name))


def freeze_requests(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def change_a_weight(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.name == "/ffn_out_1/MatMul")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (forget_the_mask, "logits differ from PyTorch on the shape grid"),
        (freeze_requests, "axis 0 of context_ids is frozen"),
        (change_a_weight, "logits differ from PyTorch on the shape grid"),
    ],
)
def test_a_tampered_batched_graph_is_refused(
    tamper: object, message: str, shared: TensorRTLadder, tmp_path: Path
) -> None:
    shutil.copytree(shared.folders["fp32"], tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx")
    tamper(model)
    onnx.save(model, tmp_path / "model.onnx")
    ranker = load_shared_context_ranker(str(shared.checkpoint)).eval()
    with pytest.raises(ArtifactError, match=message):
        compare_batched(ranker, tmp_path, shared.onnx, REQUESTS, 1e-4)


def test_each_layer_stands_once_in_the_batched_graph(shared: TensorRTLadder) -> None:
    """Contexts and candidates go through a linear layer together: one product, one copy of its weights."""
    report = check_graph(shared.graph("fp32"))
    kinds = Counter(product.kind for product in report.products)
    assert kinds["linear"] == LINEAR_LAYERS + 1  # and the head
    size = sum(numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(shared.graph("fp32")).graph.initializer)
    ranker = load_shared_context_ranker(str(shared.checkpoint))
    assert size == pytest.approx(sum(p.numel() for p in ranker.parameters()) * 4, rel=0.05)


# FP16


def chain(values: list[float]) -> onnx.ModelProto:
    """x times one constant after the other."""
    names = ["x", *(f"y{place}" for place in range(len(values) - 1)), "out"]
    nodes = [helper.make_node("Mul", [names[i], f"c{i}"], [names[i + 1]], f"mul{i}") for i in range(len(values))]
    nodes.insert(0, helper.make_node("Cast", ["ids"], ["x"], "widen", to=TensorProto.FLOAT))
    nodes[-1].output[0] = "before"
    norm = helper.make_node("LayerNormalization", ["before", "weight"], ["logits"], "norm")
    graph = helper.make_graph(
        [*nodes, norm],
        "chain",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["rows", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(np.float32(value), f"c{i}") for i, value in enumerate(values)]
        + [numpy_helper.from_array(np.ones(4, np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def run(model: onnx.ModelProto, folder: Path) -> np.ndarray:
    from tritonrank_runtime.sessions import open_session

    onnx.save(model, folder / "m.onnx")
    (found,) = open_session(folder / "m.onnx").run(["logits"], {"ids": np.array([[1, 2, 3, 5]], np.int32)})
    return np.asarray(found)


def test_the_twin_overflows_where_fp16_does(tmp_path: Path) -> None:
    """ONNX Runtime alone leaves FP16's roundings out on a CPU, and an overflow would pass every gate."""
    half = to_half(chain([30_000.0, 1e-4]))
    assert np.isfinite(run(half, tmp_path)).all(), "when this fails ONNX Runtime rounds by itself: drop the twin"
    assert not np.isfinite(run(rounding_twin(half), tmp_path)).all()


def test_the_twin_rounds_as_numpy_does(tmp_path: Path) -> None:
    model = to_half(chain([0.1, 0.3, 7.7]))
    ids = np.array([[1, 2, 3, 5]], np.float16)
    for value in (0.1, 0.3, 7.7):
        ids = (ids.astype(np.float32) * np.float32(np.float16(value))).astype(np.float16)
    centred = ids.astype(np.float32) - ids.astype(np.float32).mean()
    expected = (centred / np.sqrt((centred**2).mean() + 1e-5)).astype(np.float16)
    np.testing.assert_allclose(run(rounding_twin(model), tmp_path), expected.astype(np.float32), atol=1e-3)


def test_constants_that_fp16_cannot_hold_are_bounded(shared: TensorRTLadder) -> None:
    half = to_half(chain([-3.4e38, 1e-12]))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    assert values["c0_fp16"] == np.float16(-10_000)
    assert values["c1_fp16"] == np.finfo(np.float16).smallest_normal
    for precision in ("fp16", "int8-fp16"):
        for tensor in onnx.load(shared.graph(precision)).graph.initializer:
            assert np.isfinite(numpy_helper.to_array(tensor)).all()


def test_what_is_kept_in_fp32_has_no_fp16_between(shared: TensorRTLadder) -> None:
    model = to_half(onnx.load(shared.graph("fp32")), keep=["layer norm", "residual", "softmax"])
    types, view = element_types(model), GraphView(model)
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert types[node.output[0]] == TensorProto.FLOAT
        if node.op_type == "LayerNormalization" and node.name != "/embeddings/norm/LayerNormalization":
            residual = view.producers[node.input[0]]
            assert residual.op_type == "Add", "no Cast between the sum and the LayerNorm"
    products = {p.precision for p in check_graph(shared.graph("fp16")).products if p.kind == "attention"}
    assert products == {"FP16"}


def test_fp16_graphs_are_half_as_large(shared: TensorRTLadder) -> None:
    weights = {
        precision: sum(
            numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(shared.graph(precision)).graph.initializer
        )
        for precision in PRECISIONS
    }
    assert weights["fp16"] < 0.53 * weights["fp32"]
    assert weights["int8-fp16"] < 0.51 * weights["int8"] + 0.25 * weights["fp32"]


class Meter:
    """Noise by what is in FP16: the sum of what each kind adds."""

    def __init__(self, adds: dict[str, float], before: float = 0.0) -> None:
        self.adds, self.before = adds, before
        self.halved: list[str] = []

    def of(self, _: Path) -> float:
        return self.before + sum(self.adds.get(kind, 0.0) for kind in self.halved)


@pytest.mark.parametrize(
    ("adds", "limit", "kept"),
    [
        ({"layer norm": 0.002}, 0.01, []),
        ({"layer norm": 0.02, "linear": 0.005}, 0.01, ["layer norm"]),
        ({"layer norm": float("inf")}, 0.01, ["layer norm"]),
        ({"softmax": 0.02, "layer norm": 0.03}, 0.01, ["layer norm", "softmax"]),
        ({"linear": 0.02, "activation": 0.004}, 0.021, ["activation"]),
    ],
)
def test_the_kind_that_disturbs_most_for_its_work_stays_in_fp32(
    adds: dict[str, float],
    limit: float,
    kept: list[str],
    shared: TensorRTLadder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter = Meter(adds)
    monkeypatch.setattr(halving, "NoiseMeter", lambda *_: meter)

    def record(model: onnx.ModelProto, keep: list[str]) -> onnx.ModelProto:
        meter.halved = [kind for kind in halving.KINDS if kind not in keep]
        return model

    monkeypatch.setattr(halving, "to_half", record)
    meter.halved = []
    found = halve_graph(shared.folders["fp32"], shared.folders["fp32"], tmp_path, REQUESTS, limit)
    assert found.kept == ["score head", *kept]
    assert found.noise <= limit
    assert {kind for kind, noise in found.noise_by_kind.items() if noise} == set(adds)


@pytest.mark.parametrize("ladder", [JOINT], indirect=True)
def test_attention_in_fp32_is_the_pattern_that_accumulates_in_fp32(ladder: TensorRTLadder) -> None:
    """Casts of queries, keys and values go straight into the products, one Cast comes straight out, FP32 in between."""
    half = to_half(onnx.load(ladder.graph("fp32")), keep=sorted(ATTENTION_CORE))
    view, types = GraphView(half), element_types(half)
    softmaxes = [node for node in half.graph.node if node.op_type == "Softmax"]
    assert softmaxes
    assert {*with_whole_attention(half, ["softmax"], [*KINDS])} == ATTENTION_CORE
    assert with_whole_attention(half, ["layer norm"], [*KINDS]) == ["layer norm"]

    def is_upcast(name: str) -> bool:
        node = view.producers[name]
        return bool(node.op_type == "Cast" and types[node.input[0]] == TensorProto.FLOAT16)

    for softmax in softmaxes:
        (second,) = [taker for taker, _ in view.consumers[softmax.output[0]]]
        first, waiting = None, [softmax.input[0]]
        while waiting and first is None:
            node = view.producers.get(waiting.pop())
            if node is not None and node.op_type == "MatMul":
                first = node
            elif node is not None and node.op_type != "Cast":  # the mask may have been made in anything
                assert all(types[name] != TensorProto.FLOAT16 for name in node.output)
                waiting += node.input
        assert first is not None
        assert all(map(is_upcast, first.input)), "queries and keys"
        assert is_upcast(second.input[1]), "values"
        assert [taker.op_type for taker, _ in view.consumers[second.output[0]]] == ["Cast"]


def test_a_limit_that_fp16_cannot_meet_closes_the_gate(shared: TensorRTLadder, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"no part of .* can be FP16 within tensorrt\.half_noise = 1e-12"):
        halve_graph(shared.folders["fp32"], shared.folders["fp32"], tmp_path, REQUESTS, 1e-12)


# INT8


def test_scales_are_exact_in_fp16_and_never_clip() -> None:
    for limit in (0.0, 1e-9, 0.003, 0.77, 6.1, 127.0, 900.0):
        scale = half_scale(limit)
        assert float(np.float16(scale)) == scale >= np.finfo(np.float16).smallest_normal
        assert scale * LEVELS >= limit
        assert scale * LEVELS <= max(limit * 1.001, float(np.finfo(np.float16).smallest_normal) * LEVELS)


def test_weights_are_rounded_by_output_channel() -> None:
    weight = np.array([[1.0, 0.001, 0.0], [-2.0, 0.002, 0.0]], np.float32)
    values, scales = quantized_weight(weight)
    assert scales.shape == (3,)
    np.testing.assert_allclose(values * scales, weight, atol=scales.max() / 2)
    assert values[1].tolist() == [-127, round(0.002 / float(np.finfo(np.float16).smallest_normal)), 0]


def test_only_the_chosen_layers_are_int8_and_others_read_what_was_never_rounded(shared: TensorRTLadder) -> None:
    model = onnx.load(shared.graph("int8"))
    fp32 = onnx.load(shared.graph("fp32"))
    from tritonrank.quantize.int8_tensorrt import FEWEST_OPSET, with_opset

    source = with_opset(fp32, FEWEST_OPSET)
    node = next(node for node in source.graph.node if node.name == "/ffn_in/MatMul")
    written = insert_qdq(source, ["/ffn_in/MatMul"], {node.input[0]: 0.1})
    view = GraphView(written)
    takers = Counter(taker.op_type for taker, _ in view.consumers[node.input[0]])
    assert takers == {"QuantizeLinear": 1, "Add": 1}, "the residual sum reads the LayerNorm itself"
    assert opset_of(model) == FEWEST_OPSET
    assert [taker.name for taker, _ in view.consumers[f"{node.input[0]}_real"]] == ["/ffn_in/MatMul"]


def test_all_calibration_methods_are_tried_and_the_quietest_is_taken(ladder: TensorRTLadder) -> None:
    noise = ladder.calibration.noise_by_method
    assert set(noise) == set(METHODS)
    assert noise[ladder.calibration.method] == min(noise.values())
    assert ladder.calibration.noise == pytest.approx(min(noise.values()))
    assert len(set(noise.values())) > 1


def magnitudes(values: np.ndarray) -> Magnitudes:
    counts, edges = np.histogram(np.abs(values), bins=2_048, range=(0, np.abs(values).max()))
    return Magnitudes(counts, float(edges[-1]))


def test_calibration_methods_on_known_distributions() -> None:
    generator = np.random.default_rng(0)
    even = magnitudes(generator.uniform(-3, 3, 100_000))
    for name, method in METHODS.items():
        assert 2.9 < method(even) <= 3.0, f"{name}: an even distribution has nothing to clip"
    heavy = magnitudes(np.concatenate([generator.normal(size=200_000), [400.0]]))
    assert METHODS["minmax"](heavy) == 400
    for name in ("percentile", "entropy"):
        assert METHODS[name](heavy) < 100, f"{name} leaves one outlier out"
    silent = Magnitudes(np.zeros(2_048, np.int64), 0.0)
    assert {method(silent) for method in METHODS.values()} == {0.0}


def test_mse_takes_the_range_with_the_least_error() -> None:
    values = np.random.default_rng(1).standard_t(2, size=50_000)
    seen = magnitudes(values)

    def error(limit: float) -> float:
        step = limit / LEVELS
        return float(((np.clip(np.round(values / step), -LEVELS, LEVELS) * step - values) ** 2).sum())

    assert error(METHODS["mse"](seen)) < 0.9 * error(METHODS["minmax"](seen))
    assert error(METHODS["mse"](seen)) < 1.02 * min(error(seen.largest / by) for by in (1, 1.5, 2, 3, 4, 6, 8, 12))


def test_a_noise_limit_leaves_the_loudest_layers_in_fp32(shared: TensorRTLadder, tmp_path: Path) -> None:
    everything = shared.calibration.noise
    strict = shared.recipe.tensorrt.model_copy(update={"noise": 0.6 * everything})
    found = quantize_graph(
        shared.folders["fp32"], tmp_path, REQUESTS, shared.recipe.model_copy(update={"tensorrt": strict})
    )
    assert 0 < len(found.nodes) < LINEAR_LAYERS
    assert found.noise <= 0.6 * everything
    assert check_graph(tmp_path / "model.onnx", found.nodes).int8 == found.nodes


def test_without_smoothing_the_residual_is_not_rounded_either(shared: TensorRTLadder, tmp_path: Path) -> None:
    found = quantize_graph(shared.folders["fp32"], tmp_path, REQUESTS, shared.recipe, smooths=False)
    assert len(found.nodes) == LINEAR_LAYERS
    assert not any(node.name.endswith("_smooth") for node in onnx.load(tmp_path / "model.onnx").graph.node)


def test_the_engine_for_fp16_is_its_twin(shared: TensorRTLadder, tmp_path: Path) -> None:
    scorer = open_scorer(shared.onnx)
    tensors = [scorer.tensors(REQUESTS[1])]
    folder = shared.folders["fp16"]
    engines = (open_rounding_engine(folder), open_engine(folder))
    rounded, alone = (np.concatenate(engine.run(tensors)) for engine in engines)
    assert np.abs(rounded - alone).max() > 0
    write_rounding_twins(folder, tmp_path)  # a twin has none of its own, though it casts to FP16 and back
    np.testing.assert_array_equal(np.concatenate(open_rounding_engine(tmp_path).run(tensors)), rounded)


def test_torch_and_the_graph_agree_on_odd_opsets(shared: TensorRTLadder, tmp_path: Path) -> None:
    ranker = load_shared_context_ranker(str(shared.checkpoint)).eval()
    export_batched_graph(ranker, tmp_path, 20)
    model = onnx.load(tmp_path / "model.onnx")
    assert opset_of(model) == 20
    shutil.copyfile(shared.onnx / "tokenizer.json", tmp_path / "tokenizer.json")
    shutil.copyfile(shared.onnx / "text.json", tmp_path / "text.json")
    compare_batched(ranker, tmp_path, shared.onnx, REQUESTS, 1e-4)
    with torch.inference_mode():
        logits = ranker.score_batch(torch.tensor([[5, 6]]), torch.tensor([[[7, 8], [9, -1]]]))
    assert logits.shape == (1, 2)
