"""The scorer's processes: they score as the whole ranker, fail clearly when one dies, come back, and leave nothing."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import Build
from live import wait_until
from numpy.typing import NDArray
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.cli import main
from tritonrank.errors import ArtifactError, ServerError
from tritonrank.graphs.parallel.shard import write_shards
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.scorers import Request, RequestTensors, tensors_of
from tritonrank.rankers.server_scorer import ServerScorer
from tritonrank.recipe import Recipe
from tritonrank.serve.models import write_models
from tritonrank.serve.server import LocalTriton
from tritonrank_client import RankClient, Retry
from tritonrank_runtime.all_reduce import AllReduce, PeerError, SharedBuffer, memory_file
from tritonrank_runtime.engine import Engine, EngineLostError
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.shard_workers import WORKER, ShardWorkers, sharded_engine
from tritonrank_runtime.text import RequestTokenizer, copy_text_files

RANKS = 2
TOLERANCE = 1e-4
LARGEST_SHARE = 0.02
"""Of the spread of a request's scores."""
ONCE = Retry(attempts=1)
SECONDS = 60


@pytest.fixture(scope="module")
def shards(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shared-context ranker in two ranks."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(workspace.onnx, folder, RANKS)
    copy_text_files(workspace.onnx, folder)
    return folder


@pytest.fixture(scope="module")
def requests(workspace: Workspace, held_out: list[Request]) -> list[RequestTensors]:
    tokenizer = RequestTokenizer.from_folder(workspace.onnx)
    return [tensors_of(request, tokenizer) for request in held_out[:20]]


@pytest.fixture
def workers(shards: Path) -> Iterator[ShardWorkers]:
    with ShardWorkers(shards) as workers:
        yield workers


@pytest.fixture
def engine(workers: ShardWorkers) -> Engine:
    return sharded_engine(workers)


def tolerance_for(expected: NDArray[np.float32]) -> float:
    """1e-4, or less where the scores of a model this small lie close together."""
    return min(TOLERANCE, LARGEST_SHARE * float(expected.std()))


def test_scores_are_those_of_the_whole(workspace: Workspace, engine: Engine, requests: list[RequestTensors]) -> None:
    for found, expected in zip(engine.run(requests), open_engine(workspace.onnx).run(requests), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance_for(expected))


def test_scores_do_not_depend_on_the_run_or_the_others(engine: Engine, requests: list[RequestTensors]) -> None:
    """Larger and smaller sums share the same memory, one after the other."""
    once = [engine.run([request])[0] for request in requests]
    again = engine.run(list(reversed(requests)))
    assert all(np.array_equal(one, other) for one, other in zip(once, reversed(again), strict=True))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: engine.run([request])[0], requests))
    assert all(np.array_equal(one, other) for one, other in zip(once, together, strict=True))


def test_a_scorer_opens_shards_like_any_artifact(workspace: Workspace, shards: Path, held_out: list[Request]) -> None:
    sharded, whole = open_scorer(shards), open_scorer(workspace.onnx)
    expected = whole.score(held_out[0])
    np.testing.assert_allclose(sharded.score(held_out[0]), expected, atol=tolerance_for(expected))


def test_ids_that_no_rank_takes_are_an_error_and_no_more(engine: Engine, requests: list[RequestTensors]) -> None:
    before = engine.run(requests[:1])[0]
    wrong = {**requests[0], "context_ids": np.full(5, 10_000_000, np.int32)}
    with pytest.raises(RuntimeError, match="indices element out of data bounds"):
        engine.run([wrong])
    np.testing.assert_array_equal(engine.run(requests[:1])[0], before)


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_worker_killed_in_a_run_fails_it_and_comes_back(
    workers: ShardWorkers, engine: Engine, requests: list[RequestTensors], rank: int
) -> None:
    before = engine.run(requests[:1])[0]
    pids = workers.processes
    other = waits_for_work(pids[1 - rank])
    os.kill(pids[rank], signal.SIGSTOP)  # so that it is in the run for certain
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.run, requests[:1])
        wait_until(lambda: waits(pids[1 - rank]) > other, "the run begins")
        assert not running.done()
        os.kill(pids[rank], signal.SIGKILL)
        with pytest.raises(EngineLostError, match=rf"rank {rank} of 2 \(process {pids[rank]}\) was ended by signal 9"):
            running.result(SECONDS)
    np.testing.assert_array_equal(engine.run(requests[:1])[0], before)
    assert workers.restarts == 1
    assert not set(pids) & set(workers.processes)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_worker_killed_between_runs_costs_no_request(
    workers: ShardWorkers, engine: Engine, requests: list[RequestTensors]
) -> None:
    before = engine.run(requests[:1])[0]
    pids = workers.processes
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: workers.restarts == 1, "the workers are started again")  # nobody has to ask
    np.testing.assert_array_equal(engine.run(requests[:1])[0], before)
    assert workers.restarts == 1
    assert not set(pids) & set(workers.processes)


