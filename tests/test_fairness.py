"""The fairness check against the real server: it measures both halves, and its exit code is its verdict."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Served
from tritonrank.workload import make_workload
from tritonrank.workload_settings import WorkloadSettings

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
    command = [sys.executable, "-m", "loadtests.fairness", served.triton.grpc_url, *map(str, workloads)]
    done = subprocess.run(
        [*command, "--requests", "12", "--most", most],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["p99_ratio"] == pytest.approx(found["beside_large_p99"] / found["alone_p99"], rel=0.01)
    assert 0 < found["alone_p50"] <= found["alone_p99"]
    assert found["large_per_second"] > 0
