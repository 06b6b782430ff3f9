"""A ranker cut into ranks: real processes with real sums between them score as the whole does."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from gloo_ranks import RANKS
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tensor_parallel_cost import Encoder, Load, summed_bytes, sums
from tensorrt_ladder import ladder_of
from test_families import OPSET, REQUESTS, recipe_for, spread_logits
from tiny_models import FAMILIES, save_ranker
from tritonrank.errors import ArtifactError
from tritonrank.graphs.export import export_graphs
from tritonrank.graphs.graph_view import GraphView
from tritonrank.graphs.parallel import shard as sharding
from tritonrank.graphs.parallel.cut_graph import PARTIAL, SHARE
from tritonrank.graphs.parallel.cut_plan import constant_source, shard_plan
from tritonrank.graphs.parallel.segments import segments_of
from tritonrank.graphs.parallel.shard import compare_with_whole, write_shards
from tritonrank.quantize.int8 import quantize_graphs
from tritonrank.rankers.modeling import SharedContextRanker
from tritonrank.rankers.scorers import tensors_of
from tritonrank.recipe import QuantizeSettings
from tritonrank.train.finetune import save_checkpoint, untrained_ranker
from tritonrank_runtime.engine import MODEL_FILE, Feed
from tritonrank_runtime.engines import model_files, open_engine
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.sessions import open_session
from tritonrank_runtime.shard_runner import ShardRunner, read_shards, shard_file
from tritonrank_runtime.shared_context import CANDIDATES_FILE, CONTEXT_FILE, SHARED_CONTEXT
from tritonrank_runtime.text import RequestTokenizer

pytestmark = pytest.mark.slow  # cuts rankers of every kind, and proves them

HEADS, LAYERS = 4, 2
ARCHITECTURES = (JOINT, SHARED_CONTEXT)
TOLERANCES = {"fp32": 1e-4, "batched-fp32": 1e-4, "int8-fp16": 0.1}
"""Of INT8 between FP16, any other place of a rounding moves steps: the whole graph's own scores move by 0.02 to 0.07
when ONNX Runtime's fusions are switched off. INT8 alone comes out the same to the last digit."""
ROUNDED_TOLERANCE = 1e-2
GLOO_SECONDS = 300


@dataclass(frozen=True)
class Case:
    """One ranker's graphs in one precision, whole and cut."""

    whole: Path
    shards: dict[int, Path]
    """by number of ranks"""


