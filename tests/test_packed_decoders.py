"""Decoders in packed rows score as ``decoder_network.py`` does: by PyTorch alone, and by kernels in the interpreter."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_decoders import causal_model
from transformers import PreTrainedModel
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank_runtime import torch_engine
from tritonrank_runtime.decoder import Decoder, packed_rows
from tritonrank_runtime.decoder_network import DecoderNetwork
from tritonrank_runtime.engine import ExecutorError, RowsError, Tensors
from tritonrank_runtime.packed import attention, decoder_kernels, opening
from tritonrank_runtime.packed.attention import Blocks
from tritonrank_runtime.packed.decoder_network import PackedDecoder, unsupported
from tritonrank_runtime.packed.decoder_operations import (
    ACTIVATIONS,
    PlainDecoderOperations,
    RmsNorm,
    Turning,
)
from tritonrank_runtime.packed.engine import PackedEngine
from tritonrank_runtime.packed.opening import open_packed_engine
from tritonrank_runtime.packed.packing import PackedBatch, PackedRequest, Sizes, pack, total
from tritonrank_runtime.packed.requests import decoder_request
from tritonrank_runtime.rotary import frequencies

VOCABULARY, POSITIONS = 90, 400
TOLERANCE = 1e-4
BUCKETS = (64, 128, 256)
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"query_key_norm": True},
    "qwen2": {"attention_bias": True, "num_attention_heads": 7, "num_key_value_heads": 1},
    "llama": {"rope_scaling": SCALED, "head_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3},
    "gemma": {"norm_offset": True, "hidden_act": "gelu_pytorch_tanh", "embedding_scale": 32**0.5, "query_scale": 0.2},
    "two-rows": {"head_rows": 2, "logit_softcap": 3.0, "ffn_bias": True, "attention_out_bias": True},
}
REQUESTS = [(70, [3, 40, 33, 1]), (1, [1]), (5, [64, 65]), (130, [7] * 12)]


def settings(**changes: Any) -> SimpleNamespace:
    """Two layers of four heads, two of which share a key head."""
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_size": 16,
        "intermediate_size": 48,
        "hidden_act": "silu",
        "ffn": "gated",
        "norm": "rms",
        "norm_eps": 1e-6,
        "norm_offset": False,
        "position": "rotary",
        "max_position_embeddings": POSITIONS,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "rope_local_theta": None,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 2,
        "attention_bias": False,
        "attention_out_bias": False,
        "ffn_bias": False,
        "query_key_norm": False,
        "attention_softcap": None,
        "logit_softcap": None,
        "query_scale": None,
        "embedding_scale": 1.0,
        "post_norms": False,
        "head_rows": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return SimpleNamespace(**config | changes)


def decoder(**changes: Any) -> DecoderNetwork:
    """With weights so large that logits differ by far more than rounding does."""
    torch.manual_seed(3)
    network = DecoderNetwork(settings(**changes)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return network


def request_of(prefix: int, lengths: list[int], seed: int = 0) -> Tensors:
    generator = np.random.default_rng(seed)
    branch_ids = generator.integers(0, VOCABULARY, (len(lengths), max(lengths)), dtype=np.int32)
    branch_ids[np.arange(max(lengths)) >= np.array(lengths)[:, None]] = -1
    return {"prefix_ids": generator.integers(0, VOCABULARY, prefix, dtype=np.int32), "branch_ids": branch_ids}


def expected(network: DecoderNetwork, request: Tensors) -> NDArray[np.float32]:
    """What the network's own passes say, in FP32."""
    with torch.inference_mode():
        states = network.encode_prefix(torch.from_numpy(request["prefix_ids"]))
        return np.asarray(network.score_branches(*states, torch.from_numpy(request["branch_ids"])).numpy())


def packed(network: DecoderNetwork, request: Tensors, **places: int) -> PackedRequest:
    return decoder_request(request, packed_rows(network.config).limits, **places)


