"""gpu-check, rehearsed on the CPU with a tiny pack: the whole of it, the real Triton included, and what it refuses."""

import itertools
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonrank.gpu_check
from blocked import BUILDERS, without
from test_pack import SCORED, SIZES
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, GateError, RecipeError
from tritonrank.gpu_check import check as checking
from tritonrank.gpu_check import clients as gpu_clients
from tritonrank.gpu_check import graphs as gpu_graphs
from tritonrank.gpu_check import machine as gpu_machine
from tritonrank.gpu_check import network_runs, saturation
from tritonrank.gpu_check import pack as packing
from tritonrank.gpu_check import triton as gpu_triton
from tritonrank.gpu_check.check import agreement_with, gpu_check, take_turns
from tritonrank.gpu_check.executors import find_executors
from tritonrank.gpu_check.goals import goals
from tritonrank.gpu_check.graphs import recipe_of
from tritonrank.gpu_check.machine import describe_machine
from tritonrank.gpu_check.network_runs import PairByPair, padded
from tritonrank.gpu_check.pack import make_pack
from tritonrank.gpu_check.packed import open_pack
from tritonrank.gpu_check.report import (
    MEASUREMENT,
    REHEARSAL,
    Missing,
    Report,
    as_markdown,
    default_path,
    read_report,
    write_report,
)
from tritonrank.gpu_check.time_budget import TimeBudget, TimeUpError
from tritonrank.gpu_check.triton import serving_of
from tritonrank.rankers.anatomy import sizes_of
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.shrink.cut import cut, everything
from tritonrank.tensorrt.plan_engine import fitting_profile
from tritonrank.tensorrt.plans import Gpu
from tritonrank.tensorrt.profiles import Profile, Range
from tritonrank_runtime.engine import Tensors
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.text import RequestTokenizer
from tritonrank_runtime.torch_passes import load_network, row_positions

ROOT = Path(__file__).parents[1]
EXECUTORS = [
    "PyTorch FP32, eager",
    "PyTorch FP32, packed",
    "PyTorch FP32, eager, pair by pair",
    "PyTorch FP32, padded",
    "ONNX Runtime FP32",
]

JOINT_EXECUTORS = ["PyTorch FP32, eager", "PyTorch FP32, packed", "ONNX Runtime FP32"]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TIMED_REQUESTS", SIZES)
        patch.setattr(packing, "SCORED_REQUESTS", SCORED)
        patch.setattr(checking, "ROUNDS", 1)
        patch.setattr(saturation, "SATURATION_SECONDS", 0.2)
        patch.setattr(gpu_clients, "SECONDS", 0.5)
        patch.setattr(checking, "SECONDS_PER_ROUND", 60.0)  # other people's work must not cut a round short
        yield


