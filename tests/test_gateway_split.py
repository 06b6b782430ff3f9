"""Large requests in parts: the answer is that of the whole, to the last bit, by the real engine and the real server."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import Served
from gateway_stand_ins import StandIn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonrank.artifacts.workspace import Workspace
from tritonrank_client import InvalidRequest, ModelInfo, Overloaded, Unavailable
from tritonrank_gateway.backend import TritonBackend
from tritonrank_gateway.golden import GoldenRequest
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.replicas import PoolSettings, ReplicaPool
from tritonrank_gateway.split import BY_REPLICAS, SplitBackend
from tritonrank_runtime import in_process
from tritonrank_runtime.in_process import LocalRanker, open_model
from tritonrank_runtime.selection import best_first

BLOCK = 8
WORDS = ("oak", "desk", "brass", "lamp", "hiking", "boots", "blue", "wool", "jumper", "kettle")


class LocalBackend:
    """A `Backend` around an artifact in this process."""

    def __init__(self, folder: Path) -> None:
        self.ranker: LocalRanker = open_model(folder, threads=1)
        assert self.ranker.limits.block_candidates == 256
        self.ranker.limits = replace(self.ranker.limits, block_candidates=BLOCK, deadline_us=60_000_000)
        self.asked = 0

    async def rank(self, request: RankRequest) -> Ranking:
        self.asked += 1
        tensors = in_process.Request(
            request.query.encode(),
            [str(entry).encode() for entry in request.history],
            [str(item).encode() for item in request.items],
            None if request.item_ids is None else [one.encode() for one in request.item_ids],
            request.top_k,
            request.max_item_tokens,
        )
        found = self.ranker.rank(tensors, 60.0)
        return Ranking(
            found.indices.tolist(),
            found.scores.tolist(),
            self.ranker.artifact,
            found.context_tokens,
            found.item_tokens.tolist(),
            found.truncated.tolist(),
            {place: reason for place, reason in enumerate(found.unscored) if reason},
        )

    async def info(self) -> ModelInfo:
        return ModelInfo("rank", ("1",), "ensemble", (), (), {}, {"block_candidates": str(BLOCK)})

    async def ready(self) -> bool:
        return True

    async def close(self) -> None:
        """There is nothing to close."""


@cache
def local_backend(folder: Path) -> LocalBackend:
    return LocalBackend(folder)


texts = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join),
    st.sampled_from(["", " \t", "Oak Desk", "oak desk"]),
)


@pytest.mark.parametrize("stage", ["int8", "onnx"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(texts, min_size=1, max_size=60), ids=st.integers(0, 20), top_k=st.integers(0, 30), data=st.data())
def test_no_cut_changes_a_bit(
    workspace: Workspace, stage: str, items: list[str], ids: int, top_k: int, data: st.DataObject
) -> None:
    backend = local_backend(getattr(workspace, stage))
    most = data.draw(st.sampled_from([BLOCK, 2 * BLOCK, 3 * BLOCK]))
    item_ids = [str(data.draw(st.integers(0, ids))) for _ in items] if ids else None
    request = RankRequest(
        "desk", items, ["brass lamp"], item_ids, top_k, want=("item_tokens", "truncated", "context_tokens", "unscored")
    )
    asked = backend.asked
    whole = asyncio.run(backend.rank(request))
    parts = asyncio.run(SplitBackend(backend, most, lambda: 1).rank(request))
    assert backend.asked - asked == 1 + -(-len(items) // most)
    assert parts == whole
    assert np.array(parts.logits).tobytes() == np.array(whole.logits).tobytes()


@pytest.mark.parametrize("model", ["rank", "rank_fp32"])
async def test_a_server_gives_parts_the_scores_of_the_whole(served: Served, model: str) -> None:
    random = np.random.default_rng(3)
    items = [" ".join(random.choice(WORDS, size=random.integers(1, 20))) for _ in range(700)]
    items[300:300] = ["", "Oak Desk", "oak desk", " "]
    request = RankRequest(
        "desk",
        items,
        ["brass lamp", "wool jumper"],
        [str(place % 600) for place in range(len(items))],
        want=("item_tokens", "truncated", "context_tokens", "unscored"),
        deadline_s=60.0,
    )
    triton = TritonBackend(served.triton.grpc_url, model=model)
    try:
        whole = await triton.rank(request)
        backends = {"a": Counted(triton), "b": Counted(triton), "c": Counted(triton)}
        pool = ReplicaPool(backends, GoldenRequest(), PoolSettings(probe_seconds=1_000.0))
        parts = await SplitBackend(pool, BY_REPLICAS, lambda: 3).rank(request)
        assert [backend.sizes for backend in backends.values()].count([]) == 0  # each had its share
        assert sorted(size for backend in backends.values() for size in backend.sizes) == [192, 256, 256]
        assert parts == whole
        # One that is wrong is told as the whole would be: with its place in the request.
        with pytest.raises(InvalidRequest, match=r"items\[301\]"):
            await SplitBackend(pool, 256, lambda: 1).rank(
                replace(request, items=[*items[:301], {"title": {}}, *items[302:]])
            )
    finally:
        await triton.close()


class Counted:
    """Passes on to another backend, and keeps the sizes of what it passed on; golden requests are not counted."""

    def __init__(self, backend: TritonBackend) -> None:
        self.backend = backend
        self.sizes: list[int] = []

    async def rank(self, request: RankRequest) -> Ranking:
        if len(request.items) > 100:
            self.sizes.append(len(request.items))
        return await self.backend.rank(request)

    async def info(self) -> ModelInfo:
        return await self.backend.info()

    async def ready(self) -> bool:
        return True

    async def close(self) -> None:
        """Several of these have one backend."""


# What goes wrong with a part


class WithBlocks(StandIn):
    """A stand-in that may be cut."""

    async def info(self) -> ModelInfo:
        return replace(await super().info(), parameters={"block_candidates": "10"})


def request_of(candidates: int) -> RankRequest:
    return RankRequest("", ["x" * (1 + place % 7) for place in range(candidates)], deadline_s=5.0)


def sizes(backend: StandIn) -> list[int]:
    return [len(request.items) for request in backend.asked]


@pytest.mark.parametrize(
    ("candidates", "most", "replicas", "expected"),
    [
        (35, 10, 1, [10, 10, 10, 5]),
        (35, 25, 1, [20, 15]),
        (35, 3, 1, [10, 10, 10, 5]),
        (35, BY_REPLICAS, 2, [20, 15]),
        (100, BY_REPLICAS, 3, [40, 40, 20]),
        (10, BY_REPLICAS, 3, [10]),
        (35, 40, 1, [35]),
    ],
)
async def test_requests_are_cut_where_blocks_end(
    candidates: int, most: int, replicas: int, expected: Sequence[int]
) -> None:
    backend = WithBlocks()
    request = request_of(candidates)
    ranking = await SplitBackend(backend, most, lambda: replicas).rank(request)
    assert sizes(backend) == expected
    scores = np.array([len(str(item)) / 100 for item in request.items], dtype=np.float32)
    assert ranking.indices == best_first(scores, None, 0).tolist()


async def test_a_server_that_says_nothing_of_blocks_gets_the_whole() -> None:
    backend = StandIn()
    await SplitBackend(backend, 10, lambda: 1).rank(request_of(35))
    assert sizes(backend) == [35]


async def test_fields_are_counted_over_the_whole() -> None:
    backend = WithBlocks()
    await SplitBackend(backend, 10, lambda: 1).rank(replace(request_of(35), want=("fields",)))
    assert sizes(backend) == [35]


async def test_when_a_part_fails_the_others_are_cancelled_and_the_request_fails() -> None:
    class Second(WithBlocks):
        async def rank(self, request: RankRequest) -> Ranking:
            if len(self.asked) == 1:
                self.asked.append(request)
                raise Overloaded("full")
            self.delay = 30.0
            return await super().rank(request)

    backend = Second()
    with pytest.raises(Overloaded):
        await SplitBackend(backend, 10, lambda: 1).rank(request_of(35))
    assert len(backend.asked) == 4
    assert (backend.cancelled, backend.running) == (3, 0)


async def test_a_caller_who_leaves_takes_all_parts_along() -> None:
    backend = WithBlocks()
    backend.delay = 30.0
    call = asyncio.ensure_future(SplitBackend(backend, 10, lambda: 1).rank(request_of(35)))
    while backend.running < 4:
        await asyncio.sleep(0.005)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (backend.cancelled, backend.running) == (4, 0)


async def test_parts_by_two_artifacts_are_no_ranking() -> None:
    class InRollout(WithBlocks):
        async def rank(self, request: RankRequest) -> Ranking:
            self.artifact = "ab"[len(self.asked) % 2] * 16
            return await super().rank(request)

    backend = InRollout()
    ranking = await SplitBackend(backend, 20, lambda: 1).rank(request_of(35))
    assert sizes(backend) == [20, 15, 35]
    assert len(ranking.indices) == 35


async def test_a_server_that_is_gone_is_told_as_it_is() -> None:
    backend = WithBlocks()
    backend.failure = lambda: Unavailable("no connection", retryable=True)
    with pytest.raises(Unavailable):
        await SplitBackend(backend, 10, lambda: 1).rank(request_of(35))
