"""A decoder's graphs say what the language model says of each pair alone: in ONNX on the CPU, through the torch
executor, and as the one padded graph.

A candidate's score has the same bits whatever else is in the request.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_decoder import DECODERS, FAMILIES, NO, REQUESTS, TOLERANCE, YES, one_by_one, padded, random_rows
from tiny_decoders import causal_model
from transformers import PreTrainedModel
from tritonrank.graphs.batched import export_batched_graph, padded_requests
from tritonrank.graphs.export import export_graphs
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank_runtime.architecture import EngineOptions
from tritonrank_runtime.decoder import BRANCHES_FILE, NAMES, PREFIX_FILE
from tritonrank_runtime.engine import Engine, RowsError, Tensors
from tritonrank_runtime.engines import engine_of, open_engine
from tritonrank_runtime.sessions import open_session
from tritonrank_runtime.split_engine import BatchedEngine, SplitEngine
from tritonrank_runtime.torch_engine import open_torch_engine

Made = tuple[PreTrainedModel, Path]
QUICK = ("llama", "gpt2")
"""Families that `make test` looks at: of all kinds of norms, positions and FFN."""


def tensors_of(prefix: list[int], branches: list[list[int]]) -> Tensors:
    return {"prefix_ids": np.array(prefix, np.int32), "branch_ids": padded(branches).numpy().astype(np.int32)}


def save(family: str, folder: Path) -> Made:
    """The model, and a folder with its checkpoint and graphs."""
    model = causal_model(family)
    decoder_from(model, family, yes_no_head(model, YES, NO)).save_pretrained(folder)
    export_graphs(folder, folder)
    return model, folder


@pytest.fixture(
    scope="module",
    params=[*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES if one not in QUICK)],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return save("llama", tmp_path_factory.mktemp("llama"))


def test_graphs_give_what_the_model_says_of_each_pair_alone(made: Made) -> None:
    model, folder = made
    ranker = load_any_ranker(folder)
    engine = open_engine(folder)
    assert isinstance(engine, SplitEngine)
    requests = [tensors_of(*request) for request in REQUESTS]
    engines: list[Engine] = [engine, open_torch_engine(folder)]
    export_batched_graph(ranker, folder)
    batched = BatchedEngine(NAMES, open_session(folder / "model.onnx"))
    together = batched.run_padded(padded_requests(NAMES, requests, (40, 6, 24), more_requests=1))
    for number, request in enumerate(REQUESTS):
        expected = one_by_one(model, *request)
        for one in engines:
            np.testing.assert_allclose(one.run([requests[number]])[0], expected, atol=TOLERANCE)
        np.testing.assert_allclose(together[number, : len(expected)], expected, atol=TOLERANCE)


def test_odd_sizes_give_what_pytorch_gives(made: Made) -> None:
    _, folder = made
    ranker, engine = load_any_ranker(folder), open_engine(folder)
    cases = [*DECODERS.grid_cases(ranker)]
    assert len(cases) == 5
    for case in cases:
        np.testing.assert_allclose(case.run(engine), case.expected, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(6))
def test_a_candidate_has_the_same_bits_alone_and_among_any_others(llama: Made, seed: int) -> None:
    engine = open_engine(llama[1])
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 30, size=int(random.integers(2, 60))).tolist()
    prefix, branches = random_rows(seed, int(random.integers(1, 60)), lengths)
    (together,) = engine.run([tensors_of(prefix, branches)])
    for place in range(0, len(branches), 5):
        (alone,) = engine.run([tensors_of(prefix, [branches[place]])])
        assert alone[0] == together[place]


def test_a_prefix_is_computed_once_for_a_user_who_returns(llama: Made) -> None:
    _, folder = llama
    graphs = {name: open_session(folder / name) for name in (PREFIX_FILE, BRANCHES_FILE)}
    engine = engine_of(graphs, EngineOptions(context_cache_bytes=1_000_000))
    first, second = (tensors_of(REQUESTS[0][0], branches) for _, branches in (REQUESTS[0], REQUESTS[2]))
    again = engine.run([first, second, first])
    assert engine.context_cache is not None
    assert (engine.context_cache.hits, engine.context_cache.misses) == (2, 1)
    np.testing.assert_array_equal(again[0], again[2])


def test_the_torch_executor_refuses_more_positions_than_there_are(tmp_path: Path) -> None:
    model = causal_model("gpt2")
    decoder_from(model, "gpt2", yes_no_head(model, YES, NO)).save_pretrained(tmp_path)
    engine = open_torch_engine(tmp_path)
    prefix, branches = random_rows(6, 120, [8])
    assert np.isfinite(engine.run([tensors_of(prefix, branches)])[0]).all()
    with pytest.raises(RowsError, match=r"branch_ids: rows of 9 tokens; the ranker has 8 positions for them"):
        engine.run([tensors_of(prefix, [branches[0] + [7]])])
    with pytest.raises(RowsError, match=r"branch_ids: ids from 1 to 999"):
        engine.run([tensors_of(prefix, [[1, 999]])])


def test_training_takes_any_number_of_prefixes_in_one_batch(llama: Made) -> None:
    ranker = load_any_ranker(llama[1])
    requests = [tensors_of(*request) for request in REQUESTS]
    batch = DECODERS.batch(ranker, requests)
    assert int(DECODERS.token_mask(batch).sum()) == sum(
        len(prefix) + sum(map(len, branches)) for prefix, branches in REQUESTS
    )
    ranker.train()
    plain = ranker(**batch)
    plain.sum().backward()
    expected = [parameter.grad.clone() for parameter in ranker.parameters()]
    ranker.zero_grad()
    ranker.gradient_checkpointing_enable()
    recomputed = ranker(**batch)
    recomputed.sum().backward()
    torch.testing.assert_close(recomputed, plain)
    for parameter, gradient in zip(ranker.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
