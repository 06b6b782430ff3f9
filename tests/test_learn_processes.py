"""Several processes train one night's ranker, started by the night itself; all else of it is one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ranks_at_work
from learning_shop import learning_recipe, own_copy, write_hours
from test_learn_night import all_steps
from test_recipe import SMALLEST, write
from tritonrank import cli
from tritonrank.artifacts import verify_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import TritonRankError
from tritonrank.learn.ledger import Ledger
from tritonrank.learn.night import run_night
from tritonrank.learn.steps import ALL
from tritonrank.train.processes import SIGNALS, train_in_processes
from typer.testing import CliRunner

pytestmark = pytest.mark.timeout(600)

CONTROLLER = "http://127.0.0.1:9"
PATIENCE_SECONDS = 300.0
"""Of a machine on which many others import torch, too."""


@pytest.mark.slow
def test_all_processes_end_at_the_step_that_the_first_one_s_clock_says(tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in SIGNALS]
    train_in_processes(2, ranks_at_work.steps_in_time, tmp_path)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers, "a night ends as it did before"
    assert [(tmp_path / f"ended.{rank}").read_text() for rank in (0, 1)] == [f"30 {os.getpid()}"] * 2


@pytest.mark.slow
def test_what_one_of_them_says_is_the_error(tmp_path: Path) -> None:
    with pytest.raises(TritonRankError, match=f"process 1 of the 2 .* failed: .*{tmp_path}: no space left"):
        train_in_processes(2, ranks_at_work.fails_in_the_second, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_night_that_started_them(tmp_path: Path, ended_by: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, ranks_at_work.__file__, str(tmp_path)]) as night:
        wait_until(lambda: len([one for one in tmp_path.glob("rank.*") if one.read_text()]) == 2)
        night.send_signal(ended_by)
        assert night.wait(PATIENCE_SECONDS) == -ended_by, "as if it had trained alone"
    ranks = [int(one.read_text()) for one in tmp_path.glob("rank.*")]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in ranks))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_night_trains_in_two_processes_and_is_one(workspace: Workspace, tiny_base: Path, tmp_path: Path) -> None:
    own, log = own_copy(workspace, tmp_path / "tiny"), tmp_path / "log"
    now = write_hours(workspace, log, 12) + 300
    taken = all_steps() | {name: ALL[name] for name in ("collect", "inspect", "examples", "finetune")}
    recipe = learning_recipe(tiny_base, log, "learn.processes=2")
    night = run_night(recipe, own, taken, controller=CONTROLLER, now=now)
    assert night.outcome == "accepted"
    assert "steps in 2 processes" in night.told("finetune")["said"]
    ledger = Ledger(own.root)
    metrics = verify_artifact(ledger.workspace_of(night).teacher).metrics
    assert metrics["processes"] == 2
    assert metrics["steps"] == max(
        1, round(night.told("examples")["training"] / (2 * recipe.finetune.examples_per_step))
    )
    lines = [json.loads(line) for line in (ledger.folder / "ledger.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["began", *["step"] * 8, "ended"], "one process keeps the ledger"


def test_torchrun_is_told_which_command_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = write(tmp_path, SMALLEST)
    done = CliRunner().invoke(cli.app, ["learn", str(recipe), "--once"], env={"COLUMNS": "500"})
    assert done.exit_code == 2
    assert f"tritonrank learn {recipe} --set learn.processes=2" in " ".join(done.output.split())
