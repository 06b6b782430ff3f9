"""Packed rows score as the network does, whoever shares a launch."""

import numpy as np
import pytest
import torch
from packed_requests import expected, packed, request_of, run_packed, small_network
from tritonrank_runtime.engine import RowsError, Tensors
from tritonrank_runtime.packed.network import PackedNetwork
from tritonrank_runtime.packed.packing import PackedBatch, Sizes, pack, total

REQUESTS = [
    request_of(10, [3, 40, 1, 70], seed=1),
    request_of(64, [5] * 40, seed=2),
    request_of(1, [200], seed=3),
    request_of(65, [1], seed=4),
    request_of(128, [31, 32, 33, 63, 64, 65], seed=5),
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"type_vocab_size": 0, "first_position": 2, "hidden_act": "relu", "num_attention_heads": 3},
        {"embedding_size": 16, "type_vocab_size": 1, "num_hidden_layers": 1, "head_size": 48},
    ],
    ids=["bert", "roberta", "electra"],
)
def test_a_launch_scores_each_of_its_requests_as_the_network_does(changes: dict[str, object]) -> None:
    network = small_network(**changes)
    runner = PackedNetwork(network, torch.float32, "cpu", "sdpa")
    found = run_packed(runner, [packed(network, request) for request in REQUESTS])
    for request, logits in zip(REQUESTS, found, strict=True):
        np.testing.assert_allclose(logits, expected(network, request), atol=1e-5, rtol=1e-5)


def test_a_kept_context_scores_as_one_that_is_computed() -> None:
    network = small_network()
    runner = PackedNetwork(network, torch.float32, "cpu", "sdpa", pool_rows=300)
    first = [packed(network, one, keep_at=place) for one, place in zip(REQUESTS[:2], (200, 7), strict=True)]
    before = run_packed(runner, [*first, packed(network, REQUESTS[2])])
    again = [packed(network, one, kept_at=place) for one, place in zip(REQUESTS[:2], (200, 7), strict=True)]
    assert total(again).rows == sum(one.counts.rows for one in first) - 10 - 64
    after = run_packed(runner, [again[1], packed(network, REQUESTS[2]), again[0]])
    for request, one in zip([REQUESTS[1], REQUESTS[2], REQUESTS[0]], after, strict=True):
        np.testing.assert_allclose(one, expected(network, request), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(before[0], after[2], atol=1e-5, rtol=1e-5)


def test_partings_have_no_score() -> None:
    network = small_network()
    request = request_of(9, [4, 1, 6])
    parted = {**request, "candidate_ids": np.insert(request["candidate_ids"], 2, -1, axis=0)}
    (found,) = run_packed(PackedNetwork(network, torch.float32, "cpu", "sdpa"), [packed(network, parted)])
    assert found[2] == 0
    np.testing.assert_allclose(np.delete(found, 2), expected(network, request), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("candidate_ids", request_of(5, [385])),
        ("context_ids", request_of(129, [3])),
        ("candidate_ids", {"candidate_ids": np.array([[90]], dtype=np.int32)}),
        ("context_ids", {"context_ids": np.array([-1, 3], dtype=np.int32)}),
    ],
)
def test_what_has_no_embedding_is_refused_before_a_launch(tensor: str, change: Tensors) -> None:
    with pytest.raises(RowsError, match=f"^{tensor}: "):
        packed(small_network(), {**request_of(5, [3]), **change})


def test_what_does_not_fit_into_a_launch_is_refused_and_nothing_written() -> None:
    batch = PackedBatch.empty(Sizes.bucket(64))
    with pytest.raises(RowsError):
        pack([packed(small_network(), request_of(30, [20, 20]))], batch)
    assert not batch.buffer.any()