@pytest.fixture(scope="module")
def pack(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(workspace.root, tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def joint_pack(workspace: Workspace, joint_workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(joint_workspace.root, tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def rehearsed(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("out") / "rehearsal.json"
    return gpu_check(pack, out, cpu=True), out


def test_everything_that_is_here_is_checked_and_timed(rehearsed: tuple[Report, Path]) -> None:
    report, _ = rehearsed
    assert [row.name for row in report.rows] == [*EXECUTORS, "Triton, PyTorch FP32"]
    assert [row.through for row in report.rows] == ["in process"] * 5 + ["triton"]
    assert [row.is_baseline for row in report.rows] == [True, False, False, False, False, False]
    for row in report.rows:
        assert row.agreement.passed, row
        assert row.agreement.requests == 8
        assert row.agreement.top_10_overlap == 1.0
        assert [one.candidates for one in row.latencies] == [5, 20]
        for one in row.latencies:
            assert 0 < one.p50_ms <= one.p99_ms
            assert one.requests == SIZES[one.candidates]
            assert one.candidates_per_second > 0
    assert {one.speedup for one in report.rows[0].latencies} == {1.0}
    assert {one.speedup for one in report.rows[-1].latencies} == {None}  # it has a server in its way


def test_a_rehearsal_says_so_everywhere(rehearsed: tuple[Report, Path]) -> None:
    report, out = rehearsed
    assert report.kind == REHEARSAL
    assert report.machine.gpu == ""
    assert "rehearsal on CPU" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert {one.what for one in report.missing} == {"CUDA graphs and torch.compile", "TensorRT"}


def test_saturation_and_several_clients_are_measured(rehearsed: tuple[Report, Path]) -> None:
    """Each request alone leaves most of a launch empty; of a rehearsal no goal is said to hold."""
    report, out = rehearsed
    assert report.product_tflops
    assert {(one.name, one.candidates) for one in report.saturation} == {("PyTorch FP32, packed", k) for k in (5, 20)}
    for one in report.saturation:
        assert one.requests_per_launch > 1
        assert one.useful_tflops > 0
    assert [(one.candidates, one.clients) for one in report.under_load] == [(k, n) for k in (5, 20) for n in (1, 4, 16)]
    assert all(0 < one.p50_ms <= one.p99_ms for one in report.under_load)
    assert {one.held for one in report.goals} == {None}
    assert len(report.goals) == 5
    assert all(one.useful_tflops for row in report.rows[:-1] for one in row.latencies)
    assert "16 clients" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_goals_are_held_against_what_was_measured(rehearsed: tuple[Report, Path]) -> None:
    row = rehearsed[0].rows[1]
    (fast, slow) = (replace(row.latencies[0], candidates=k, p50_ms=ms) for k, ms in ((100, 0.44), (1_000, 1.8)))
    load = replace(rehearsed[0].under_load[0], candidates=100, clients=1, p50_ms=5.9, requests_per_second=990.0)
    saturated = replace(rehearsed[0].saturation[0], useful_tflops=300.0)
    found = goals([row.name], [replace(row, latencies=[fast, slow])], 716.0, [saturated], [load], is_measured=True)
    assert [one.held for one in found] == [True, False, True, True, False]
    assert found[2].measured == pytest.approx(0.419, abs=1e-3)


def test_what_takes_too_long_is_stopped_and_what_comes_too_late_left_out(pack: Path, tmp_path: Path) -> None:
    budget = TimeBudget(0.2)
    with pytest.raises(TimeUpError, match=r"stopped after 0 s.*--seconds"), budget.part(60):
        time.sleep(5)
    with pytest.raises(TimeUpError, match=r"left out.*--seconds"), budget.part(60):
        pytest.fail("it was begun")
    with pytest.raises(ArtifactError, match=r"the executors that are left: left out.*--seconds"):
        gpu_check(pack, tmp_path / "late.json", cpu=True, triton=False, seconds=0.001)


def test_the_record_has_a_schema(rehearsed: tuple[Report, Path], tmp_path: Path) -> None:
    report, out = rehearsed
    assert read_report(out) == report
    for place, value, message in (
        (("rows", 0, "agreement", "passed"), "yes", r"rows\.0\.agreement\.passed"),
        (("machine", "cores"), None, r"machine\.cores"),
        (("kind",), "a guess", "kind 'a guess'"),
    ):
        record = asdict(report)
        target: Any = record
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        (tmp_path / "bad.json").write_text(json.dumps(record))
        with pytest.raises(ArtifactError, match=message):
            read_report(tmp_path / "bad.json")


def test_records_in_git_keep_the_schema() -> None:
    records = [path for path in (ROOT / "docs" / "measurements").glob("*.json") if '"pack": {' in path.read_text()]
    assert {path.stem for path in records} >= {"h100-demo"}
    assert {read_report(path).kind for path in records} == {MEASUREMENT}


def test_a_joint_ranker_goes_through_too(joint_pack: Path, tmp_path: Path) -> None:
    report = gpu_check(joint_pack, tmp_path / "joint.json", cpu=True, triton=False)
    assert [row.name for row in report.rows] == JOINT_EXECUTORS


@pytest.mark.parametrize("runs", [1_000, 8])
def test_scores_that_are_not_the_cpus_close_the_gate(
    runs: int, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is written all the same: a bad number is shown, not hidden, though it fails when it is timed."""
    padded_run, ran = network_runs.PaddedRunner.run, itertools.count(1)

    def run(self: network_runs.PaddedRunner, request: Tensors) -> Any:
        if next(ran) > runs:
            raise RuntimeError("CUDA out of memory")
        return padded_run(self, request) + 0.01

    monkeypatch.setattr(network_runs.PaddedRunner, "run", run)
    with pytest.raises(GateError, match="not the CPU's scores: PyTorch FP32, padded; see"):
        gpu_check(pack, tmp_path / "bad.json", cpu=True, triton=False)
    failed = [row.name for row in read_report(tmp_path / "bad.json").rows if not row.agreement.passed]
    assert failed == ["PyTorch FP32, padded"]
    assert "FAILED" in (tmp_path / "bad.md").read_text(encoding="utf-8")


def test_an_executor_that_fails_does_not_take_the_others_along(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(self: object, request: object) -> None:
        raise RuntimeError("CUDA out of memory\nand much more")

    monkeypatch.setattr(PairByPair, "run", out_of_memory)
    report = gpu_check(pack, tmp_path / "less.json", cpu=True, triton=False)
    assert "PyTorch FP32, eager, pair by pair" not in {row.name for row in report.rows}
    (missing,) = [one for one in report.missing if "pair" in one.what]
    assert missing.why == "it failed: RuntimeError: CUDA out of memory"


# Machines


def test_without_a_gpu_it_says_so_and_exits_with_2(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_machine, "find_gpu", lambda: None)
    with pytest.raises(ArtifactError, match=r"no GPU is here.*--cpu --out rehearsal\.json") as raised:
        gpu_check(pack)
    assert raised.value.exit_code == 2


def test_a_rehearsal_needs_a_file_of_its_own(pack: Path) -> None:
    with pytest.raises(ArtifactError, match="name its file with --out"):
        gpu_check(pack, cpu=True)


def test_a_gpu_that_nothing_can_use(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reason is listed with its command, and no record is written."""
    monkeypatch.setattr(gpu_machine, "find_gpu", lambda: Gpu("NVIDIA X100", "10.0", "600.1"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"nothing here can compute on NVIDIA X100") as raised:
        gpu_check(pack, triton=False)
    for part in ("PyTorch: ", "download.pytorch.org", "ONNX Runtime: ", "onnxruntime-gpu", "TensorRT: "):
        assert part in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tritonrank.gpu_check.graphs", raising=False)
    monkeypatch.delattr(tritonrank.gpu_check, "graphs", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with open_pack(pack) as opened:
        found = list(find_executors(opened, "cpu", tmp_path))
    (graphs,) = [one for one in found if isinstance(one, Missing) and one.what == "graphs"]
    assert graphs.why == "onnx is not installed, which makes them of the checkpoint: pip install 'tritonrank[build]'"
    assert sum(not isinstance(one, Missing) for one in found) == 4


def test_a_machine_with_little_more_than_torch(pack: Path, tmp_path: Path) -> None:
    """Neither pydantic, typer, polars, transformers nor tritonclient: as a script, PyTorch alone is measured."""
    code = f"""
import sys
for name in ("pydantic", "typer", "polars", "yaml", "transformers", "tritonclient", "onnx", "optimum", "scipy"):
    sys.modules[name] = None
sys.argv = ["gpu_check", {str(pack)!r}, "--cpu", "--out", {str(tmp_path / "bare.json")!r}]
from tritonrank.gpu_check import check as gpu_check
gpu_check.ROUNDS = 1
sys.exit(gpu_check.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    report = read_report(tmp_path / "bare.json")
    assert [row.name for row in report.rows] == EXECUTORS[:4]
    why = {one.what: one.why for one in report.missing}
    assert "is not installed" in why["graphs"]
    assert "tritonrank[build,server]" in why["Triton"]


@pytest.mark.slow
def test_a_machine_that_can_build_nothing_serves_the_pack(pack: Path, tmp_path: Path) -> None:
    """The verb with Triton on top of PyTorch: what builds is not there."""
    out = tmp_path / "served.json"
    command = [sys.executable, "-m", "tritonrank", "gpu-check", str(pack), "--cpu", "--out", str(out)]
    environment = without(tmp_path / "blocked", BUILDERS - {"torch", "pydantic"})
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert [row.name for row in read_report(out).rows] == [*EXECUTORS[:4], "Triton, PyTorch FP32"]


def test_a_measurement_is_named_after_its_gpu_and_recipe(rehearsed: tuple[Report, Path]) -> None:
    report, _ = rehearsed
    machine = replace(report.machine, gpu="NVIDIA H100 80GB HBM3")
    measured = replace(report, kind=MEASUREMENT, created="2026-11-22T07:00:00Z", machine=machine)
    assert default_path(measured) == Path("docs/measurements/nvidia-h100-80gb-hbm3-tiny-2026-11-22.json")
    assert as_markdown(measured).startswith("# gpu-check of tiny: NVIDIA H100 80GB HBM3\n")


def test_a_record_that_cannot_be_written_is_named(rehearsed: tuple[Report, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"cannot be written.*--out"):
        write_report(rehearsed[0], tmp_path / "file" / "record.json")


def test_the_processor_is_named() -> None:
    machine = describe_machine(cpu=True)
    assert machine.processor
    assert {"python", "torch", "numpy"} <= set(machine.versions)


def test_a_failed_export_gives_its_reason_to_whoever_needs_the_graph(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(gpu_graphs, "export_batched_graph", fail)
    with open_pack(pack) as opened:
        graphs = gpu_graphs.Graphs(opened, tmp_path)
        for precision in ("fp32", "fp16", "int8_fp16", "int8_fp16"):
            with pytest.raises(RuntimeError, match="no such operator"):
                getattr(graphs, precision)


# The ways through the network


@pytest.mark.parametrize("is_pruned", [False, True])
def test_pair_by_pair_and_padded_score_as_the_engine(
    is_pruned: bool, workspace: Workspace, held_out: list[Request], tmp_path: Path
) -> None:
    """A pruned ranker has positions for its longest texts and no more: they may not be padded any further."""
    tokenizer = RequestTokenizer.from_folder(workspace.teacher)
    requests = [tensors_of(request, tokenizer) for request in held_out[:3]]
    checkpoint = workspace.teacher
    if is_pruned:
        teacher = load_any_ranker(checkpoint)
        longest = max(request["candidate_ids"].shape[1] for request in requests)
        assert longest % network_runs.TOKEN_MULTIPLE
        kept = replace(everything(sizes_of(teacher.config)), positions=teacher.config.context_positions + longest)
        checkpoint = tmp_path
        cut(teacher, kept).save_pretrained(checkpoint)
    network = load_network(checkpoint)
    pairs = PairByPair(network, "cpu")
    rows = network_runs.PaddedRunner(network.folded().score_batch, row_positions(network.config))
    for tensors in requests:
        (expected,) = open_engine(workspace.onnx).run([tensors])
        np.testing.assert_allclose(pairs.run(tensors), expected, atol=1e-4)
        np.testing.assert_allclose(rows.run(tensors), expected, atol=1e-4)


@pytest.mark.parametrize(("longest", "context", "tokens"), [((512, 400), 32, 16), ((29, 12), 29, 12)])
def test_shapes_are_padded_to_round_numbers(longest: tuple[int, int], context: int, tokens: int) -> None:
    context_ids, candidate_ids = padded(
        {"context_ids": np.arange(17, dtype=np.int32), "candidate_ids": np.ones((9, 11), dtype=np.int32)}, longest
    )
    assert (context_ids.shape, candidate_ids.shape) == ((1, context), (1, 16, tokens))
    assert (context_ids[0, 17:] == -1).all()
    assert (candidate_ids[0, 9:] == -1).all()


def test_a_plan_takes_the_first_profile_that_holds_the_request() -> None:
    profiles: list[Profile] = [
        {
            "context_ids": Range((1, 1), (1, 70), (1, 70)),
            "candidate_ids": Range((1, low, 1), (1, high, 24), (1, high, 24)),
        }
        for low, high in ((1, 16), (17, 128))
    ]
    for candidates, number in ((1, 0), (16, 0), (17, 1), (128, 1)):
        shapes = {"context_ids": (1, 30), "candidate_ids": (1, candidates, 12)}
        assert fitting_profile(profiles, shapes) == number
    for wrong in ({"context_ids": (1, 71)}, {"candidate_ids": (1, 129, 12)}, {"candidate_ids": (2, 16, 12)}):
        with pytest.raises(ArtifactError, match=r"no optimization profile .*candidate_buckets"):
            fitting_profile(profiles, {"context_ids": (1, 30), "candidate_ids": (1, 16, 12)} | wrong)


def test_a_pack_of_another_version_is_served_with_what_is_known(pack: Path) -> None:
    with open_pack(pack) as opened:
        opened.manifest["serve"] |= {"of_the_future": 3, "queue_requests": 7}
        assert recipe_of(opened).serve.queue_requests == 7
        served = serving_of(opened, "cpu")
        assert (served.queue_requests, served.executor, served.queue_share) == (7, "torch", 0)
        opened.manifest["serve"]["queue_requests"] = -1
        with pytest.raises(RecipeError, match="its serving settings are not this version's; pack it again"):
            recipe_of(opened)


# Timing


def test_executors_take_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "ROUNDS", 2)
    calls: list[tuple[str, int]] = []
    ways = {name: lambda request, name=name: calls.append((name, request)) for name in "ab"}
    found, _ = take_turns(ways, {10: [1, 2, 3, 4]}, "a")
    assert [name for name, request in calls if request == 1] == ["a", "b"] * 3
    assert found["a"][0].requests == 8  # of twelve: the warm-up does not count
    assert found["a"][0].speedup == 1.0


@pytest.mark.parametrize(("error", "is_row"), [(0.0, False), (1.0, True)])
def test_wrong_scores_through_triton_close_the_gate_though_it_then_fails(
    error: float, is_row: bool, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pack(pack) as opened:
        left = iter(opened.scored)

        def run(request: Any) -> Any:
            try:
                return np.array(next(left).scores, dtype=np.float32) + error
            except StopIteration:
                raise RuntimeError("the server is gone") from None

        monkeypatch.setattr(gpu_triton, "served", lambda *_: nullcontext(("Triton", "FP16", 1e-2, run, "localhost:1")))
        result = checking.Found()
        checking.measure_through_triton(opened, "cpu", result, TimeBudget())
    assert len(result.rows) == is_row
    if is_row:
        assert not result.rows[0].agreement.passed
    else:
        assert "it failed at" in result.missing[0].why


def test_an_executor_that_fails_while_it_is_timed_drops_out() -> None:
    """Though it be the baseline: what is left has times, and nothing to be held against."""

    def out_of_memory(request: int) -> None:
        if request > 10:
            raise RuntimeError("CUDA out of memory\nand much more")

    found, failed = take_turns({"a": out_of_memory, "b": lambda request: None}, {10: [10], 1_000: [1_000]}, "a")
    assert failed == [Missing("a", "it failed at 1,000 candidates: RuntimeError: CUDA out of memory")]
    assert {name: [one.speedup for one in of_name] for name, of_name in found.items()} == {"b": [None, None]}


def test_a_slow_executor_is_timed_on_fewer_requests() -> None:
    found, _ = take_turns({"slow": lambda request: None}, {10: list(range(50))}, None, seconds_per_round=0.0)
    assert found["slow"][0].requests == checking.FEWEST_REQUESTS
    assert found["slow"][0].speedup is None


def test_scores_that_are_not_finite_do_not_agree() -> None:
    expected = [np.array([1.0, 2.0], dtype=np.float32)]
    found = agreement_with([np.array([1.0, np.nan], dtype=np.float32)], expected, 1e-2)
    assert not found.passed
    assert found.largest_difference == checking.NOT_FINITE
