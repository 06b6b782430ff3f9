"""Keys and values that are kept in fewer bits: so many bytes, so near, and the same scores on a hit as on a miss."""

import numpy as np
import pytest
from test_decoder import REQUESTS, random_rows
from test_decoder_graphs import Made, save, tensors_of
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.serving import Serving
from tritonrank_runtime.decoder import NAMES
from tritonrank_runtime.engine import ExecutorError
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.kept_states import KEPT_BITS, KeptStates
from tritonrank_runtime.torch_engine import open_torch_engine

LAYERS, HEADS, TOKENS, SIZE = 3, 2, 30, 8
CACHE_BYTES = 10_000_000


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return save("llama", tmp_path_factory.mktemp("llama"))


def outlying_states() -> dict[str, np.ndarray]:
    """One number of each key, and the values of one token, are a hundred times larger than the rest."""
    states = np.random.default_rng(3).normal(size=(2, LAYERS, HEADS, TOKENS, SIZE)).astype(np.float32)
    states[0, ..., 5] *= 100
    states[1, :, :, 7] *= 100
    states[1, 0, 0, 2] = 0
    return dict(zip(NAMES.states, states, strict=True))


@pytest.mark.parametrize(("bits", "largest"), [(16, 5e-4), (8, 0.5 / 127 + 1e-6)])
def test_states_come_back_within_a_step_of_their_own_scale(bits: int, largest: float) -> None:
    states = outlying_states()
    kept = KeptStates(NAMES.keys, bits).kept(states)
    restored = KeptStates(NAMES.keys, bits).restored(kept)
    assert {*restored} == {*states}
    for name, axis in zip(NAMES.states, (2, 3), strict=True):
        assert restored[name].dtype == np.float32
        scale = np.abs(states[name]).max(axis=axis, keepdims=True)
        assert (np.abs(restored[name] - states[name]) <= largest * scale).all()
    numbers = sum(tensor.nbytes for tensor in states.values())
    scales = 4 * LAYERS * HEADS * (TOKENS + SIZE) if bits == 8 else 0
    assert sum(tensor.nbytes for tensor in kept.values()) == numbers * bits // 32 + scales


@pytest.mark.parametrize("bits", KEPT_BITS)
def test_a_hit_has_the_scores_of_a_miss_to_the_last_bit(llama: Made, bits: int) -> None:
    requests = [tensors_of(*request) for request in (REQUESTS[0], REQUESTS[2])]
    keeping = open_engine(llama[1], context_cache_bytes=CACHE_BYTES, context_cache_bits=bits)
    none_kept = open_engine(llama[1], context_cache_bits=bits)
    first, again, alone = keeping.run(requests), keeping.run(requests), none_kept.run(requests)
    assert keeping.context_cache is not None
    assert (keeping.context_cache.hits, keeping.context_cache.misses) == (2, 2)
    for one, other, third in zip(first, again, alone, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, third)


def test_fewer_bits_take_fewer_bytes_and_keep_the_order(llama: Made) -> None:
    prefix, branches = random_rows(8, 40, [6] * 30)
    request = tensors_of(prefix, branches)
    engines = {bits: open_engine(llama[1], 0, 16, CACHE_BYTES, context_cache_bits=bits) for bits in KEPT_BITS}
    scores = {bits: engine.run([request])[0] for bits, engine in engines.items()}
    kept = {bits: engine.context_cache.bytes for bits, engine in engines.items() if engine.context_cache is not None}
    assert kept[16] < 0.51 * kept[32]
    assert kept[8] < 0.45 * kept[32]  # heads of 8 numbers, whose scales weigh more than those of 64
    spread = np.ptp(scores[32])
    assert 0 < np.abs(scores[16] - scores[32]).max() < 1e-3 * spread
    assert 0 < np.abs(scores[8] - scores[32]).max() < 0.05 * spread


def test_the_scorer_is_told_of_fewer_bits_alone(llama: Made) -> None:
    serving = Serving(100, 100, 0.5, 8, 16, 1, "auto", "auto", "onnxruntime", "cpu")
    decoder = architecture_named("decoder")
    assert "context_cache_bits" not in decoder.score_parameters(serving)
    for dtype, bits in (("float16", 16), ("int8", 8)):
        told = decoder.score_parameters(Serving(100, 100, 0.5, 8, 16, 1, "auto", "auto", "native", "cpu", dtype))
        assert told["context_cache_bits"] == bits


def test_pytorch_keeps_states_as_they_are(llama: Made) -> None:
    with pytest.raises(ExecutorError, match=r"serve\.context_cache_dtype: PyTorch keeps keys and values as it"):
        open_torch_engine(llama[1], context_cache_bits=8)
