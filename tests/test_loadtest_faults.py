"""A fault is told, repaired, and lost to no client; and a ledger where that does not hold is no success."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tritonrank.artifacts.workspace import Workspace
from typer.testing import CliRunner

from loadtests.__main__ import app
from loadtests.faults import Outcome, faults_of

GOOD = Outcome("kill -9 ranker", 0.1, 2.0, 1, 80, 80, 0, {}, 2.1)


@pytest.mark.slow
def test_a_killed_part_is_told_repaired_and_lost_to_nobody(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    # Attempts are given, so that this is about the server alone.
    command = ["faults", str(workspace.root), "--only", "kill -9 ranker", "--timeout", "20", "--attempts", "200"]
    done = CliRunner().invoke(app, [*command, "--out", str(out)])
    (found,) = json.loads(out.read_text())["faults"]
    assert done.exit_code == 0, done.output
    assert found["restarts"] == 1
    assert found["health_untrue_after"] is not None
    assert found["sent"] == found["answered"] >= 70
    assert found["failed"] == {}
    assert str(tmp_path) not in out.read_text()


@pytest.mark.parametrize(
    ("outcome", "passed"),
    [
        (GOOD, True),
        (replace(GOOD, health_untrue_after=None, back_after=0.0, restarts=0), True),
        (replace(GOOD, health_untrue_after=2.5), False),
        (replace(GOOD, back_after=5.5), False),
        (replace(GOOD, failed={"Unavailable": 1}), False),
        (replace(GOOD, wrong=1), False),
        (replace(GOOD, answered=79), False),
    ],
)
def test_a_ledger_passes_only_where_all_holds(outcome: Outcome, passed: bool) -> None:
    assert outcome.passed == passed


def test_every_process_is_killed_and_stopped() -> None:
    names = set(faults_of())
    for part in ("ranker", "tritonserver", "keeper"):
        assert {f"kill -9 {part}", f"SIGSTOP 5 s {part}"} <= names
    assert "run folder removed" in names


def test_what_cannot_be_served_is_told_in_one_message(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["faults", str(tmp_path)])
    assert done.exit_code == 2
    assert "tritonrank build" in done.output
