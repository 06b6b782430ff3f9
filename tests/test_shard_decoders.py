"""Decoders cut into ranks: heads of queries go with the keys that they share, and scores are the language model's."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from test_decoder import NO, REQUESTS, YES, one_by_one, padded
from tiny_decoders import causal_model
from transformers import PreTrainedModel
from tritonrank.errors import ArtifactError
from tritonrank.graphs.export import export_graphs
from tritonrank.graphs.graph_view import GraphView
from tritonrank.graphs.parallel.cut_graph import SHARE
from tritonrank.graphs.parallel.cut_plan import shard_plan
from tritonrank.graphs.parallel.shard import compare_with_whole, write_shards
from tritonrank.quantize.int8 import GraphWriter, graph_feeds, quantizable_nodes
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank_runtime.architecture import EngineOptions
from tritonrank_runtime.decoder import BRANCHES_FILE, PREFIX_FILE
from tritonrank_runtime.engines import engine_of, open_engine
from tritonrank_runtime.sessions import open_session
from tritonrank_runtime.shard_runner import ShardRunner, read_shards, shard_file

pytestmark = pytest.mark.slow  # exports a decoder of every family

LAYERS, HEADS, KEY_HEADS = 3, 8, 4
SIZES = {"num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "n_head": HEADS}
FAMILIES = ("llama-biased-scaled", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2")
TOLERANCE = 1e-4
ONE_STEP = 0.03
"""Of the spread of a request's scores."""
TENSORS = [
    {"prefix_ids": np.array(prefix, np.int32), "branch_ids": padded(branches).numpy().astype(np.int32)}
    for prefix, branches in REQUESTS
]


@dataclass(frozen=True)
class Case:
    """One family's language model, its graphs, and their shards."""

    model: PreTrainedModel
    whole: Path
    int8: Path
    shards: dict[tuple[str, int], Path]
    """by precision and ranks"""


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The graphs in FP32 and INT8, each cut for two and four ranks."""
    root = tmp_path_factory.mktemp(request.param)
    model = causal_model(request.param, **SIZES)
    folders = {name: root / name for name in ("checkpoint", "fp32", "int8", "scratch")}
    for folder in folders.values():
        folder.mkdir()
    decoder_from(model, request.param, yes_no_head(model, YES, NO)).save_pretrained(folders["checkpoint"])
    export_graphs(folders["checkpoint"], folders["fp32"])
    feeds = graph_feeds(folders["fp32"], TENSORS)
    writer = GraphWriter(feeds, folders["scratch"], is_decoder=True, ranks=4, rounds=False)
    writer.write(folders["int8"], quantizable_nodes(folders["fp32"], [r"^/head/"]))
    shards = {}
    for precision in ("fp32", "int8"):
        for ranks in (2, 4):
            shards[precision, ranks] = root / f"{precision}-{ranks}"
            shards[precision, ranks].mkdir()
            write_shards(folders[precision], shards[precision, ranks], ranks)
    return Case(model, folders["fp32"], folders["int8"], shards)


class Ranks:
    """All ranks of a folder in threads, with real sums between them; looks like the processes of ``ShardWorkers``."""

    def __init__(self, folder: Path) -> None:
        shards = read_shards(folder)
        self.graphs, self.ranks = shards["graphs"], shards["ranks"]
        self._barrier = threading.Barrier(self.ranks)
        self._addends: list[NDArray[Any]] = [np.empty(0)] * self.ranks
        self._runners = [ShardRunner(folder, rank, open_session, self._sum_of(rank)) for rank in range(self.ranks)]
        self._pool = ThreadPoolExecutor(self.ranks)

    def _sum_of(self, rank: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
        def all_reduce(addend: NDArray[Any]) -> NDArray[Any]:
            self._addends[rank] = addend
            self._barrier.wait(60)
            total = np.sum(self._addends, axis=0)
            self._barrier.wait(60)
            return total

        return all_reduce

    def run(self, name: str, feed: dict[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
        """What each rank answers."""
        return list(self._pool.map(lambda runner: runner.run(name, feed), self._runners))


class RanksGraph:
    """One graph, whole to whoever runs it."""

    def __init__(self, ranks: Ranks, name: str) -> None:
        self._ranks, self._name = ranks, name
        self._described = ranks.graphs[name]

    def get_inputs(self) -> list[Any]:
        return [onnx.ValueInfoProto(name=name) for name in self._described["inputs"]]

    def run(self, output_names: list[str], feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found, axes = self._ranks.run(self._name, feed), self._described["split_outputs"]
        whole = []
        for name in output_names:
            parts = [one[name] for one in found]
            assert name in axes or all(np.array_equal(part, parts[0]) for part in parts)
            whole.append(np.concatenate(parts, axes[name]) if name in axes else parts[0])
        return whole


def scores(folder: Path) -> list[NDArray[np.float32]]:
    ranks = Ranks(folder)
    one_run_at_a_time = EngineOptions(threads=1, shares=1)
    return engine_of({name: RanksGraph(ranks, name) for name in ranks.graphs}, one_run_at_a_time).run(TENSORS)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_give_what_the_language_model_gives(case: Case, ranks: int) -> None:
    for found, request in zip(scores(case.shards["fp32", ranks]), REQUESTS, strict=True):
        expected = one_by_one(case.model, *request)
        assert np.ptp(expected) > 100 * TOLERANCE
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("ranks", [2, 4])
def test_int8_comes_out_as_the_whole(case: Case, ranks: int) -> None:
    whole = open_engine(case.int8).run(TENSORS)
    for found, expected in zip(scores(case.shards["int8", ranks]), whole, strict=True):
        # Sums in another order may round a number to the next of 255 steps, which moves a score or two a little.
        assert np.median(np.abs(found - expected)) < TOLERANCE
        np.testing.assert_allclose(found, expected, atol=ONE_STEP * np.ptp(expected))


def test_each_rank_holds_its_part_of_every_layer(case: Case) -> None:
    for (_, ranks), folder in case.shards.items():
        for name, sums in ((PREFIX_FILE, 2 * LAYERS - 2), (BRANCHES_FILE, 2 * LAYERS)):
            shares = [onnx.load(folder / shard_file(rank, name)) for rank in range(ranks)]
            for shard in shares:
                assert sum(node.op_type == "DistCollective" for node in shard.graph.node) == sums
            cut = [_matrices(shard, is_cut=True) for shard in shares]
            assert len(set(cut)) == 1
            whole = onnx.load((case.int8 if folder.name.startswith("int8") else case.whole) / name)
            # What is left whole is the table of words (and of positions), and the head.
            assert ranks * cut[0] + _matrices(shares[0], is_cut=False) == _matrices(whole, is_cut=False)


def _matrices(model: onnx.ModelProto, *, is_cut: bool) -> int:
    """Numbers in the matrices that are in a name's share, or in those that are not."""
    tensors = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer if (SHARE in tensor.name) == is_cut)
    return sum(one.size for one in tensors if one.ndim == 2)