def launched(runner: PackedDecoder, requests: list[PackedRequest], rows: int = 0) -> list[NDArray[np.float32]]:
    """The logits of each request, of one launch of a bucket of so many rows; 0: with room for just what there is, since
    an interpreted kernel takes its time for tiles without rows, too."""
    needed = total(requests)
    exact = replace(needed, rows=-(-needed.rows // 64) * 64)
    batch = PackedBatch.empty(Sizes.bucket(rows) if rows else exact)
    batch.buffer[:] = 2**30  # what is not written is noticed
    pack(requests, batch)
    logits = runner(PackedBatch(batch.sizes, torch.from_numpy(batch.buffer))).numpy()
    ends = np.cumsum([one.counts.segments for one in requests])
    return [one.logits(logits[end - one.counts.segments : end]) for one, end in zip(requests, ends, strict=True)]


# Scores


@pytest.mark.parametrize("family", FAMILIES)
def test_a_launch_scores_each_of_its_requests_as_the_network_does(family: str) -> None:
    network = decoder(**FAMILIES[family])
    assert unsupported(network.config) is None
    runner = PackedDecoder(network, torch.float32, "cpu", "sdpa")
    requests = [request_of(*one, seed=seed) for seed, one in enumerate(REQUESTS)]
    found = launched(runner, [packed(network, one) for one in requests], 640)
    assert np.ptp(np.concatenate(found)) > 0.1
    for request, logits in zip(requests, found, strict=True):
        np.testing.assert_allclose(logits, expected(network, request), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    "family", ["qwen3", "qwen2", *(pytest.param(one, marks=pytest.mark.slow) for one in ("llama", "gemma", "two-rows"))]
)
def test_kernels_score_as_the_network_does(family: str) -> None:
    network = decoder(**FAMILIES[family])
    runner = PackedDecoder(network, torch.float32, "cpu", "triton")
    requests = [request_of(70, [3, 40, 1], seed=1), request_of(1, [2], seed=2)]
    found = launched(runner, [packed(network, one) for one in requests])
    for request, logits in zip(requests, found, strict=True):
        np.testing.assert_allclose(logits, expected(network, request), atol=TOLERANCE, rtol=TOLERANCE)


def test_kernels_in_fp16_keep_a_residual_stream_that_fp16_would_not() -> None:
    """One number of the stream becomes 90,000, beyond FP16's largest; norms bring it back."""
    network = decoder(query_key_norm=True, attention_out_bias=True)
    with torch.no_grad():
        network.embeddings.words.weight[:, 0] = 60_000.0
        network.layers[0].attention_out.get_parameter("bias")[0] = 30_000.0
        for norm in [
            network.norm,
            *(one for layer in network.layers for one in (layer.attention_norm, layer.ffn_norm)),
        ]:
            norm.weight *= 1_000.0
            norm.weight[0] = 1e-3
    request = request_of(20, [12, 5, 8])
    right = expected(network, request)
    assert np.ptp(right) > 0.02
    (found,) = launched(PackedDecoder(network, torch.float16, "cpu", "triton"), [packed(network, request)])
    np.testing.assert_allclose(found, right, atol=0.02 * np.abs(right).max())


def test_a_folded_network_is_read_as_one_that_is_not() -> None:
    network = decoder(**FAMILIES["gemma"])
    request = request_of(9, [4, 5])
    pair = [PackedDecoder(one, torch.float32, "cpu", "sdpa") for one in (network, network.folded())]
    plain, folded = (launched(one, [packed(network, request)])[0] for one in pair)
    np.testing.assert_allclose(folded, plain, atol=1e-5)


@pytest.mark.parametrize("way", ["sdpa", "triton"])
def test_a_kept_prefix_scores_as_one_that_is_computed(way: str) -> None:
    network = decoder(query_key_norm=True)
    runner = PackedDecoder(network, torch.float32, "cpu", way, pool_rows=120)
    request, other = request_of(70, [3, 20]), request_of(12, [9], seed=2)
    computed = launched(runner, [packed(network, other), packed(network, request, keep_at=41)])[1]
    np.testing.assert_allclose(computed, expected(network, request), atol=TOLERANCE, rtol=TOLERANCE)
    assert not runner.pool[:, :41].any()
    assert not runner.pool[:, 111:].any()
    kept = launched(runner, [packed(network, request, kept_at=41), packed(network, other)])[0]
    np.testing.assert_allclose(kept, computed, atol=1e-5)


# The engine


def test_the_engine_scores_mixes_of_requests_with_and_without_kept_prefixes() -> None:
    network = decoder(query_key_norm=True)
    requests = [
        request_of(5, [3, 9, 1], seed=1),
        request_of(40, [17] * 30, seed=2),  # in parts
        request_of(1, [1] * 70, seed=3),
        request_of(90, [200], seed=4),  # in no bucket
        request_of(5, [3, 9, 1], seed=1),
    ]
    for cache_bytes in (0, 100 * 2 * 2 * 2 * 16 * 4):
        engine = open_packed_engine(
            network, packed_rows(network.config), "cpu", context_cache_bytes=cache_bytes, buckets=BUCKETS
        )
        for _ in range(2):
            for found, request in zip(engine.run(requests), requests, strict=True):
                np.testing.assert_allclose(found, expected(network, request), atol=TOLERANCE, rtol=TOLERANCE)
        assert (engine.context_cache.hits > 0) == (cache_bytes > 0)


def test_the_attention_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a card on which a kernel does not run has a way out."""
    network = decoder()
    monkeypatch.setenv("TRITONRANK_GPU_ATTENTION", "nothing")
    with pytest.raises(ExecutorError, match="attention 'nothing': there is none of that name; known: triton, sdpa"):
        open_packed_engine(network, packed_rows(network.config), "cpu", buckets=BUCKETS)


def test_partings_have_no_score() -> None:
    network = decoder()
    engine = open_packed_engine(network, packed_rows(network.config), "cpu", buckets=BUCKETS)
    request = request_of(6, [4, 5, 6], seed=8)
    parted = np.insert(request["branch_ids"], 2, -1, axis=0)
    (found,) = engine.run([request | {"branch_ids": parted}])
    assert found[2] == 0
    np.testing.assert_allclose(np.delete(found, 2), expected(network, request), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_score_is_the_same_to_the_last_bit_whoever_shares_a_launch_of_the_bucket() -> None:
    network = decoder(query_key_norm=True)
    runner = PackedDecoder(network, torch.float32, "cpu", "sdpa")
    request = request_of(20, [12] * 4, seed=1)
    first, second = (
        launched(runner, [packed(network, request_of(3, [7] * 4, seed=seed)), packed(network, request)], 256)[1]
        for seed in (2, 3)
    )
    np.testing.assert_array_equal(first, second)


def test_a_branch_beyond_the_last_position_is_refused() -> None:
    network = decoder()
    engine = open_packed_engine(network, packed_rows(network.config), "cpu", buckets=BUCKETS)
    with pytest.raises(RowsError, match=r"branch_ids: rows of 101 tokens behind a prefix of 300; .* 400 positions"):
        engine.run([request_of(300, [101])])
    with pytest.raises(RowsError, match="branch_ids: ids from"):
        engine.run([{"prefix_ids": np.zeros(3, np.int32), "branch_ids": np.full((1, 1), 90, np.int32)}])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        ({"attention_softcap": 5.0}, "a cap of attention scores"),
        ({"norm": "layer"}, "norm: layer"),
        ({"position": "learned"}, "position: learned"),
        ({"post_norms": True}, "norms behind attention and FFN"),
        ({"head_size": 40}, "heads of 40 numbers, not a multiple of 16"),
        ({"hidden_act": "tanh"}, "hidden_act: tanh"),
    ],
)
def test_why_a_family_is_not_packed_is_said(changes: dict[str, Any], reason: str) -> None:
    assert unsupported(settings(**changes)) == reason


# Checkpoints


def saved(family: str, folder: Path) -> PreTrainedModel:
    """A checkpoint of our kind, made of a language model of transformers with heads of 16."""
    model = causal_model(family, head_dim=16)
    decoder_from(model, family, yes_no_head(model, 7, 8)).save_pretrained(folder)
    return model


def test_a_checkpoint_on_a_gpu_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a machine without one can see it: the engine is opened on the CPU where a card was asked for."""
    model = saved("qwen3", tmp_path)
    monkeypatch.setattr(torch_engine, "check_device", lambda device: None)
    monkeypatch.setattr(
        opening, "open_packed_engine", lambda *given, **options: open_packed_engine(*given[:2], "cpu", **options)
    )
    engine = torch_engine.open_torch_engine(tmp_path, "cuda", context_cache_bytes=1_000_000)
    assert isinstance(engine, PackedEngine)
    request = request_of(30, [4, 9, 2])
    (found,) = engine.run([request])
    for branch, logit in zip(request["branch_ids"], found, strict=True):
        pair = torch.from_numpy(np.concatenate([request["prefix_ids"], branch[branch >= 0]]))
        with torch.no_grad():
            logits = model(pair[None]).logits[0, -1]
        np.testing.assert_allclose(logit, (logits[7] - logits[8]).item(), atol=1e-3)
    assert engine.context_cache.bytes > 0


def test_a_checkpoint_that_the_kernels_cannot_do_keeps_its_own_passes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved("gemma2", tmp_path)
    assert Decoder().packed(tmp_path) is None
    assert "norms behind attention and FFN: the packed engine has none" in caplog.text


# Kernels


def attended(
    request: PackedRequest, projected: torch.Tensor, sizes: tuple[int, int, int], blocks: Blocks = attention.BLOCKS
) -> torch.Tensor:
    """What the kernel makes of a request's random rows; sizes: heads, key heads, numbers in a head."""
    heads, key_heads, head_size = sizes
    batch = PackedBatch.empty(request.counts)
    pack([request], batch)
    tables = PackedBatch(batch.sizes, torch.from_numpy(batch.buffer)).tables
    query, keys_values = projected.split([heads * head_size, 2 * key_heads * head_size], dim=1)
    return attention.attend(
        query, keys_values, keys_values[:0], tables["tiles"], tables["chunks"], head_size, 64, is_causal=True,
        blocks=blocks,
    )  # fmt: skip


def plainly(request: Tensors, projected: torch.Tensor, sizes: tuple[int, int, int]) -> torch.Tensor:
    """Row by row, in FP64: each sees the prefix and its own branch up to itself."""
    heads, key_heads, head_size = sizes
    prefix = len(request["prefix_ids"])
    parts = [heads * head_size, key_heads * head_size, key_heads * head_size]
    query, key, value = (one.unflatten(1, (-1, head_size)).double() for one in projected.split(parts, dim=1))
    ends = prefix + np.cumsum((request["branch_ids"] >= 0).sum(axis=1))
    out = []
    for row in range(len(projected)):
        start = int([prefix, *ends][int(np.searchsorted(ends, row, side="right"))])
        seen = [*range(min(row + 1, prefix)), *(range(start, row + 1) if row >= prefix else ())]
        of_head = []
        for head in range(heads):
            of_key = head // (heads // key_heads)
            weights = torch.softmax(key[seen, of_key] @ query[row, head] * np.log(2), dim=0)
            of_head.append(weights @ value[seen, of_key])
        out.append(torch.cat(of_head))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [((4, 2, 16), Blocks()), ((3, 1, 48), Blocks()), ((4, 1, 32), Blocks(256, 16, 2)), ((2, 2, 80), Blocks())],
    ids=str,
)
def test_attention_sees_the_prefix_and_its_own_branch_up_to_itself(sizes: tuple[int, int, int], blocks: Blocks) -> None:
    heads, key_heads, head_size = sizes
    request = request_of(70, [3, 40, 1, 33])
    rows = 70 + 77
    generator = torch.Generator().manual_seed(7)
    projected = torch.rand(rows, (heads + 2 * key_heads) * head_size, generator=generator) * 2 - 1
    found = attended(packed(decoder(), request), projected, sizes, blocks)
    torch.testing.assert_close(found.double(), plainly(request, projected, sizes), atol=1e-5, rtol=0)


def test_a_branch_is_attended_to_bitwise_alike_alone_and_among_others() -> None:
    network, sizes = decoder(), (4, 2, 16)
    lengths = [7, 33, 1, 50]
    generator = torch.Generator().manual_seed(7)
    rows = (torch.rand(70 + sum(lengths), 128, generator=generator) * 2 - 1).half()
    whole = attended(packed(network, request_of(70, lengths)), rows, sizes)
    starts = 70 + np.cumsum([0, *lengths])
    for number in (1, 3):
        own = slice(int(starts[number]), int(starts[number + 1]))
        alone = torch.cat([rows[:70], rows[own]])
        single = attended(packed(network, request_of(70, [lengths[number]])), alone, sizes)
        assert torch.equal(single[70:], whole[own])
        assert torch.equal(single[:70], whole[:70])


@pytest.mark.parametrize(("width", "rows"), [(32, 5), (576, 3)])
def test_the_norm_of_a_sum(width: int, rows: int) -> None:
    hidden, added = torch.randn(2, rows, width).mul(300).unbind()
    norm = RmsNorm(torch.rand(width), 1e-5)
    plain, own = hidden.clone(), hidden.clone()
    right = PlainDecoderOperations(16).add_rms(plain, added.half(), norm, torch.float16)
    found = decoder_kernels.add_rms(own, added.half(), *norm, torch.float16)
    torch.testing.assert_close(own, plain)
    torch.testing.assert_close(found, right)
    assert found.abs().max() > 0.5
    torch.testing.assert_close(decoder_kernels.add_rms(own, None, *norm, torch.float16), right)
    torch.testing.assert_close(own, plain)


@pytest.mark.parametrize("epsilon", [None, 1e-6])
@pytest.mark.parametrize("size", [16, 48])
def test_heads_are_turned_where_they_lie(size: int, epsilon: float | None) -> None:
    """Two heads of queries and one of keys, beside values that stay."""
    rows = torch.randn(19, 4 * size)
    angles = torch.arange(19)[:, None] * frequencies(size, 100.0, None)
    turns = torch.cat([angles.cos(), angles.sin()], dim=1)
    turning = Turning(torch.rand(2, size), epsilon)
    plain, own = rows.clone(), rows.clone()
    PlainDecoderOperations(size).turn(plain[:, : 3 * size], 2, turns, turning)
    decoder_kernels.turn(own[:, : 3 * size], 2, turns, *turning)
    torch.testing.assert_close(own, plain)
    assert torch.equal(own[:, 3 * size :], rows[:, 3 * size :])
    assert not torch.allclose(own[:, : 3 * size], rows[:, : 3 * size], atol=0.1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gates(activation: str) -> None:
    projected = torch.randn(3, 2 * 1_100)
    right = PlainDecoderOperations(16).gated(projected, activation)
    torch.testing.assert_close(decoder_kernels.gated(projected, activation), right, atol=1e-5, rtol=1e-5)


def test_tiles_hold_rows_of_the_prefix_or_of_branches() -> None:
    """A request's tiles never hold rows of its prefix beside those of a branch."""
    request = packed(decoder(), request_of(70, [3, 64, 1]))
    assert request.tiles[:, :4].tolist() == [[0, 64, 0, 64], [64, 70, 0, 70], [70, 134, 0, 70], [134, 138, 0, 70]]
    assert request.scored_rows.tolist() == [72, 136, 137]
    assert request.positions[70:75].tolist() == [70, 71, 72, 70, 71]
    assert request.counts.kept_rows == 0
    assert packed(decoder(), request_of(70, [3]), keep_at=5).counts.kept_rows == 70
