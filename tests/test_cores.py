"""The cores that this process may use: those of its mask, within the quota of its control group."""

from pathlib import Path

import pytest
from tritonrank_runtime.cores import available_cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("20000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
        ("rubbish", 8),
        ("x y", 8),
    ],
)
def test_cores_are_those_of_the_mask_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr("tritonrank_runtime.cores.QUOTA_FILE", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert available_cores() == cores


def test_without_a_quota_the_mask_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tritonrank_runtime.cores.QUOTA_FILE", tmp_path / "none")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 5, 6})
    assert available_cores() == 3


def test_this_machine_has_a_core() -> None:
    assert available_cores() >= 1