def test_a_worker_that_hangs_is_replaced(shards: Path, requests: list[RequestTensors]) -> None:
    with ShardWorkers(shards, run_seconds=1) as workers:
        engine = sharded_engine(workers)
        os.kill(workers.processes[0], signal.SIGSTOP)
        with pytest.raises(EngineLostError, match="rank 0, 1 did not answer in 1 s"):
            engine.run(requests[:1])
    with ShardWorkers(shards) as workers:
        assert np.isfinite(sharded_engine(workers).run(requests[:1])[0]).all()


def test_shards_that_cannot_be_loaded_are_an_error(shards: Path, tmp_path: Path) -> None:
    for path in shards.iterdir():
        (tmp_path / path.name).symlink_to(path)
    broken = tmp_path / "rank1.context.segment01.onnx"
    broken.unlink()
    broken.write_bytes(b"nothing")
    started = time.monotonic()
    with pytest.raises(EngineLostError, match=r"rank 1 of 2 .* ended with exit code 1"):
        ShardWorkers(tmp_path)
    assert time.monotonic() - started < SECONDS
    assert not workers_below(os.getpid())


def test_nothing_is_left_after_a_stop(shards: Path) -> None:
    workers = ShardWorkers(shards)
    pids, files = workers.processes, open_files()
    workers.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert open_files() < files
    with pytest.raises(RuntimeError, match="were stopped"):
        workers.run("context.onnx", {})


def test_nothing_is_left_when_who_started_them_is_killed(shards: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tritonrank_runtime.shard_workers import ShardWorkers\n"
        "workers = ShardWorkers(Path(sys.argv[1])); print(*workers.processes, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(shards)], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == RANKS
        starter.kill()
    wait_until(lambda: not any(_is_running(pid) for pid in pids), "the workers end")


def open_files() -> int:
    return psutil.Process().num_fds()


def _is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def waits(pid: int) -> int:
    """How often a process has waited for anything; a rank does for work, and in a run for the others."""
    return int(psutil.Process(pid).num_ctx_switches().voluntary)


def waits_for_work(pid: int) -> int:
    """``waits`` once a rank that has no work rests."""
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, "the rank rests")
    return waits(pid)


def workers_below(pid: int) -> list[int]:
    """Process ids of the workers that a process or its children started, by rank."""
    found = {}
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = child.cmdline()
            if WORKER in command:
                found[command[-1]] = child.pid
    return [found[settings] for settings in sorted(found)]


# The sum itself


