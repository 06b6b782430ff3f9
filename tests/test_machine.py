"""How many cores there are to use: a container's share of CPU time counts, not only which cores it may run on."""

import os
from pathlib import Path

import pytest
from tritonrank.gpu_check import machine as gpu_check
from tritonrank_runtime.cores import available_cores

from loadtests.machine import describe_machine


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("50000 100000", 1),
        ("350000 100000", 3),
        ("9900000 100000", 8),
        ("", 8),
    ],
)
def test_a_quota_of_cpu_time_cuts_the_cores(quota: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def with_quota(path: Path, **options: str) -> str:
        return quota if path == Path("/sys/fs/cgroup/cpu.max") else read(path, **options)

    monkeypatch.setattr(Path, "read_text", with_quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert available_cores() == cores
    assert describe_machine().cores == gpu_check.describe_machine(cpu=True).cores == cores
