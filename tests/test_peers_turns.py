"""The peers in turns, without the peers: whose turn it is, what is divided by what, and a server's counts."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer import BadParameter

from loadtests.peers import catalogue, turns, turns_report
from loadtests.peers.cases import Case
from loadtests.peers.environments import EnvironmentFaultError
from loadtests.peers.hops import Look, hops_between
from loadtests.peers.variants import executor_of, with_onnx_runtime

CASES = [Case(n, "q", [], ["a", "b"], "q", ["a", "b"], None) for n in range(40)]
PARAMETER = 'parameters {\n  key: "executor"\n  value {\n    string_value: "torch"\n  }\n}\n'


class Stand:
    """A system that takes so many seconds per request."""

    def __init__(self, name: str, kind: str, seconds: float, heard: list[tuple[str, int]]) -> None:
        self.name, self.kind, self.settings = name, kind, {"server": "none"}
        self._seconds, self._heard = seconds, heard

    def prepare(self) -> None: ...

    def versions(self) -> dict[str, str]:
        return {}

    def start(self) -> None: ...

    def rank(self, case: Case) -> Sequence[float]:
        self._heard.append((self.name, case.number))
        time.sleep(self._seconds)
        return [1.0, 0.0]

    def memory_bytes(self) -> int:
        return 1_000_000

    def stop(self) -> None:
        self._heard.append((self.name, -1))


class Refuses(Stand):
    def rank(self, case: Case) -> Sequence[float]:
        raise RuntimeError("not today")


def test_every_round_asks_every_system_the_same_and_a_failure_stops_nobody() -> None:
    heard: list[tuple[str, int]] = []
    systems = [
        Stand(catalogue.FIRST, "peer", 0.03, heard),
        Refuses("broken", "peer", 0.0, heard),
        Stand("ours, x", "ours", 0.003, heard),
    ]
    found = turns.measure_in_turns(systems, CASES, 3, 3, 0.05, 60.0)
    first, broken, ours = found["systems"]
    assert "not today" in broken["failed"]
    assert [len(one["p50_ms_by_round"]) for one in (first, ours)] == [3, 3]
    assert len(ours["latencies_ms"]) == 6, "two of the three requests of a round are measured"
    assert {n for name, n in heard if name == catalogue.FIRST} >= {0, 3, 6}
    assert [name for name, n in heard if n == -1] == ["ours, x", "broken", catalogue.FIRST]
    median, least, most = turns_report.multiple(ours, first) or (0, 0, 0)
    assert least <= median <= most
    assert 3 < median < 15
    assert json.loads(json.dumps(found)) == found


def test_no_round_begins_when_the_time_is_over() -> None:
    found = turns.measure_in_turns([Stand("ours, x", "ours", 0.0, [])], CASES, 50, 2, 0.0, 0.0)
    assert found["rounds"] == 1


def test_the_table_divides_peers_by_ours_and_tells_of_failures() -> None:
    peer = {"name": "peer", "kind": "peer", "p50_ms": 400.0, "p50_ms_by_round": [400.0, 390.0], "memory_mb": 1.0}
    ours = {"name": "ours", "kind": "ours", "p50_ms": 10.0, "p50_ms_by_round": [10.0, 13.0], "memory_mb": 1.0}
    peer["candidates_per_second"], ours["candidates_per_second"] = {"1": 250.0}, {"2": 9_000.0, "4": 10_000.0}
    ours["hops"] = {
        "models_ms": {"score": {"queue": 0.1, "compute_input": 0.2, "compute_infer": 8.0, "compute_output": 0.3}},
        "between_ms": 0.5,
        "client_and_network_ms": 0.9,
        "client_mean_ms": 10.0,
    }
    results = {
        "systems": [peer, ours, {"name": "gone", "kind": "peer", "failed": "RuntimeError: no"}],
        "rounds": 2,
        "settings": {"candidates": 100},
        "gflop_per_second": {"onnxruntime_int8": 800.0},
        "gflop_per_request": {"joint": 150.0, "ours": 4.0},
        "machine": {"processor": "Abacus", "cores": 2},
        "peers_head": "as trained",
        "gate": [{"gate": "gate against FP32", "passed": True}],
    }
    text = turns_report.markdown(results)
    (row,) = [line for line in text.splitlines() if line.startswith("| ours |")]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "10.0", "35.0 [30.0, 40.0]", "10,000", "40.0", "50%", "1",
    ]  # fmt: skip
    assert "**gone** failed: RuntimeError: no" in text
    assert "| score: compute infer | 8.00 |" in text
    assert "gate against FP32 passed" in text


def test_hops_are_means_of_what_grew_between_two_looks() -> None:
    parts = dict.fromkeys(("queue", "compute_input", "compute_infer", "compute_output"), (0, 0))
    before = {"rank": {"success": (10, 10**9)}, "score": parts | {"compute_infer": (10, 5 * 10**8)}}
    after = {"rank": {"success": (14, 10**9 + 40 * 10**6)}, "score": parts | {"compute_infer": (14, 532 * 10**6)}}
    first, second = Look(before, {"score": 1.0}), Look(after, {"score": 1.02, "queue": 0.004})
    hops = hops_between(first, second, 0.012)
    assert hops is not None
    assert hops.steps == pytest.approx({"score": 5.0, "queue": 1.0})
    assert hops.models["score"]["compute_infer"] == pytest.approx(8.0)
    told = hops.summary()
    assert told["between_ms"] == pytest.approx(2.0)
    assert told["client_and_network_ms"] == pytest.approx(2.0)
    assert hops_between(second, second, 0.012) is None


def test_a_copy_computes_with_onnx_runtime_and_its_manifest_says_what_it_holds(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "score" / "1").mkdir(parents=True)
    (repository / "score" / "config.pbtxt").write_text('name: "score"\n' + PARAMETER + 'backend: "python"\n')
    (repository / "manifest.json").write_text(json.dumps({"files": {"score/config.pbtxt": "as built"}}))
    assert executor_of(repository) == "torch"
    with pytest.raises(FileNotFoundError, match=r"serve\.executor=onnxruntime"):
        with_onnx_runtime(repository, tmp_path / "none")
    (repository / "score" / "1" / "candidates.onnx").write_bytes(b"graph")
    copy = with_onnx_runtime(repository, tmp_path / "copy")
    assert executor_of(copy) == "onnxruntime"
    assert executor_of(repository) == "torch"
    config = (copy / "score" / "config.pbtxt").read_bytes()
    assert config == b'name: "score"\nbackend: "python"\n'
    files = json.loads((copy / "manifest.json").read_text())["files"]
    assert files == {"score/config.pbtxt": hashlib.sha256(config).hexdigest()}


def test_what_is_not_there_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tritonrank assemble"):
        turns.our_repositories(tmp_path / "repository", [], tmp_path)
    (tmp_path / "repository").mkdir()
    with pytest.raises(BadParameter, match="NAME=REPOSITORY"):
        turns.our_repositories(tmp_path / "repository", ["x"], tmp_path)
    with pytest.raises(EnvironmentFaultError, match="tritonrank build"):
        turns.joint_twin(tmp_path / "teacher", tmp_path / "joint")
