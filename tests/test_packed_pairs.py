"""Joint rankers of every family score the same, pair by pair, in packed rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from packed_requests import run_packed
from tiny_models import FAMILIES, save_ranker
from tritonrank_runtime.architecture import RowLimits
from tritonrank_runtime.joint import Joint
from tritonrank_runtime.packed.network import PackedNetwork
from tritonrank_runtime.packed.opening import open_packed_engine
from tritonrank_runtime.packed.packing import PackedRequest, Sizes, total
from tritonrank_runtime.packed.pairs import pair_network
from tritonrank_runtime.packed.requests import joint_request
from tritonrank_runtime.torch_passes import load_joint


def pairs_of(lengths: list[int], vocabulary: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(4)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
    return {
        "input_ids": generator.integers(5, vocabulary, mask.shape, dtype=np.int32),
        "attention_mask": mask,
        "token_type_ids": (np.arange(max(lengths)) > 2).astype(np.int32) * mask,
    }


def bucket(requests: list[PackedRequest]) -> Sizes:
    rows = 64
    while not Sizes.bucket(rows, pairs=True).holds(total(requests)):
        rows += 64
    return Sizes.bucket(rows, pairs=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair_scores_as_transformers_says(family: str, tmp_path: Path) -> None:
    model = load_joint(save_ranker(family, tmp_path))
    rows = pairs_of([3, 70, 64, 5, 33], model.config.vocab_size)
    if getattr(model.config, "type_vocab_size", 0) < 2:
        del rows["token_type_ids"]
    with torch.inference_mode():
        right = model(**{name: torch.from_numpy(tensor).long() for name, tensor in rows.items()}).logits[:, 0].numpy()
    network = pair_network(model)
    assert network is not None
    opened = Joint().packed(tmp_path)
    assert opened is not None
    (served,) = open_packed_engine(*opened, "cpu", buckets=[256]).run([rows])
    np.testing.assert_allclose(served, right, atol=1e-5, rtol=1e-5)
    requests = [joint_request(rows, RowLimits()), joint_request({k: v[1:3] for k, v in rows.items()}, RowLimits())]
    whole, part = run_packed(PackedNetwork(network, torch.float32, "cpu", "sdpa"), requests, bucket(requests))
    np.testing.assert_allclose(whole, right, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(part, right[1:3], atol=1e-5, rtol=1e-5)


def test_other_families_keep_their_own_engine(tmp_path: Path) -> None:
    assert pair_network(load_joint(save_ranker("bert", tmp_path, labels=2))) is None
