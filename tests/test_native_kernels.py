"""The native engine computes what the network and its Q/DQ graph say, whatever the shapes, and refuses the rest."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_rankers import (
    bfloat16_weights,
    native_weights,
    quantized_weights,
    random_network,
    random_rows,
    reference_logits,
    torch_logits,
)
from numpy.typing import NDArray
from tritonrank_runtime.engine import ExecutorError, RowsError
from tritonrank_runtime.native.graphs import NativeCandidates, NativeContext
from tritonrank_runtime.native.library import kernels_here
from tritonrank_runtime.native.model import NativeModel
from tritonrank_runtime.native.weights import NATIVE_FILE, NativeWeights

KERNELS = [name for name in ("plain", "avx2", "avx512", "avx512_bf16") if kernels_here(name)]
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "first_position": 2, "layer_norm_eps": 1e-5},
    "distilbert": {"type_vocab_size": 0},
    "electra": {"embedding_size": 24, "hidden_size": 40, "intermediate_size": 72},
    "pruned": {"num_attention_heads": 5, "head_size": 8, "intermediate_size": 36},
    "one layer": {"num_hidden_layers": 1, "num_attention_heads": 1, "head_size": 24},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu"},
    "tanh": {"hidden_act": "tanh"},
}
FLOAT_ERROR = 1e-5
STEP_ERROR = 0.01
"""INT8 against the same in FP64: a number that lies between two steps may fall to either, and then moves the logit by
what a step is worth; logits here spread by about 0.5."""

HALF_ERROR = 0.02
"""BF16 keeps eight bits of a number."""

Scorer = Callable[[NDArray[np.int32], NDArray[np.int32]], Any]


def scorer(weights: NativeWeights, kernels: str = "") -> Scorer:
    """(context, rows) -> logits, through both graphs."""
    model = NativeModel(weights, kernels)
    context, candidates = NativeContext(model), NativeCandidates(model)

    def score(context_ids: NDArray[np.int32], candidate_ids: NDArray[np.int32]) -> Any:
        keys, values = context.run([], {"context_ids": context_ids})
        feed = {"context_keys": keys, "context_values": values, "candidate_ids": candidate_ids}
        return candidates.run(["logits"], feed)[0]

    return score


@cache
def _shared(kind: str) -> Scorer:
    weights = native_weights(random_network())
    made = {"int8": quantized_weights, "half": bfloat16_weights}
    return scorer(made[kind](weights) if kind in made else weights)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_floats_agree_with_the_network(family: str, kernels: str) -> None:
    network = random_network(**FAMILIES[family])
    score = scorer(native_weights(network), kernels)
    generator = np.random.default_rng(1)
    for tokens, lengths in ((1, [1]), (37, [5, 22, 1, 30, 7] * 3), (130, [150, 3])):
        context, rows = generator.integers(0, 211, size=tokens, dtype=np.int32), random_rows(generator, lengths)
        np.testing.assert_allclose(score(context, rows), torch_logits(network, context, rows), atol=FLOAT_ERROR)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("floats", [(), ("query", "ffn_out"), ("key", "ffn_in", "attention_out")], ids=len)
def test_steps_agree_with_quantize_and_dequantize(floats: tuple[str, ...], kernels: str) -> None:
    network = random_network(hidden_size=40, embedding_size=24, num_attention_heads=5, head_size=8)
    weights = quantized_weights(native_weights(network), floats=floats)
    generator = np.random.default_rng(2)
    context, rows = generator.integers(0, 211, size=50, dtype=np.int32), random_rows(generator, [9, 1, 24, 60] * 4)
    found, expected = scorer(weights, kernels)(context, rows), reference_logits(network, weights, context, rows)
    assert np.abs(expected - torch_logits(network, context, rows)).max() > 10 * STEP_ERROR  # steps are felt
    # Rounding may go the other way in few rows alone.
    assert np.median(np.abs(found - expected)) < FLOAT_ERROR
    np.testing.assert_allclose(found, expected, atol=STEP_ERROR)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_residual_can_be_the_rounded_input_of_the_query(kernels: str) -> None:
    network = random_network()
    exact = quantized_weights(native_weights(network))
    tensors = {name: tensor for name, tensor in exact.tensors.items() if name != "layers.1.query.input_factor"}
    weights = NativeWeights(replace(exact.config, rounded_residuals=(1,)), tensors)
    generator = np.random.default_rng(2)
    context, rows = generator.integers(0, 211, size=50, dtype=np.int32), random_rows(generator, [9, 1, 24, 60] * 4)
    found, expected = scorer(weights, kernels)(context, rows), reference_logits(network, weights, context, rows)
    assert np.median(np.abs(found - expected)) < FLOAT_ERROR
    np.testing.assert_allclose(found, expected, atol=STEP_ERROR)


@pytest.mark.parametrize("kernels", KERNELS)
def test_halves_round_inputs_and_weights_alone(kernels: str) -> None:
    network = random_network()
    floats = native_weights(network)
    weights = bfloat16_weights(floats)
    generator = np.random.default_rng(2)
    context, rows = generator.integers(0, 211, size=50, dtype=np.int32), random_rows(generator, [9, 1, 24, 60] * 4)
    exact = torch_logits(network, context, rows)
    found = scorer(weights, kernels)(context, rows)
    assert 1e-4 < np.abs(found - exact).max() < HALF_ERROR
    np.testing.assert_allclose(found, reference_logits(network, weights, context, rows), atol=HALF_ERROR)


@given(
    seed=st.integers(0, 1_000),
    context_tokens=st.one_of(st.integers(1, 40), st.just(400)),
    count=st.one_of(st.integers(1, 30), st.just(1_000)),
    longest=st.one_of(st.integers(1, 30), st.just(200)),
    kind=st.sampled_from(["float", "int8", "half"]),
)
@settings(max_examples=25, deadline=None)
def test_scores_are_the_same_to_the_bit_alone_and_among_others(
    seed: int, context_tokens: int, count: int, longest: int, kind: str
) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, min(longest, 30) + 1, size=count).tolist()
    lengths[int(generator.integers(count))] = longest  # one giant
    context, rows = generator.integers(0, 211, size=context_tokens, dtype=np.int32), random_rows(generator, lengths)
    score = _shared(kind)
    together = score(context, rows)
    assert np.isfinite(together).all()
    for row in generator.integers(count, size=3):
        assert score(context, rows[row : row + 1, : lengths[row]])[0] == together[row]
    order = generator.permutation(count)
    np.testing.assert_array_equal(score(context, rows[order]), together[order])


@pytest.mark.parametrize(
    ("context", "rows", "place"),
    [
        ([211], [[1]], "context_ids"),
        ([-1], [[1]], "context_ids"),
        ([], [[1]], "context_ids"),
        ([1] * 641, [[1]], "context_ids"),
        ([1], [[211]], "candidate_ids"),
        ([1], [[-2]], "candidate_ids"),
        ([1], [[-1]], "candidate_ids"),
        ([1], [[-1, 1]], "candidate_ids"),
        ([1], [[1] * 241], "candidate_ids"),
    ],
)
def test_rows_that_no_table_has_are_refused(context: list[int], rows: list[list[int]], place: str) -> None:
    with pytest.raises(RowsError, match=place):
        _shared("float")(np.array(context, dtype=np.int32), np.array(rows, dtype=np.int32))


def test_keys_of_another_ranker_are_refused() -> None:
    candidates = NativeCandidates(NativeModel(native_weights(random_network())))
    keys = np.zeros((2, 4, 5, 16), dtype=np.float32)
    feed = {"context_keys": keys, "context_values": keys, "candidate_ids": np.ones((1, 1), dtype=np.int32)}
    with pytest.raises(RowsError, match="context_keys"):
        candidates.run(["logits"], feed)


def _changed(name: str, tensor: NDArray[Any] | None) -> NativeWeights:
    weights = quantized_weights(native_weights(random_network()))
    kept = {one: value for one, value in weights.tensors.items() if one != name}
    return NativeWeights(weights.config, kept if tensor is None else kept | {name: tensor})


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("layers.0.key.weight", None),
        ("layers.0.key.weight_scale", None),
        ("layers.0.key.input_zero_point", None),
        ("layers.1.ffn_in.weight", np.zeros((48, 79), dtype=np.int8)),
        ("layers.1.ffn_in.weight", np.zeros((48, 80), dtype=np.float64)),
        ("layers.1.ffn_in.input_scale", np.array([0.0, 0.0], dtype=np.float32)),
        ("layers.0.ffn_in.input_scale", np.array([0.0, 0.1], dtype=np.float32)),
        ("layers.0.ffn_in.bias", np.full(80, np.nan, dtype=np.float32)),
        ("embeddings.segments", None),
        ("layers.2.query.weight", np.zeros((48, 48), dtype=np.float32)),
        ("head.input_factor", np.ones(48, dtype=np.float32)),
    ],
)
def test_a_file_that_the_library_cannot_trust_is_refused(name: str, tensor: NDArray[Any] | None) -> None:
    with pytest.raises(ExecutorError, match=f"FILE: {name}: .* tritonrank build"):
        _changed(name, tensor).check("FILE")


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    weights = quantized_weights(native_weights(random_network()), floats=("query",))
    weights = NativeWeights(replace(weights.config, rounded_residuals=(1,)), weights.tensors)
    weights.write(tmp_path / NATIVE_FILE)
    read = NativeWeights.read(tmp_path / NATIVE_FILE)
    assert read.config == weights.config
    assert {name: tensor.tobytes() for name, tensor in read.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in weights.tensors.items()
    }
    (tmp_path / NATIVE_FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(ExecutorError, match=NATIVE_FILE):
        NativeWeights.read(tmp_path / NATIVE_FILE)


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ExecutorError, match="avx1024"):
        NativeModel(native_weights(random_network()), "avx1024")