def test_a_sum_is_the_same_on_all_ranks() -> None:
    ranks = 3
    files = [[memory_file("sum") for _ in range(2)] for _ in range(ranks)]
    pairs = {
        (a, b): socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for a in range(ranks)
        for b in range(a + 1, ranks)
    }
    generator = np.random.default_rng(1)
    shapes = [(3, 5), (700, 64), (1,), (0, 4), (3, 5)]
    addends = [[generator.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(ranks)]

    def work(rank: int) -> list[NDArray[np.float32]]:
        peers = {
            other: pairs[min(rank, other), max(rank, other)][rank > other] for other in range(ranks) if other != rank
        }
        places = [[SharedBuffer(file) for file in two] for two in files]
        reduce = AllReduce(rank, peers, places)
        reduce.begin(1)
        return [reduce(one) for one in addends[rank]]

    with ThreadPoolExecutor(ranks) as pool:
        sums = list(pool.map(work, range(ranks)))
    for step in range(len(shapes)):
        expected = addends[0][step] + addends[1][step] + addends[2][step]
        assert all(np.array_equal(one[step], expected) for one in sums)
    for two in pairs.values():
        for end in two:
            end.close()


def test_half_precision_is_added_up_in_single() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    files = [[memory_file("sum") for _ in range(2)] for _ in range(2)]
    addend = np.full(3, 2_049, np.float16) / np.float16(1)
    with ours, theirs, ThreadPoolExecutor(2) as pool:
        reduces = [
            AllReduce(rank, {1 - rank: end}, [[SharedBuffer(file) for file in two] for two in files])
            for rank, end in enumerate((ours, theirs))
        ]
        sums = list(pool.map(lambda reduce: reduce(addend), reduces))
    assert all(one.dtype == np.float16 and np.array_equal(one, addend + addend) for one in sums)


def test_a_rank_that_leaves_wakes_the_others_and_disturbs_no_later_run() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    files = [[memory_file("sum") for _ in range(2)] for _ in range(2)]
    first, second = (
        AllReduce(rank, {1 - rank: end}, [[SharedBuffer(file) for file in two] for two in files])
        for rank, end in enumerate((ours, theirs))
    )
    one = np.ones(4, np.float32)
    with ours, theirs, ThreadPoolExecutor(2) as pool:
        for reduce in (first, second):
            reduce.begin(1)
        second.leave()
        with pytest.raises(PeerError, match="rank 1 failed"):
            first(one)
        first.leave()  # what nobody has read yet
        for reduce in (first, second):
            reduce.begin(2)
        assert all(np.array_equal(total, one + one) for total in pool.map(lambda reduce: reduce(one), (first, second)))
        theirs.close()
        first.begin(3)
        with pytest.raises(PeerError, match="rank 1 is gone"):
            first(one)


# Through Triton


@pytest.fixture(scope="module", params=[2, 4])
def sharded_recipe(request: pytest.FixtureRequest, tiny_recipe: Recipe) -> Recipe:
    """FP32, so that scores can be compared to the last digits; sharding INT8 has its own tests.

    Requests may wait for long: on a busy machine ranks take seconds to load.
    """
    exact = tiny_recipe.quantize.model_copy(update={"method": "none"})
    patient = tiny_recipe.serve.model_copy(update={"deadline_ms": 1_000 * SECONDS})
    return tiny_recipe.model_copy(update={"tensor_parallel": request.param, "quantize": exact, "serve": patient})


@pytest.fixture(scope="module")
def sharded(workspace: Workspace, sharded_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny build once more, as far as it is served, with a scorer of several processes."""
    copy = Workspace.of(sharded_recipe, tmp_path_factory.mktemp("sharded"))
    shutil.copytree(workspace.root, copy.root)
    run_stages(sharded_recipe, copy, until="assemble")
    return copy


def test_the_stage_says_what_it_made(sharded: Workspace, sharded_recipe: Recipe) -> None:
    metrics = read_manifest(sharded.shards).metrics
    assert len(metrics["rank_bytes"]) == sharded_recipe.tensor_parallel
    assert len(set(metrics["rank_bytes"])) == 1
    assert metrics["all_reduces"] == {"context.onnx": 2, "candidates.onnx": 4}
    assert metrics["difference_on_requests"] < TOLERANCE
    served = {path.name for path in (sharded.repository / "score" / "1").iterdir()}
    assert {"shards.json", "tritonrank_runtime", "rank1.candidates.segment04.onnx"} <= served
    assert not {"candidates.onnx", "rank0.candidates.onnx"} & served


@pytest.mark.slow
def test_triton_serves_shards_and_survives_a_killed_worker(
    sharded: Workspace, sharded_recipe: Recipe, workspace: Workspace, held_out: list[Request]
) -> None:
    ranks = sharded_recipe.tensor_parallel
    scorer = open_scorer(workspace.onnx)
    requests = [Request(one.query, one.history, one.items[:12]) for one in held_out[:12]]
    expected = [scorer.score(request) for request in requests]

    with (
        LocalTriton(sharded.repository) as server,  # unsupervised, or a golden request may be in the run that is lost
        RankClient(server.grpc_url, timeout=SECONDS, retry=ONCE) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        ask = ServerScorer(client).score
        for found, whole in zip(pool.map(ask, requests), expected, strict=True):
            np.testing.assert_allclose(found, whole, atol=tolerance_for(whole))
        pids = workers_below(os.getpid())
        assert len(pids) == ranks
        first = waits_for_work(pids[0])
        os.kill(pids[1], signal.SIGSTOP)  # so that it is in the run for certain
        lost = pool.submit(ask, requests[0])
        wait_until(lambda: waits(pids[0]) > first, "the run begins")
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(ServerError, match=rf"rank 1 of {ranks} .* signal 9; the scorer starts again"):
            lost.result(SECONDS)
        np.testing.assert_allclose(ask(requests[0]), expected[0], atol=tolerance_for(expected[0]))
        again = workers_below(os.getpid())
        assert len(again) == ranks
        assert not set(again) & set(pids)
        with urllib.request.urlopen(server.metrics_url, timeout=SECONDS) as page:
            assert re.search(rb"^tritonrank_worker_restarts_total{.*} 1(\.0*)?$", page.read(), re.M)
    wait_until(lambda: not any(_is_running(pid) for pid in again), "the workers end")


def test_one_process_per_rank_counts_as_one_instance(
    sharded: Workspace, sharded_recipe: Recipe, tmp_path: Path
) -> None:
    write_models(sharded_recipe.serve, sharded.shards, tmp_path, cores=8)
    text = (tmp_path / "score" / "config.pbtxt").read_text()
    assert "count: 1\n" in text  # tiny.yaml says so
    by_cores = sharded_recipe.serve.model_copy(update={"instances": "auto"})
    write_models(by_cores, sharded.shards, tmp_path / "auto", cores=8)
    assert (
        f"count: {8 // sharded_recipe.tensor_parallel}\n" in (tmp_path / "auto" / "score" / "config.pbtxt").read_text()
    )


def test_a_recipe_of_one_rank_has_no_such_stage(
    certain: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tritonrank", "shard", str(certain.recipe_path), "--artifacts", str(certain.workspace.root.parent)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no stage shard; tensor_parallel is 1" in capsys.readouterr().err


def test_ranks_that_do_not_divide_end_the_stage(sharded: Workspace, sharded_recipe: Recipe, tmp_path: Path) -> None:
    copy = Workspace.of(sharded_recipe, tmp_path)
    shutil.copytree(sharded.root, copy.root)
    with pytest.raises(ArtifactError, match="cannot be cut into 3 ranks"):
        run_stages(sharded_recipe.model_copy(update={"tensor_parallel": 3}), copy, until="shard")
    assert copy.shards.is_dir(), "the shards that were there"
