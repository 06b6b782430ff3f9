"""Proofs of the GPU's kernels, in OpenAI Triton's interpreter: any machine runs them."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from packed_requests import bucket_of, expected, packed, request_of, run_packed, small_network
from torch import Tensor
from tritonrank_runtime.packed import attention, kernels
from tritonrank_runtime.packed.network import PackedNetwork
from tritonrank_runtime.packed.operations import PlainOperations, TritonOperations
from tritonrank_runtime.packed.packing import NOT_KEPT, PackedBatch, PackedRequest, pack

LOG2_E = TritonOperations.query_factor
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}
NETWORK = small_network()
LENGTHS = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.builds(lambda length, count: [length] * count, st.integers(1, 70), st.integers(1, 8)),  # all equal
    st.builds(
        lambda giant, others: [*others, giant, 1], st.integers(100, 200), st.lists(st.integers(1, 9), max_size=8)
    ),
    st.builds(lambda count: [1] * count, st.integers(1, 150)),
)
REQUESTS = st.lists(st.tuples(st.integers(1, 128), LENGTHS), min_size=1, max_size=3)


def tables_of(requests: list[PackedRequest]) -> dict[str, Tensor]:
    batch = PackedBatch.empty(bucket_of(requests))
    pack(requests, batch)
    return PackedBatch(batch.sizes, torch.from_numpy(batch.buffer)).tables


def both_ways(
    tables: dict[str, Tensor], projected: Tensor, pool: Tensor, head_size: int, *, last: bool
) -> tuple[Tensor, Tensor]:
    """What the kernel makes of random rows, its result poisoned before; and PyTorch, in FP32, of the same rows."""
    width = projected.shape[1] // 3
    query = projected[tables["scored_rows"].long(), :width] if last else projected[:, :width]
    plain, own = PlainOperations(head_size), TritonOperations(head_size)
    number = int(last)
    right = plain.attend(
        query.float() / LOG2_E,
        projected[:, width:].float().nan_to_num(),
        pool.float(),
        plain.prepare(tables, len(pool))[number],
    )
    found = torch.full_like(query, torch.nan)
    attention.attend(query, projected[:, width:], pool, **own.prepare(tables, len(pool))[number], out=found)
    return found, right


def random_rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Of uniform size, so that what is off by a row is off by much."""
    return (torch.rand(rows, width, generator=torch.Generator().manual_seed(7)) * 2 - 1).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # an interpreted kernel takes too long to look for smaller counterexamples
    suppress_health_check=list(HealthCheck),
)
@given(shapes=REQUESTS)
def test_attention_is_that_of_pytorch(dtype: torch.dtype, shapes: list[tuple[int, list[int]]]) -> None:
    requests = [packed(NETWORK, request_of(*shape)) for shape in shapes]
    tables = tables_of(requests)
    counts = [sum(getattr(one.counts, name) for one in requests) for name in ("rows", "segments")]
    projected = random_rows(len(tables["token_ids"]), 3 * 16, dtype)
    projected[counts[0] :] = torch.nan  # rows of padding hold anything
    for last, live in zip((False, True), counts, strict=True):
        found, right = both_ways(tables, projected, projected[:0, 16:], 16, last=last)
        torch.testing.assert_close(found[:live].float(), right[:live], atol=TOLERANCE[dtype], rtol=0)
        assert found[live:].isnan().all()  # rows that are nobody's are not written


@pytest.mark.parametrize("head_size", [16, 32, 48, 64, 80])
def test_heads_of_any_multiple_of_16(head_size: int) -> None:
    tables = tables_of([packed(NETWORK, request_of(70, [3, 40, 33]))])
    projected = random_rows(len(tables["token_ids"]), 3 * 2 * head_size, torch.float32)
    found, right = both_ways(tables, projected, projected[:0, 2 * head_size :], head_size, last=False)
    live = 70 + 76
    torch.testing.assert_close(found[:live], right[:live], atol=1e-5, rtol=0)