def test_keys_and_values_of_a_rank_are_of_its_own_heads(case: Case) -> None:
    request = TENSORS[0]
    (expected, _) = open_session(case.whole / PREFIX_FILE).run(None, {"prefix_ids": request["prefix_ids"]})
    for ranks in (2, 4):
        found = Ranks(case.shards["fp32", ranks]).run(PREFIX_FILE, {"prefix_ids": request["prefix_ids"]})
        for rank, one in enumerate(found):
            heads = expected.shape[1] // ranks
            assert one["prefix_keys"].shape[1] == heads
            own = expected[:, rank * heads : (rank + 1) * heads]
            np.testing.assert_allclose(one["prefix_keys"], own, atol=TOLERANCE)


def test_a_bias_behind_a_sum_is_added_once(case: Case) -> None:
    shard = onnx.load(case.shards["fp32", 2] / shard_file(1, BRANCHES_FILE))
    view = GraphView(shard)
    summed = [node.output[0] for node in shard.graph.node if node.op_type == "DistCollective"]
    users = [user for name in summed for user, _ in view.consumers[name] if user.op_type == "Add"]
    biases = [one for user in users for name in user.input if (one := view.constant(name)) is not None]
    has_biases = case.model.config.model_type in ("gpt2", "llama")  # this Llama adds them, as others may not
    assert len(biases) == (2 * LAYERS if has_biases else 0)
    assert all(one.shape == (32,) for one in biases), "whole, and behind the sum"


@pytest.mark.parametrize("ranks", [3, 8])
def test_ranks_that_do_not_divide_the_key_heads_are_refused(case: Case, tmp_path: Path, ranks: int) -> None:
    if case.model.config.model_type == "gpt2":
        assert shard_plan(onnx.load(case.whole / PREFIX_FILE), "gpt2").ranks() == [1, 2, 4, 8]
        return
    expected = rf"into {ranks} ranks.* 4 \(heads of keys\).*tensor_parallel may be 1, 2, 4$"
    with pytest.raises(ArtifactError, match=expected):
        write_shards(case.whole, tmp_path, ranks)


def exported(model: PreTrainedModel, family: str, folder: Path) -> Path:
    decoder_from(model, family, yes_no_head(model, YES, NO)).save_pretrained(folder / "checkpoint")
    (folder / "onnx").mkdir()
    export_graphs(folder / "checkpoint", folder / "onnx")
    return folder / "onnx"


def test_one_key_head_for_all_queries_is_refused(tmp_path: Path) -> None:
    graphs = exported(causal_model("llama", num_key_value_heads=1), "llama", tmp_path)
    with pytest.raises(ArtifactError, match=r"prefix\.onnx: all queries share one key head.* tensor_parallel at 1"):
        write_shards(graphs, tmp_path, 2)


def test_nine_heads_of_queries_and_three_of_keys_take_three_ranks(tmp_path: Path) -> None:
    """As in SmolLM2; by processes of their own, as they serve."""
    model = causal_model("llama", num_attention_heads=9, num_key_value_heads=3)
    graphs = exported(model, "llama", tmp_path)
    assert shard_plan(onnx.load(graphs / BRANCHES_FILE), "nine heads").ranks() == [1, 3]
    (tmp_path / "shards").mkdir()
    write_shards(graphs, tmp_path / "shards", 3)
    assert compare_with_whole(graphs, tmp_path / "shards", TENSORS) < TOLERANCE
