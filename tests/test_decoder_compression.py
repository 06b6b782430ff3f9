"""Decoders made smaller: eight bits on both sides, weights in few bits, FP16, fewer layers, heads and neurons.

Requests are random tokens, so that no tokenizer is needed; what a whole build makes of it is in
``test_decoder_ladder.py``.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from tiny_decoders import VOCABULARY, causal_model, scalar_model
from tritonrank.graphs.batched import export_batched_graph
from tritonrank.graphs.export import export_graphs
from tritonrank.graphs.graph_view import GraphView, element_types
from tritonrank.graphs.norms import composed_norms
from tritonrank.graphs.rounding_twin import open_rounding_engine
from tritonrank.quantize.half import kinds_of_nodes, to_half
from tritonrank.quantize.int8 import GraphWriter, check_quantized, quantizable_nodes
from tritonrank.quantize.row_scales import scale_rows
from tritonrank.quantize.sensitivity import NoiseMeter
from tritonrank.quantize.smooth import smooth_graphs
from tritonrank.quantize.weight_only import BlockWriter
from tritonrank.rankers.anatomy import head_group_of, head_size_of, only_layers, parts_of, resized, sizes_of
from tritonrank.rankers.architecture import RequestTensors
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.decoder_modeling import DecoderRanker
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank.recipe import PruneSettings
from tritonrank.shrink.cut import cut, everything
from tritonrank.shrink.importance import Batch, choose_layers, measure_importance, ranking_loss
from tritonrank.shrink.sizes import target_sizes
from tritonrank_runtime.decoder import BRANCHES_FILE, PREFIX_FILE
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.engines import open_engine

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2"]
"""That differ in all that compression looks at: norms and their offset, norms behind both parts, caps, windows, biases,
gated and plain FFN, shared key heads and none."""
OUTLIER, LOUDNESS = 5, 40
YES, NO = 17, 23


def random_requests(count: int, candidates: int = 6) -> list[RequestTensors]:
    random = np.random.default_rng(count)
    found = []
    for _ in range(count):
        rows = random.integers(3, VOCABULARY, size=(candidates, 7)).astype(np.int32)
        lengths = random.integers(1, 8, size=candidates)
        rows[np.arange(7) >= lengths[:, None]] = -1
        prefix = random.integers(3, VOCABULARY, size=int(random.integers(10, 40))).astype(np.int32)
        found.append({"prefix_ids": prefix, "branch_ids": rows[:, : lengths.max()]})
    return found


REQUESTS = random_requests(14)


@dataclass(frozen=True)
class Exported:
    family: str
    ranker: DecoderRanker
    folder: Path
    """of its FP32 graphs"""

    @property
    def feeds(self) -> dict[Path, list[dict[str, NDArray[np.int32]]]]:
        return {self.folder / name: f for name, f in open_engine(self.folder).graph_feeds(REQUESTS[6:]).items()}

    def scores(self, folder: Path) -> NDArray[np.float32]:
        return np.concatenate(open_engine(folder).run(REQUESTS[:6]))


def export(ranker: DecoderRanker, family: str, root: Path) -> Exported:
    ranker.save_pretrained(root / "checkpoint")
    (root / "onnx").mkdir()
    export_graphs(root / "checkpoint", root / "onnx")
    return Exported(family, ranker, root / "onnx")


QUICK = ("llama", "gpt2")
"""Families that `make test` looks at."""


@pytest.fixture(
    scope="module",
    params=[*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES if one not in QUICK)],
)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A random decoder."""
    model = causal_model(request.param)
    ranker = decoder_from(model, request.param, yes_no_head(model, YES, NO))
    return export(ranker, request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def loud(plain: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same with a loud channel behind every norm, as trained ones have."""
    ranker = deepcopy(plain.ranker)
    gain = torch.ones(ranker.config.hidden_size)
    gain[OUTLIER] = LOUDNESS
    offset = float(ranker.config.norm_offset)
    with torch.no_grad():
        for layer in ranker.layers:
            for norm, readers in (("attention_norm", ("query", "key", "value")), ("ffn_norm", ("ffn_gate", "ffn_in"))):
                weight = getattr(layer, norm).weight
                weight.copy_((weight + offset) * gain - offset)
                if ranker.config.norm == "layer":
                    getattr(layer, norm).bias.mul_(gain)
                for name in readers:
                    if getattr(layer, name) is not None:
                        getattr(layer, name).weight.div_(gain)
    found = export(ranker, plain.family, tmp_path_factory.mktemp(f"loud-{plain.family}"))
    np.testing.assert_allclose(found.scores(found.folder), plain.scores(plain.folder), atol=1e-3)
    return found


# Eight bits on both sides


def test_outliers_move_into_norms_and_gates_and_nothing_is_added(loud: Exported, tmp_path: Path) -> None:
    smoothed = smooth_graphs(loud.feeds, tmp_path)
    layers = loud.ranker.config.num_hidden_layers
    for path, names in smoothed.items():
        before, after = (onnx.load(folder / path.name).graph for folder in (loud.folder, tmp_path))
        added = [node.name for node in after.node if node.name.endswith("_smooth")]
        assert len(names) >= 3 * layers - 2, "two norms and the FFN's product; of a prefix's last layer one norm"
        plain_ffn = {PREFIX_FILE: layers - 1, BRANCHES_FILE: layers}[path.name] if loud.family == "gpt2" else 0
        assert len(added) == plain_ffn, "what no gate multiplies has nothing that takes the division over"
        assert len(after.node) == len(before.node) + plain_ffn
    assert NoiseMeter(loud.folder, REQUESTS[:6]).of(tmp_path) < 1e-4


def test_what_attention_gives_is_smoothed_by_one_multiplication_a_layer(loud: Exported, tmp_path: Path) -> None:
    smoothed = smooth_graphs(loud.feeds, tmp_path, attention=True)
    layers = loud.ranker.config.num_hidden_layers
    for path in smoothed:
        after = onnx.load(tmp_path / path.name).graph
        outputs = [node for node in after.node if "attention_out" in node.name and node.op_type == "MatMul"]
        assert len(outputs) == {PREFIX_FILE: layers - 1, BRANCHES_FILE: layers}[path.name]
        assert all(node.input[0].endswith("_smoothed") for node in outputs)
    assert NoiseMeter(loud.folder, REQUESTS[:6]).of(tmp_path) < 1e-4


def test_rows_with_scales_of_their_own_compute_the_same(plain: Exported, tmp_path: Path) -> None:
    nodes = set(quantizable_nodes(plain.folder, []))
    for path in plain.feeds:
        model = onnx.load(path)
        names = scale_rows(model, nodes)
        readers = {node.input[0] for node in onnx.load(path).graph.node if node.name in nodes}
        assert set(names) == readers
        onnx.checker.check_model(model)
        onnx.save(model, tmp_path / path.name)
    assert NoiseMeter(plain.folder, REQUESTS[:6]).of(tmp_path) < 1e-4


@pytest.mark.parametrize("plain", ["llama"], indirect=True)
def test_a_massive_token_does_not_cost_the_others_their_steps(plain: Exported, tmp_path: Path) -> None:
    """One neuron answers one token alone, a thousand times louder than any other, as in trained Llamas."""
    ranker, massive = deepcopy(plain.ranker), int(REQUESTS[0]["prefix_ids"][0])
    with torch.no_grad():
        layer = ranker.layers[0]
        for project in (layer.ffn_gate, layer.ffn_in):
            project.weight[3] = 0
            project.weight[3, OUTLIER] = 12
        ranker.embeddings.words.weight[:, OUTLIER] = 0
        ranker.embeddings.words.weight[massive, OUTLIER] = 30
        layer.ffn_out.weight[:, 3] *= 1e-3
    made = export(ranker, plain.family, tmp_path)
    requests = [one | {"prefix_ids": np.append(np.int32(massive), one["prefix_ids"])} for one in REQUESTS]
    feeds = {made.folder / name: f for name, f in open_engine(made.folder).graph_feeds(requests[6:]).items()}
    meter, noise = NoiseMeter(made.folder, requests[:6]), {}
    loud = [one for one in quantizable_nodes(made.folder, []) if "/ffn_out" in one]
    assert len(loud) == ranker.config.num_hidden_layers  # of both graphs
    for is_decoder in (False, True):
        folder, scratch = tmp_path / str(is_decoder), tmp_path / f"scratch-{is_decoder}"
        folder.mkdir()
        scratch.mkdir()
        GraphWriter(feeds, scratch, is_decoder=is_decoder).write(folder, loud)
        noise[is_decoder] = meter.of(folder)
    assert noise[True] < noise[False] / 1.3, noise
    alone = [one | {"branch_ids": one["branch_ids"][:1]} for one in requests[:6]]
    among = [scores[:1] for scores in open_engine(tmp_path / "True").run(requests[:6])]
    np.testing.assert_array_equal(np.concatenate(open_engine(tmp_path / "True").run(alone)), np.concatenate(among))


def test_int8_ranks_as_fp32_does_where_a_channel_is_loud(loud: Exported, tmp_path: Path) -> None:
    nodes = quantizable_nodes(loud.folder, [])
    per_layer = 6 if loud.family == "gpt2" else 7
    assert len(nodes) == per_layer * loud.ranker.config.num_hidden_layers
    assert not any("head" in node for node in nodes), "one number or two per candidate are no work"
    meter, noise = NoiseMeter(loud.folder, REQUESTS[:6]), {}
    for smooths in (False, True):
        folder, scratch = tmp_path / str(smooths), tmp_path / f"scratch-{smooths}"
        folder.mkdir()
        scratch.mkdir()
        GraphWriter(loud.feeds, scratch, smooths=smooths, is_decoder=True).write(folder, nodes)
        for name in (PREFIX_FILE, BRANCHES_FILE):
            check_quantized(loud.folder / name, folder / name, nodes)
        noise[smooths] = meter.of(folder)
    assert noise[True] < noise[False] / 2
    expected, found = loud.scores(loud.folder), loud.scores(tmp_path / "True")
    assert np.corrcoef(expected, found)[0, 1] > 0.97
    assert same_weights(tmp_path / "True")


def same_weights(folder: Path) -> bool:
    """Whether every layer has the same integers in both graphs, so that the weights are kept once."""
    found: dict[str, bytes] = {}
    for name in (PREFIX_FILE, BRANCHES_FILE):
        graph = onnx.load(folder / name).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        made_by = {node.output[0]: node for node in graph.node}
        for node in graph.node:
            source = made_by.get(node.input[1]) if node.op_type == "MatMul" else None
            if source is not None and source.op_type == "DequantizeLinear" and source.input[0] in constants:
                integers = constants[source.input[0]].tobytes()
                if found.setdefault(node.name, integers) != integers:
                    return False
    return bool(found)


# Weights alone


@pytest.mark.parametrize(("bits", "correlation"), [(8, 0.99), (4, 0.6)])
def test_few_bits_per_weight_agree_within_bounds(
    plain: Exported, tmp_path: Path, bits: int, correlation: float
) -> None:
    nodes = quantizable_nodes(plain.folder, [])
    BlockWriter(plain.feeds).write(tmp_path, dict.fromkeys(nodes, bits))
    found, expected = plain.scores(tmp_path), plain.scores(plain.folder)
    assert np.corrcoef(expected, found)[0, 1] > correlation
    for name in (PREFIX_FILE, BRANCHES_FILE):
        operators = [node for node in onnx.load(tmp_path / name).graph.node if node.op_type == "MatMulNBits"]
        assert {node.name for node in operators} <= set(nodes)
        assert len(operators) >= len(nodes) - 7


# FP16


def test_what_fp16_cannot_hold_stays_in_fp32(plain: Exported, tmp_path: Path) -> None:
    export_batched_graph(plain.ranker, tmp_path)
    model = onnx.load(tmp_path / MODEL_FILE)
    kinds = kinds_of_nodes(model, element_types(model))
    exact, nodes = set(kinds["exact"]), {node.name: node for node in model.graph.node}
    assert composed_norms(GraphView(model)) <= exact
    operators = {nodes[name].op_type for name in exact}
    if plain.family == "gpt2":
        assert not exact
        assert kinds["layer norm"]
    else:
        assert {"Pow", "ReduceMean", "Sqrt", "Cos", "Sin"} <= operators
    assert ("Tanh" in operators) == (plain.family == "gemma2")
    assert kinds["head"]
    half = to_half(model)
    types = element_types(half)
    made = {node.name: types.get(node.output[0]) for node in half.graph.node}
    assert {made[name] for name in (*exact, *kinds["head"])} <= {TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64}
    (tmp_path / "half").mkdir()
    onnx.save(half, tmp_path / "half" / MODEL_FILE)
    found = np.concatenate(open_rounding_engine(tmp_path / "half").run(REQUESTS[:6]))
    expected = np.concatenate(open_engine(tmp_path).run(REQUESTS[:6]))
    assert 0 < np.abs(found - expected).max() / expected.std() < 0.03


# Fewer layers, heads and neurons


@pytest.fixture(params=FAMILIES)
def ranker(request: pytest.FixtureRequest) -> DecoderRanker:
    return decoder_from(scalar_model(request.param), request.param)


def batches(ranker: DecoderRanker) -> list[Batch]:
    made = []
    for start in (0, 4):
        batch = architecture_of(ranker.config).batch(ranker, REQUESTS[start : start + 4])
        labels = torch.zeros(4, 6)
        labels[:, start % 6] = 1
        made.append({**batch, "labels": labels})
    return made


@torch.inference_mode()
def scores(ranker: DecoderRanker) -> NDArray[np.float32]:
    return np.concatenate(architecture_of(ranker.config).torch_run(ranker.eval(), 32)(REQUESTS[:4]))


def groups_to_heads(groups: Sequence[int], size: int) -> list[int]:
    return [group * size + head for group in groups for head in range(size)]


def test_cut_equals_zeroed(ranker: DecoderRanker) -> None:
    """Without a key head and its queries, and without neurons, as if they gave nothing."""
    config = ranker.config
    whole, group, size = everything(sizes_of(config)), head_group_of(config), head_size_of(config)
    stay = [[number % config.num_key_value_heads] for number in range(config.num_hidden_layers)]
    heads = [groups_to_heads(one, group) for one in stay]
    random = np.random.default_rng(4)
    neurons = [sorted(random.choice(48, 24, replace=False).tolist()) for _ in stay]
    smaller = cut(ranker, replace(whole, heads=heads, neurons=neurons))
    assert (smaller.config.num_attention_heads, smaller.config.num_key_value_heads) == (group, 1)
    untouched, parts = scores(ranker), parts_of(ranker)
    with torch.no_grad():
        for layer, (kept, left) in enumerate(zip(heads, neurons, strict=True)):
            for head in set(range(config.num_attention_heads)) - set(kept):
                parts[f"layers.{layer}.attention_out"].weight[:, head * size : (head + 1) * size] = 0
            parts[f"layers.{layer}.ffn_out"].weight[:, sorted(set(range(48)) - set(left))] = 0
    np.testing.assert_allclose(scores(smaller), scores(ranker), atol=1e-4)
    assert np.abs(untouched - scores(ranker)).max() > 1e-3


def test_fewer_layers_keep_their_kinds(ranker: DecoderRanker, tmp_path: Path) -> None:
    """Every second layer of Gemma 2 sees no further back than its window, whichever layers stay."""
    whole = everything(sizes_of(ranker.config))
    kept = replace(whole, layers=[0, 2], heads=whole.heads[:2], neurons=whole.neurons[:2])
    smaller, kinds = cut(ranker, kept), list(ranker.config.layer_types)
    assert smaller.config.layer_types == [kinds[0], kinds[2]]
    with only_layers(ranker, [0, 2]):
        skipped = scores(ranker)
    assert ranker.config.layer_types == kinds
    np.testing.assert_allclose(scores(smaller), skipped, atol=1e-4)
    assert np.abs(skipped - scores(ranker)).max() > 1e-3
    smaller.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "onnx").mkdir()
    export_graphs(tmp_path / "checkpoint", tmp_path / "onnx")
    np.testing.assert_allclose(np.concatenate(open_engine(tmp_path / "onnx").run(REQUESTS[:4])), skipped, atol=1e-4)
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["num_hidden_layers"] == 2
    assert sizes_of(load_any_ranker(tmp_path / "checkpoint").config).layers == 2


@pytest.mark.parametrize("criterion", ["ablation", "influence", "taylor"])
def test_a_layer_that_does_nothing_goes_first(ranker: DecoderRanker, criterion: str) -> None:
    parts = parts_of(ranker)
    names = ("attention_post_norm", "ffn_post_norm") if ranker.config.post_norms else ("attention_out", "ffn_out")
    with torch.no_grad():
        for name in names:
            module = parts[f"layers.1.{name}"]
            module.weight.fill_(-1.0 if ranker.config.post_norms else 0.0)  # Gemma's norms multiply by 1 + weight
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    choice = choose_layers(ranker, batches(ranker), criterion, 2)
    measured = next(iter(choice.importance.values()))
    assert len(measured) == 3
    if criterion == "ablation":  # without it the loss is what it was
        assert measured[1] == pytest.approx(float(loss(ranker)), abs=1e-4)
    else:
        assert choice.kept == [0, 2]
        assert measured[1] == pytest.approx(0, abs=1e-5)


def loss(ranker: DecoderRanker) -> float:
    with torch.inference_mode():
        return float(np.mean([ranking_loss(ranker, batch).item() for batch in batches(ranker)]))


def test_taylor_importance_of_a_group_is_the_slope_of_the_loss(ranker: DecoderRanker) -> None:
    """Against the loss when what a group of heads, or a neuron, gives is scaled by 1 - epsilon and 1 + epsilon."""
    model, one = ranker.double(), {**batches(ranker)[0]}
    one = {name: tensor[:1] for name, tensor in one.items()}
    found = measure_importance(model, [one], "taylor")
    groups, width = ranker.config.num_key_value_heads, head_group_of(ranker.config) * head_size_of(ranker.config)
    assert found.heads.shape == (3, groups)
    assert found.neurons.shape == (3, 48)
    for part, channels, value in (
        ("layers.1.attention_out", slice(width, 2 * width), found.heads[1, 1]),
        ("layers.0.ffn_out", slice(5, 6), found.neurons[0, 5]),
    ):
        losses = []
        for factor in (1 - 1e-2, 1 + 1e-2):
            with scaled_input(parts_of(model)[part], channels, factor), torch.inference_mode():
                losses.append(ranking_loss(model, one).item())
        assert value == pytest.approx(abs(losses[1] - losses[0]) / 2e-2, rel=3e-2, abs=1e-6)


@contextmanager
def scaled_input(module: torch.nn.Module, channels: slice, factor: float) -> Iterator[None]:
    def scale(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        scaled = given[0].clone()
        scaled[..., channels] *= factor
        return scaled

    handle = module.register_forward_pre_hook(scale)
    yield
    handle.remove()


def test_magnitude_counts_all_that_would_leave(ranker: DecoderRanker) -> None:
    found = measure_importance(ranker, [], "magnitude")
    parts, width = parts_of(ranker), head_group_of(ranker.config) * head_size_of(ranker.config)
    size = head_size_of(ranker.config)
    leaving = [
        parts["layers.2.query"].weight[width : 2 * width],
        parts["layers.2.attention_out"].weight[:, width : 2 * width],
    ]
    leaving += [parts[f"layers.2.{name}"].weight[size : 2 * size] for name in ("key", "value")]
    assert found.heads[2, 1] == pytest.approx(float(sum(one.square().sum() for one in leaving).sqrt()), rel=1e-4)
    inner = [parts[f"layers.2.{name}"].weight[7] for name in ("ffn_gate", "ffn_in") if f"layers.2.{name}" in parts]
    inner.append(parts["layers.2.ffn_out"].weight[:, 7])
    assert found.neurons[2, 7] == pytest.approx(float(sum(one.square().sum() for one in inner).sqrt()), rel=1e-4)


def test_sizes_of_a_budget_keep_groups_whole(ranker: DecoderRanker) -> None:
    config, architecture = ranker.config, architecture_of(ranker.config)
    full, group = sizes_of(config), head_group_of(config)

    def gflop(sizes: object) -> float:
        return architecture.flop(resized(config, sizes), REQUESTS[0])

    target = target_sizes(full, head_size_of(config), PruneSettings(gflop=0.6), 1, gflop, group)
    assert target.heads % group == 0
    assert target.layers < full.layers
    assert 0.4 < gflop(target) / gflop(full) <= 0.6
