"""Small shared-context rankers and requests for the packed engine's tests, and what ``network.py`` says of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tritonrank_runtime.architecture import RowLimits
from tritonrank_runtime.engine import Tensors
from tritonrank_runtime.network import SharedContextNetwork
from tritonrank_runtime.packed.network import PackedNetwork
from tritonrank_runtime.packed.packing import PackedBatch, PackedRequest, Sizes, pack
from tritonrank_runtime.packed.requests import shared_context_request

VOCABULARY = 90
POSITIONS = 512
CONTEXT_POSITIONS = 128


def small_config(**changes: Any) -> SimpleNamespace:
    """Two layers of two heads, as BERT has them."""
    sizes = {
        "vocab_size": VOCABULARY,
        "embedding_size": 32,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_size": 16,
        "intermediate_size": 64,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "first_position": 0,
        "context_positions": CONTEXT_POSITIONS,
    }
    return SimpleNamespace(**sizes | changes)


def small_network(std: float = 0.2, **changes: Any) -> SharedContextNetwork:
    """With weights so large that logits differ by far more than rounding does."""
    torch.manual_seed(3)
    network = SharedContextNetwork(small_config(**changes)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=std)
    return network


def limits_of(config: Any) -> RowLimits:
    positions = config.max_position_embeddings - config.first_position
    return RowLimits(
        {"context_ids": config.context_positions, "candidate_ids": positions - config.context_positions},
        {"context_ids": (0, config.vocab_size), "candidate_ids": (-1, config.vocab_size)},
    )


def request_of(context: int, lengths: list[int], seed: int = 0) -> Tensors:
    """Random ids: a context of so many tokens, and candidates of these lengths."""
    generator = np.random.default_rng(seed)
    candidate_ids = generator.integers(0, VOCABULARY, (len(lengths), max(lengths)), dtype=np.int32)
    candidate_ids[np.arange(max(lengths)) >= np.array(lengths)[:, None]] = -1
    return {
        "context_ids": generator.integers(0, VOCABULARY, context, dtype=np.int32),
        "candidate_ids": candidate_ids,
    }


def packed(network: SharedContextNetwork, request: Tensors, **places: int) -> PackedRequest:
    config = network.config
    return shared_context_request(request, limits_of(config), config.context_positions, **places)


def bucket_of(requests: list[PackedRequest]) -> Sizes:
    """The smallest bucket, in steps of 64 rows, that holds these."""
    needed = sum((one.counts for one in requests), Sizes(0, 0, 0, 0, 0, 0, 0))
    rows = 64
    while not Sizes.bucket(rows).holds(needed):
        rows += 64
    return Sizes.bucket(rows)


def run_packed(
    runner: PackedNetwork, requests: list[PackedRequest], sizes: Sizes | None = None
) -> list[NDArray[np.float32]]:
    """The logits of each request, of one launch."""
    batch = PackedBatch.empty(sizes or bucket_of(requests))
    batch.buffer[:] = 2**30  # what is not written is noticed
    pack(requests, batch)
    logits = runner(PackedBatch(batch.sizes, torch.from_numpy(batch.buffer))).numpy()
    ends = np.cumsum([one.counts.segments for one in requests])
    return [one.logits(logits[end - one.counts.segments : end]) for one, end in zip(requests, ends, strict=True)]


def expected(network: SharedContextNetwork, request: Tensors) -> NDArray[np.float32]:
    """What the split network says, in FP32."""
    with torch.inference_mode():
        keys, values = network.encode_context(torch.from_numpy(request["context_ids"]))
        logits = network.score_candidates(keys, values, torch.from_numpy(request["candidate_ids"]))
    return np.asarray(logits.numpy())
