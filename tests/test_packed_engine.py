"""The packed engine, rehearsed on the CPU: its launcher without graphs, and the capture with a stand-in for CUDA."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_requests import expected, limits_of, request_of, small_network
from tritonrank_runtime.engine import RowsError, Tensors, Watch
from tritonrank_runtime.packed import launcher as launching
from tritonrank_runtime.packed.context_pool import ContextPool
from tritonrank_runtime.packed.engine import PackedEngine
from tritonrank_runtime.packed.launcher import Launcher, bucket_rows
from tritonrank_runtime.packed.network import PackedNetwork
from tritonrank_runtime.packed.opening import open_packed_engine
from tritonrank_runtime.packed.packing import NOT_KEPT, TILE_ROWS
from tritonrank_runtime.packed.rows import SharedContextRows
from tritonrank_runtime.shared_context import INPUT_NAMES, NAMES
from tritonrank_runtime.split_engine import check_rows

TOLERANCE = 1e-4
BUCKETS = (64, 128, 256)
NETWORK = small_network()


def rows_of(network: Any) -> SharedContextRows:
    return SharedContextRows(
        network.config.context_positions, INPUT_NAMES, limits_of(network.config), partial(check_rows, NAMES)
    )


def opened(**options: Any) -> PackedEngine:
    return open_packed_engine(NETWORK, rows_of(NETWORK), "cpu", **{"buckets": BUCKETS} | options)


def assert_scored(engine: PackedEngine, requests: list[Tensors]) -> None:
    for found, request in zip(engine.run(requests), requests, strict=True):
        np.testing.assert_allclose(found, expected(NETWORK, request), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.fixture(scope="module")
def engine() -> PackedEngine:
    return opened()


# Buckets


@given(st.integers(1, 40_000))
def test_at_most_a_quarter_of_a_bucket_is_padding(rows: int) -> None:
    buckets = bucket_rows()
    assert buckets == sorted(set(buckets))
    assert all(one % TILE_ROWS == 0 for one in buckets)
    assert buckets[-1] == launching.MOST_ROWS
    assert len(buckets) < 40
    if 4 * TILE_ROWS < rows <= buckets[-1]:
        smallest = next(one for one in buckets if one >= rows)
        assert smallest <= 1.25 * rows + TILE_ROWS


def test_the_last_bucket_holds_what_was_asked_for() -> None:
    assert bucket_rows(1_000)[-1] == 1_024
    assert bucket_rows(64) == [64]


# Scores


@pytest.mark.parametrize("cache_bytes", [0, 1_000_000])
def test_requests_that_share_launches_get_their_own_scores(cache_bytes: int) -> None:
    """Small ones together, one larger than a launch, one that no bucket holds for its many short candidates."""
    engine = opened(context_cache_bytes=cache_bytes)
    requests = [
        request_of(5, [3, 9, 1], seed=1),
        request_of(40, [17] * 60, seed=2),
        request_of(1, [1] * 70, seed=3),
        request_of(90, [200], seed=4),
        request_of(7, [2], seed=5),
    ]
    assert_scored(engine, requests)
    assert_scored(engine, requests[::-1])
    assert 0 < engine.launcher.launches_without_graph < engine.launcher.launches


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    )
)
def test_any_mix_is_scored_with_and_without_kept_contexts(mix: list[tuple[int, list[int], int]]) -> None:
    """A small pool, so that contexts are dropped and come again; seeds repeat, so that some return."""
    engine = opened(context_cache_bytes=100 * 2 * 2 * 2 * 16 * 4)
    requests = [request_of(context, lengths, seed) for context, lengths, seed in mix]
    for _ in range(2):
        assert_scored(engine, requests)
    assert 0 <= engine.context_cache.bytes <= 100 * 2 * 2 * 2 * 16 * 4


def test_a_score_is_the_same_to_the_last_bit_whoever_shares_a_launch_of_the_bucket(engine: PackedEngine) -> None:
    mine, others = request_of(20, [12] * 8, seed=1), [request_of(3, [7] * 6, seed=seed) for seed in (2, 3)]
    (alone,) = engine.run([mine])
    assert engine.token_counts([mine])[0] == 128
    for together in ([others[0], mine], [others[1], mine]):
        np.testing.assert_allclose(engine.run(together)[-1], alone, atol=1e-6, rtol=1e-5)
    first, second = (engine.run(together)[-1] for together in ([others[0], mine], [others[1], mine]))
    np.testing.assert_array_equal(first, second)


def test_partings_have_no_score_and_take_no_row(engine: PackedEngine) -> None:
    request = request_of(6, [4, 5, 6], seed=8)
    parted = np.insert(request["candidate_ids"], 2, -1, axis=0)
    (found,) = engine.run([request | {"candidate_ids": parted}])
    assert found[2] == 0
    np.testing.assert_allclose(np.delete(found, 2), expected(NETWORK, request), atol=TOLERANCE, rtol=TOLERANCE)


def test_what_waits_goes_into_one_launch(engine: PackedEngine) -> None:
    requests = [request_of(8, [10, 10], seed=seed) for seed in range(8)]  # 28 rows each
    before = engine.launcher.launches
    engine.run(requests)
    assert engine.launcher.launches == before + 1
    assert engine.token_counts(requests) == (256, 8 * 28)


def test_rows_beyond_a_table_are_refused_before_anything_is_launched(engine: PackedEngine) -> None:
    before = engine.launcher.launches
    wrong = request_of(3, [2])
    wrong["candidate_ids"][0, 0] = 90
    with pytest.raises(RowsError, match="candidate_ids: ids from"):
        engine.run([request_of(3, [2]), wrong])
    assert engine.launcher.launches == before


# Deadlines


def test_nothing_is_launched_for_what_nobody_wants_any_more() -> None:
    engine = opened()
    large, small = request_of(20, [20] * 40, seed=1), request_of(4, [5], seed=2)
    looks = []

    def is_wanted(number: int) -> bool:
        looks.append(number)
        return number == 1 or looks.count(0) < 3

    watch = Watch(is_wanted)
    stopped, scored = engine.run([large, small], watch=watch)
    assert len(stopped) == 0
    np.testing.assert_allclose(scored, expected(NETWORK, small), atol=TOLERANCE)
    assert looks.count(0) == 3  # not asked again
    assert 0 < watch.tokens < engine.token_counts([large])[1]


# Kept contexts


def test_a_returning_context_is_not_computed_again() -> None:
    engine = opened(context_cache_bytes=1_000_000)
    one, other = request_of(30, [5, 6], seed=1), request_of(30, [5, 6], seed=2)
    (first,) = engine.run([one])
    again, _ = engine.run([one, other])
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert (engine.context_cache.hits, engine.context_cache.misses) == (1, 2)
    assert engine.context_cache.bytes == 60 * 2 * 2 * 32 * 4  # rows, layers, keys and values, width, FP32
    engine.launcher.network.pool.fill_(100.0)  # what is there is read
    assert np.abs(engine.run([one])[0] - first).max() > 0.01


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=30))
def test_the_pool_gives_no_row_to_two(launches: list[list[int]]) -> None:
    """And none that the launch in the making reads."""
    pool, owner = ContextPool(12, 2), {}
    for contexts in launches:
        read = {}
        for number in contexts:
            ids = np.full(number % 5 + 1, number, dtype=np.int32)
            start = pool.find(ids)
            if start != NOT_KEPT:
                assert {owner[row] for row in range(start, start + len(ids))} == {number}
                read |= dict.fromkeys(range(start, start + len(ids)), number)
            elif (start := pool.reserve(ids)) != NOT_KEPT:
                assert start + len(ids) <= 12
                written = dict.fromkeys(range(start, start + len(ids)), number)
                assert not written.keys() & read.keys()
                owner |= written
                read |= written
        pool.sent()
        assert pool.bytes <= 24


def test_a_launch_that_fails_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(context_cache_bytes=1_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(engine.launcher, "launch", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.run([request_of(9, [3], seed=1)])
    assert engine.context_cache.bytes == 0
    assert_scored(engine, [request_of(9, [3], seed=1)])


# Launches


def test_logits_that_are_read_late_are_still_those_of_their_launch(engine: PackedEngine) -> None:
    rows, pool = rows_of(NETWORK), ContextPool(0, 1)
    requests = [request_of(5, [4, 6], seed=seed) for seed in range(5)]
    packed = [rows.pack(part, pool) for one in requests for part in rows.parts(0, one, 64)]
    launches = [engine.launcher.launch([one]) for one in packed]
    for launch, request in zip(launches, requests, strict=True):
        np.testing.assert_allclose(launch.logits()[0], expected(NETWORK, request), atol=TOLERANCE)


def test_a_network_that_cannot_be_fused_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object, **__: object) -> Any:
        def fail(_: object) -> None:
            raise RuntimeError("no C compiler\nand much more")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    engine = opened(is_compiled=True)
    assert not engine.launcher.is_compiled
    assert "no C compiler" in caplog.text
    assert_scored(engine, [request_of(5, [4, 6])])


def test_fused_kernels_that_score_otherwise_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda tables: call(tables) * 1.1)
    engine = opened(is_compiled=True, context_cache_bytes=1_000_000)
    assert not engine.launcher.is_compiled
    assert "fused differ" in caplog.text
    assert_scored(engine, [request_of(5, [4, 6])])


class StandInCuda:
    """Graphs and streams as torch.cuda has them: what a graph captured it computes when it is replayed."""

    def __init__(self, failing_rows: int) -> None:
        self.failing_rows = failing_rows
        self.replays: list[int] = []
        self.computing: list[Any] = []

    def install(self, launcher: Launcher, patch: pytest.MonkeyPatch) -> None:
        compute = launcher._compute

        def recorded(sizes: Any) -> None:
            self.computing.append(sizes)
            compute(sizes)

        patch.setattr(launcher, "_compute", recorded)
        patch.setattr(launcher, "_is_cuda", True)

        class Graph:
            sizes: Any = None

            def pool(self) -> str:
                return "memory"

            def replay(graph) -> None:  # noqa: N805 - self is the stand-in
                self.replays.append(graph.sizes.rows)
                compute(graph.sizes)

        @contextmanager
        def graph(found: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            yield
            if self.computing[-1].rows == self.failing_rows:
                raise RuntimeError("operation not permitted when stream is capturing")
            assert pool == ("memory" if launcher._graphs else None)
            found.sizes = self.computing[-1]

        cuda = SimpleNamespace(CUDAGraph=Graph, graph=graph, synchronize=lambda _: None)
        patch.setattr(launching, "torch", SimpleNamespace(cuda=cuda, inference_mode=torch.inference_mode))


def test_each_bucket_has_a_graph_and_runs_without_where_its_capture_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = Launcher(PackedNetwork(NETWORK, torch.float32, "cpu", "sdpa"), BUCKETS)
    cuda = StandInCuda(failing_rows=128)
    with monkeypatch.context() as patch:
        cuda.install(launcher, patch)
        launcher.capture()
        assert launcher.captured_rows == [64, 256]
        assert "no CUDA graph for 128 rows" in caplog.text
        engine = PackedEngine(launcher, rows_of(NETWORK))
        assert_scored(engine, [request_of(5, [4, 6])])
        assert_scored(engine, [request_of(50, [20, 20])])
        assert_scored(engine, [request_of(50, [100])])
    assert cuda.replays == [64, 256]
    assert (launcher.launches, launcher.launches_without_graph) == (3, 1)