def test_a_candidate_is_attended_to_bitwise_alike_alone_and_among_others() -> None:
    """Its rows move to other places of other tiles; what is added in which order stays."""
    lengths = [7, 33, 1, 64, 20, 3]
    among = packed(NETWORK, request_of(70, lengths))
    other = packed(NETWORK, request_of(31, [5, 90, 2]))
    rows = random_rows(among.counts.rows, 96, torch.float16)
    starts = [*among.scored_rows, among.counts.rows]

    def attended(requests: list[PackedRequest], projected: Tensor, *, last: bool) -> Tensor:
        tables = tables_of(requests)
        filled = torch.full((len(tables["token_ids"]), 96), torch.nan, dtype=torch.float16)
        filled[: len(projected)] = projected
        return both_ways(tables, filled, filled[:0, 32:], 16, last=last)[0]

    joined = torch.cat([random_rows(other.counts.rows, 96, torch.float16), rows])
    for last in (False, True):
        whole = attended([among], rows, last=last)
        later = attended([other, among], joined, last=last)
        place = other.counts.segments if last else other.counts.rows
        assert torch.equal(later[place : place + (6 if last else len(rows))], whole[: 6 if last else len(rows)])
        for number, length in enumerate(lengths):
            alone = packed(NETWORK, request_of(70, [length]))
            own = torch.cat([rows[:70], rows[starts[number] : starts[number + 1]]])
            single = attended([alone], own, last=last)
            if last:
                assert torch.equal(single[0], whole[number])
            else:
                assert torch.equal(single[70 : 70 + length], whole[starts[number] : starts[number + 1]])
                assert torch.equal(single[:70], whole[:70])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"type_vocab_size": 0, "first_position": 2, "hidden_act": "relu", "num_attention_heads": 3},
        {"embedding_size": 16, "type_vocab_size": 1, "num_hidden_layers": 1, "head_size": 48},
    ],
    ids=["bert", "roberta", "electra"],
)
def test_a_launch_scores_as_the_network_does(changes: dict[str, object]) -> None:
    network = small_network(**changes)
    requests = [request_of(10, [3, 40, 1], seed=1), request_of(65, [5] * 4, seed=2), request_of(1, [66], seed=3)]
    runner = PackedNetwork(network, torch.float32, "cpu", "triton")
    for request, logits in zip(requests, run_packed(runner, [packed(network, one) for one in requests]), strict=True):
        np.testing.assert_allclose(logits, expected(network, request), atol=1e-5, rtol=1e-5)


def test_in_fp16_too() -> None:
    request = request_of(90, [12, 19, 25, 8])
    network = small_network(std=0.08)
    (found,) = run_packed(PackedNetwork(network, torch.float16, "cpu", "triton"), [packed(network, request)])
    right = expected(network, request)
    assert np.ptp(right) > 0.02
    np.testing.assert_allclose(found, right, atol=1e-3)


@pytest.mark.slow
def test_a_thousand_candidates() -> None:
    request = request_of(20, [1 + number % 3 for number in range(1_000)])
    network = small_network(num_hidden_layers=2, num_attention_heads=1)
    (found,) = run_packed(PackedNetwork(network, torch.float32, "cpu", "triton"), [packed(network, request)])
    np.testing.assert_allclose(found, expected(network, request), atol=1e-5, rtol=1e-5)


def test_several_requests_in_one_launch_score_as_each_alone() -> None:
    runner = PackedNetwork(NETWORK, torch.float32, "cpu", "triton")
    requests = [packed(NETWORK, request_of(10 + 60 * seed, [4, 40], seed)) for seed in range(2)]
    sizes = bucket_of(requests)
    together = run_packed(runner, requests, sizes)
    for one, logits in zip(requests, together, strict=True):
        assert np.array_equal(run_packed(runner, [one], sizes)[0], logits)


def test_kept_contexts_score_as_computed_ones() -> None:
    runner = PackedNetwork(NETWORK, torch.float32, "cpu", "triton", pool_rows=200)
    request, other = request_of(70, [3, 20]), request_of(12, [9])
    computed = run_packed(runner, [packed(NETWORK, other), packed(NETWORK, request, keep_at=101)])[1]
    assert not runner.pool[:, :101].any()
    assert not runner.pool[:, 171:].any()
    kept = run_packed(runner, [packed(NETWORK, request, kept_at=101), packed(NETWORK, other)])[0]
    np.testing.assert_allclose(kept, computed, atol=1e-6)


def test_rows_are_kept_where_they_are_wanted() -> None:
    rows, pool = random_rows(40, 48, torch.float16), torch.zeros(30, 48, dtype=torch.float16)
    wanted = torch.full((33,), NOT_KEPT, dtype=torch.int32)
    wanted[:3] = torch.tensor([39, 0, 17])
    kernels.keep(rows, pool, wanted, torch.tensor([4, 29, 0] + [2**30] * 30, dtype=torch.int32))
    right = torch.zeros_like(pool)
    right[[4, 29, 0]] = rows[[39, 0, 17]]
    assert torch.equal(pool, right)