Cases = dict[tuple[str, str, str], Case]
"""By family, architecture and precision."""
NAMES = [
    *((family, architecture, "fp32") for family, architecture in itertools.product(FAMILIES, ARCHITECTURES)),
    *(
        ("bert", architecture, precision)
        for architecture in ARCHITECTURES
        for precision in ("fp16", "int8", "int8-fp16")
    ),
    ("bert", SHARED_CONTEXT, "batched-fp32"),
    ("bert", SHARED_CONTEXT, "cpu-int8"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """Every ranker, cut and run by four processes with gloo between them."""
    root = tmp_path_factory.mktemp("shards")
    wholes = {name: folder for family in FAMILIES for name, folder in _rankers(family, root)}
    made = {}
    for name in NAMES:
        shards = {ranks: root / "-".join(name) / str(ranks) for ranks in (2, RANKS)}
        for ranks, folder in shards.items():
            folder.mkdir(parents=True)
            write_shards(wholes[name], folder, ranks)
            for graph, feed in _feeds(wholes[name]).items():
                np.savez(folder / f"{graph}.feed.npz", **feed)
        made[name] = Case(wholes[name], shards)
    _run_gloo(made, root)
    return made


def _rankers(family: str, root: Path) -> list[tuple[tuple[str, str, str], Path]]:
    made = []
    for architecture in ARCHITECTURES:
        heads = {"n_heads" if family == "distilbert" else "num_attention_heads": HEADS}
        hub = save_ranker(family, root / f"{family}-{architecture}-hub", head=architecture == JOINT, **heads)
        recipe = recipe_for(hub, architecture)
        model, _ = untrained_ranker(recipe)
        if isinstance(model, SharedContextRanker):
            spread_logits(model)
        own = root / f"{family}-{architecture}"
        own.mkdir()
        if family == "bert":
            ladder = ladder_of(recipe, model, own)
            made.append(((family, architecture, "fp32"), ladder.onnx))
            precisions = {name: folder for name, folder in ladder.folders.items() if name != "fp32"}
            if architecture == SHARED_CONTEXT:
                precisions |= {"batched-fp32": ladder.folders["fp32"], "cpu-int8": own / "cpu-int8"}
                precisions["cpu-int8"].mkdir()
                settings = QuantizeSettings(noise=1_000)
                quantize_graphs(ladder.onnx, precisions["cpu-int8"], REQUESTS, settings)
            made += [((family, architecture, precision), folder) for precision, folder in precisions.items()]
        else:
            for folder in (own / "checkpoint", own / "onnx"):
                folder.mkdir()
            save_checkpoint(recipe, model, own / "checkpoint")
            export_graphs(own / "checkpoint", own / "onnx", OPSET)
            made.append(((family, architecture, "fp32"), own / "onnx"))
    return made


def _feeds(folder: Path) -> dict[str, Feed]:
    """Each graph of a folder with padded inputs of odd sizes; candidates get the context's keys and values."""
    generator = np.random.default_rng(7)
    rows, tokens, context_tokens = 5, 11, 9
    is_token = np.arange(tokens) < generator.integers(1, tokens + 1, size=(rows, 1))
    ids = generator.integers(5, 60, size=(rows, tokens), dtype=np.int32)
    padded = np.where(is_token, ids, -1).astype(np.int32)
    context = generator.integers(5, 60, size=context_tokens, dtype=np.int32)
    joint = {
        "input_ids": ids,
        "attention_mask": is_token.astype(np.int32),
        "token_type_ids": (ids % 2).astype(np.int32),
    }
    batched = {"context_ids": np.stack([context, context]), "candidate_ids": np.stack([padded, padded[::-1]])}
    if (folder / CONTEXT_FILE).is_file():
        keys, values = open_session(folder / CONTEXT_FILE).run(None, {"context_ids": context})
        candidates = {"context_keys": keys, "context_values": values, "candidate_ids": padded}
        return {CONTEXT_FILE: {"context_ids": context}, CANDIDATES_FILE: candidates}
    names = {tensor.name for tensor in open_session(folder / MODEL_FILE).get_inputs()}
    return {MODEL_FILE: {name: value for name, value in (joint | batched).items() if name in names}}


def _run_gloo(cases: Cases, root: Path) -> None:
    jobs = [
        {"folder": str(folder), "ranks": ranks, "graphs": [path.name for path in model_files(case.whole)]}
        for case in cases.values()
        for ranks, folder in case.shards.items()
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(Path(__file__).with_name("gloo_ranks.py"))]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    arguments = [str(root / "rendezvous"), str(root / "jobs.json")]
    done = subprocess.run(
        [*command, *arguments], env=environment, timeout=GLOO_SECONDS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _joined(folder: Path, graph: str, ranks: int) -> dict[str, NDArray[Any]]:
    """What the ranks answered, shares put together; what all have has to be the same on all."""
    axes = read_shards(folder)["graphs"][graph]["split_outputs"]
    answers = [dict(np.load(folder / f"{graph}.rank{rank}.npz")) for rank in range(ranks)]
    joined = {}
    for name in answers[0]:
        parts = [answer[name] for answer in answers]
        if name in axes:
            joined[name] = np.concatenate(parts, axes[name])
        else:
            assert all(np.array_equal(part, parts[0]) for part in parts)
            joined[name] = parts[0]
    return joined


# (a) Scores


@pytest.mark.parametrize("ranks", [2, RANKS])
@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_ranks_together_give_what_the_whole_gives(cases: Cases, name: tuple[str, str, str], ranks: int) -> None:
    case, tolerance = cases[name], TOLERANCES.get(name[2], ROUNDED_TOLERANCE)
    for graph, feed in _feeds(case.whole).items():
        session = open_session(case.whole / graph)
        outputs = [tensor.name for tensor in session.get_outputs()]
        expected = dict(zip(outputs, session.run(outputs, feed), strict=True))
        found = _joined(case.shards[ranks], graph, ranks)
        assert set(found) == set(expected)
        for output, value in expected.items():
            np.testing.assert_allclose(found[output], value, atol=tolerance)
            assert value.std() > 4 * tolerance  # or else the tolerance would prove nothing


def test_without_the_sum_the_scores_are_others(cases: Cases) -> None:
    """What the comparison would show if the ranks did not work together."""
    case = cases["bert", JOINT, "fp32"]
    feed = _feeds(case.whole)[MODEL_FILE]
    (whole,) = open_session(case.whole / MODEL_FILE).run(None, feed)
    alone = ShardRunner(case.shards[2], 0, open_session, lambda addend: addend).run(MODEL_FILE, feed)["logits"]
    assert np.abs(alone - whole).max() > 0.05


def test_the_cost_model_counts_what_is_added_up(cases: Cases) -> None:
    case, added = cases["bert", SHARED_CONTEXT, "batched-fp32"], []

    def count(addend: NDArray[Any]) -> NDArray[Any]:
        added.append(addend.nbytes)
        return addend

    feed = _feeds(case.whole)[MODEL_FILE]
    ShardRunner(case.shards[2], 0, open_session, count).run(MODEL_FILE, feed)
    requests, context_tokens = feed["context_ids"].shape
    load = Load.of(context_tokens, *feed["candidate_ids"].shape[1:])
    encoder = Encoder("tiny", LAYERS, hidden=32, inner=64)
    assert len(added) == sums(encoder)
    assert sum(added) == requests * summed_bytes(encoder, load, value_bytes=4)


# (b) Weights


@pytest.mark.parametrize("ranks", [2, RANKS])
@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_each_rank_holds_its_part_of_the_layers(cases: Cases, name: tuple[str, str, str], ranks: int) -> None:
    case = cases[name]
    for path in model_files(case.whole):
        whole = onnx.load(path)
        layers = _linear_weights(whole) - _linear_weights(whole, of_layers=False)
        for rank in range(ranks):
            shard = onnx.load(case.shards[ranks] / shard_file(rank, path.name))
            shares = [numpy_helper.to_array(tensor) for tensor in shard.graph.initializer if SHARE in tensor.name]
            assert sum(one.nbytes for one in shares if one.ndim == 2) == layers // ranks
            view = GraphView(shard)
            for node in shard.graph.node:
                if node.op_type in {"Add", "LayerNormalization"}:  # nothing of these is larger than in the whole
                    assert all((one := view.constant(source)) is None or one.ndim < 2 for source in node.input)


def _linear_weights(model: onnx.ModelProto, *, of_layers: bool = True) -> int:
    """Bytes of constant matrices: of all products, or of those outside the layers (ELECTRA's projection, heads)."""
    view = GraphView(model)
    total = 0
    for node in model.graph.node:
        source = constant_source(view, node.input[1]) if node.op_type == "MatMul" else None
        is_outside = any(part in node.name for part in ("embeddings", "project", "classifier", "/head/"))
        if source is not None and (of_layers or is_outside):
            value = view.constant(source)
            assert value is not None
            total += value.nbytes
    return total


def test_weights_lie_on_the_disk_once(cases: Cases) -> None:
    case = cases["bert", SHARED_CONTEXT, "fp32"]
    for ranks, folder in case.shards.items():
        weights = sum((folder / file).stat().st_size for file in ("replicated.bin", *_rank_files(ranks)))
        graphs = [path for path in folder.glob("*.onnx") if not path.name.startswith("rank")]
        assert not graphs
        assert len(list(folder.glob("rank*.onnx"))) > 2 * ranks
        # Two graphs with the same weights, each as a whole and as segments; gaps between tensors are at most a page.
        assert weights < sum(path.stat().st_size for path in model_files(case.whole)) * 2 + 4_096 * 64 * (ranks + 1)


def _rank_files(ranks: int) -> list[str]:
    return [f"rank{rank}.bin" for rank in range(ranks)]


# Graphs


@pytest.mark.parametrize("name", NAMES, ids="-".join)
def test_all_ranks_have_the_same_operators_and_sums_where_megatron_has_them(
    cases: Cases, name: tuple[str, str, str]
) -> None:
    case = cases[name]
    for path in model_files(case.whole):
        shards = [onnx.load(case.shards[RANKS] / shard_file(rank, path.name)) for rank in range(RANKS)]
        first = [(node.op_type, list(node.input), list(node.output)) for node in shards[0].graph.node]
        for other in shards[1:]:
            assert [(node.op_type, list(node.input), list(node.output)) for node in other.graph.node] == first
        sums = [node for node in shards[0].graph.node if node.op_type == "DistCollective"]
        # Two per layer; a context ends with the last layer's keys and values.
        assert len(sums) == 2 * LAYERS - (2 if path.name == CONTEXT_FILE else 0)
        view = GraphView(shards[0])
        for node in sums:
            attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            assert attributes == {
                "collective_operation": b"all_reduce", "reduce_op": b"sum", "root": -1, "nb_rank": RANKS,
            }  # fmt: skip
            assert view.producers[node.input[0]].op_type == "MatMul"
            # Before the bias and before anything is rounded again.
            assert {user.op_type for user, _ in view.consumers[node.output[0]]} <= {"Add", "Cast"}


def test_scales_are_cut_with_columns_and_kept_with_rows(cases: Cases) -> None:
    case = cases["bert", JOINT, "int8"]
    whole, shard = (
        GraphView(onnx.load(path)) for path in (case.whole / MODEL_FILE, case.shards[2] / shard_file(1, MODEL_FILE))
    )
    seen = set()
    for node in shard.graph.node:
        if node.op_type != "DequantizeLinear" or (weight := shard.constant(node.input[0])) is None or weight.ndim < 2:
            continue
        original = node.output[0].split(SHARE)[0]
        source = whole.producers[original]
        before = [whole.constant(name) for name in source.input]
        after = [shard.constant(name) for name in node.input]
        axis = int(node.output[0][-1]) if SHARE in node.output[0] else None
        seen.add(axis)
        for piece, entire in zip(after, before, strict=True):
            assert piece is not None
            assert entire is not None
            if axis == 1 or (axis == 0 and piece.ndim == 2):
                np.testing.assert_array_equal(piece, np.split(entire, 2, axis=min(axis, entire.ndim - 1))[1])
            else:
                np.testing.assert_array_equal(piece, entire)
    assert {0, 1} <= seen
    for node in shard.graph.node:  # activations have the whole graph's scales
        if node.op_type == "QuantizeLinear":
            np.testing.assert_array_equal(
                shard.constant(node.input[1]), whole.constant(whole.producers[node.output[0]].input[1])
            )


def test_segments_are_the_shard_without_its_sums(cases: Cases) -> None:
    case = cases["bert", SHARED_CONTEXT, "fp32"]
    path = case.whole / CANDIDATES_FILE
    plan = shard_plan(onnx.load(path), str(path))
    shard = onnx.load(case.shards[2] / shard_file(0, CANDIDATES_FILE))
    segments = segments_of(shard, plan.probed)
    assert len(segments) == len(plan.reduces) + 1
    assert [segment.partial for segment in segments[:-1]] == [f"{segment.sum}{PARTIAL}" for segment in segments[:-1]]
    assert segments[-1].partial is None
    for segment in segments:
        onnx.checker.check_model(segment.model, full_check=True)


# What cannot be cut


def test_ranks_that_do_not_divide_the_heads_are_refused(cases: Cases, tmp_path: Path) -> None:
    for ranks in (3, 8):
        with pytest.raises(ArtifactError, match=rf"into {ranks} ranks.*tensor_parallel may be 1, 2, 4$"):
            write_shards(cases["bert", JOINT, "fp32"].whole, tmp_path, ranks)


def test_a_graph_without_layers_is_refused(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 1), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["logits"], name="score")],
        "regression",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["rows", 1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / MODEL_FILE)
    with pytest.raises(ArtifactError, match="no attention or FFN of the known form"):
        write_shards(tmp_path, tmp_path / "shards", 2)


@pytest.mark.parametrize(
    ("operator", "options", "why"),
    [("ReduceSum", {"keepdims": 1}, "over a split axis"), ("Softmax", {"axis": -1}, "softmax over the split axis")],
)
def test_an_operator_that_mixes_neurons_is_refused(
    cases: Cases, tmp_path: Path, operator: str, options: dict[str, int], why: str
) -> None:
    """Something between FFN in and FFN out that needs all neurons: cutting it would change the scores."""
    model = onnx.load(cases["bert", JOINT, "fp32"].whole / MODEL_FILE)
    node = next(node for node in model.graph.node if "intermediate" in node.name and node.op_type == "Erf")
    at = list(model.graph.node).index(node)
    mixed = helper.make_node(operator, [node.input[0]], ["mixed"], name="mixing", **options)
    node.input[0] = "mixed"
    model.graph.node.insert(at, mixed)
    onnx.save(model, tmp_path / MODEL_FILE)
    with pytest.raises(ArtifactError, match=rf"mixing \({operator}\) cannot be sharded: .*{why}"):
        write_shards(tmp_path, tmp_path, 2)


def test_a_folder_without_graphs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no ONNX graph is here"):
        write_shards(tmp_path, tmp_path, 2)


def test_a_wrong_shard_is_noticed(cases: Cases, tmp_path: Path) -> None:
    case = cases["bert", SHARED_CONTEXT, "fp32"]
    tokenizer = RequestTokenizer.from_folder(case.whole)
    requests = [tensors_of(request, tokenizer) for request in REQUESTS]
    assert compare_with_whole(case.whole, case.shards[2], requests) < 1e-5
    folder = tmp_path / "shards"
    shutil.copytree(case.shards[2], folder)
    damaged = bytearray((folder / "rank1.bin").read_bytes())
    damaged[: len(damaged) // 2] = bytes(len(damaged) // 2)
    (folder / "rank1.bin").write_bytes(damaged)
    with pytest.raises(ArtifactError, match="logits differ by"):
        compare_with_whole(case.whole, folder, requests)


def test_scores_that_are_no_numbers_are_noticed(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though only the second request has one."""
    case = cases["bert", SHARED_CONTEXT, "fp32"]
    tokenizer = RequestTokenizer.from_folder(case.whole)
    requests = [tensors_of(request, tokenizer) for request in REQUESTS[:2]]
    scores = open_engine(case.whole).run(requests)
    scores[1][-1] = np.nan
    monkeypatch.setattr(sharding, "ShardWorkers", nullcontext)
    monkeypatch.setattr(sharding, "sharded_engine", lambda _: SimpleNamespace(run=lambda _: scores))
    with pytest.raises(ArtifactError, match="logits differ by nan"):
        compare_with_whole(case.whole, case.shards[2], requests)
