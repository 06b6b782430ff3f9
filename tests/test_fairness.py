"""The fairness check against the real server: it measures both halves, and its exit code is its verdict."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Served
from misbehaving_server import BROKEN, Asked, Behaviour, Fail, MisbehavingServer
from refused_ports import refused_address
from tritonrank.data.workload import make_workload
from tritonrank.data.workload_settings import WorkloadSettings
from tritonrank_client import ServerFault

from loadtests import fairness
from loadtests.workload import WorkloadRequest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workloads(served: Served, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("workloads")
    artifacts = served.workspace.root
    return [
        make_workload(artifacts, folder / f"{size}.jsonl", WorkloadSettings(requests=10, candidates=str(size)))
        for size in (3, 100)
    ]


@pytest.mark.parametrize(("most", "code"), [("1000", 0), ("0", 1)])
def test_the_exit_code_is_the_verdict(served: Served, workloads: list[Path], most: str, code: int) -> None:
    done = run(served.triton.grpc_url, *workloads, "--requests", "12", "--most", most)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["p99_ratio"] == pytest.approx(found["beside_large_p99"] / found["alone_p99"], rel=0.01)
    assert 0 < found["alone_p50"] <= found["alone_p99"]
    assert found["large_per_second"] > 0


@dataclass
class RefusesLarge(Behaviour):
    """Answers one large request; the next fails."""

    large: int
    met: list[Asked] = field(default_factory=list)

    def outputs(self, asked: Asked) -> dict[str, tuple[str, list[object]]] | Fail:
        if len(asked.inputs["items"]) >= self.large:
            self.met.append(asked)
        return BROKEN if len(self.met) > 1 and asked is self.met[-1] else asked.rank()


def requests_of(items: int) -> Sequence[WorkloadRequest]:
    texts = [f"item {number}" for number in range(items)]
    return [WorkloadRequest(0, 0.0, "u", "desk", ["lamp"], texts, texts, None)]


def test_small_requests_that_are_alone_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "LEAD_SECONDS", 0.0)
    server = MisbehavingServer()
    server.behave(RefusesLarge(large=5))
    try:
        with pytest.raises(ServerFault, match="illegal memory access"):
            fairness.compare(server.urls["grpc"], requests_of(2), requests_of(5), count=40)
    finally:
        server.close()


def test_what_cannot_be_measured_is_told_in_one_message(small_workload: Path) -> None:
    done = run(f"grpc://{refused_address()}", small_workload, small_workload)
    assert done.returncode == 2
    assert "no connection" in done.stderr
    assert "Traceback" not in done.stderr


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.fairness", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
