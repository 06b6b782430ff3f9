"""The engine of nights: a step is taken once, a refusal leaves things alone, bounds hold, one night at a time."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_recipe import SMALLEST, write
from tritonrank.artifacts import write_artifact
from tritonrank.artifacts.locks import release, take
from tritonrank.artifacts.store.leases import LEARN, LEASES, lease
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, GateError, RecipeError, StoreError
from tritonrank.learn.budget import bounded
from tritonrank.learn.ledger import STEPS, Ledger, Night, StepName
from tritonrank.learn.lock import only_night
from tritonrank.learn.night import MOST_ATTEMPTS, Step, run_night
from tritonrank.learn.page import PAGE_FILE
from tritonrank.learn.run import NothingNewError, Run
from tritonrank.learn.schedule import every, next_due, period_seconds
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.system.processes import this_process

CONTROLLER = "http://127.0.0.1:9"
WINDOW = {"start": 0.0, "end": 3600.0}
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_learn_night import going_through, night_of
night_of(Path({folder!r}), going_through({step!r}, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(write(tmp_path, SMALLEST))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return with_build(tmp_path / "artifacts" / "small")


def with_build(root: Path, weights: str = "first") -> Workspace:
    workspace = Workspace(root)
    with write_artifact(workspace.teacher, "finetune", {}, {}) as draft:
        (draft.folder / "weights.bin").write_text(weights)
    return workspace


def step(name: StepName, run: Run, **told: Any) -> dict[str, Any]:
    """Leave a mark, so that it shows how often a step was taken."""
    home = run.ledger.folder_of(run.night)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "steps.txt").open("a") as file:
        file.write(f"{name}\n")
    return {"said": f"{name} done", "release": {}, **told}


def all_steps(**others: Step) -> dict[StepName, Step]:
    steps: dict[StepName, Step] = {name: lambda run, name=name: step(name, run) for name in STEPS}
    return steps | others  # type: ignore[operator]


def going_through(broken: StepName, what: Any) -> dict[StepName, Step]:
    """Steps of which one begins, leaves its mark, and then does something else than to come to its end."""

    def breaks(run: Run) -> Mapping[str, Any]:
        told = step(broken, run)
        what()
        return told

    return all_steps(**{broken: breaks})


def night_of(root: Path, steps: Mapping[StepName, Step], *overrides: str) -> Night:
    path = root / "recipe.yaml"
    path.write_text(SMALLEST)
    workspace = Workspace(root / "artifacts" / "small")
    return run_night(load_recipe(path, list(overrides)), workspace, steps, controller=CONTROLLER)


def taken(workspace: Workspace, night: Night) -> list[str]:
    return (Ledger(workspace.root).folder_of(night) / "steps.txt").read_text().split()


def raises(error: Exception) -> Any:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("broken", STEPS)
def test_a_process_killed_within_a_step_goes_on_there(tmp_path: Path, workspace: Workspace, broken: StepName) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), step=broken)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (cut_off,) = Ledger(workspace.root).nights()
    assert cut_off.is_open
    assert list(cut_off.steps) == list(STEPS[: STEPS.index(broken)])
    half_written = Ledger(workspace.root).folder_of(cut_off) / "judgements" / "a.parquet.4711.tmp"
    half_written.parent.mkdir()
    half_written.write_bytes(b"half")
    night = night_of(tmp_path, all_steps())
    assert (night.id, night.outcome, list(night.steps)) == (cut_off.id, "accepted", list(STEPS))
    assert not half_written.exists()
    place = STEPS.index(broken)
    assert taken(workspace, night) == [*STEPS[: place + 1], *STEPS[place:]], "only the step that was cut off came twice"
    assert (Ledger(workspace.root).folder / PAGE_FILE).is_file()


def test_a_refusal_ends_the_night_and_the_next_one_stands_where_this_one_stood(
    tmp_path: Path, workspace: Workspace
) -> None:
    first = night_of(tmp_path, all_steps())
    refusing = going_through("judge", raises(GateError("worse on frozen lists")))
    second = night_of(tmp_path, refusing)
    assert (second.outcome, second.reason) == ("refused", "judge: worse on frozen lists")
    assert second.parent == first.id
    third = night_of(tmp_path, all_steps(inspect=lambda run: step("inspect", run, refused="labels flipped")))
    assert (third.outcome, third.reason, list(third.steps)) == (
        "refused",
        "inspect: labels flipped",
        ["collect", "inspect"],
    )
    assert night_of(tmp_path, all_steps()).parent == first.id


def test_without_new_hours_nothing_happens(tmp_path: Path, workspace: Workspace) -> None:
    night = night_of(tmp_path, going_through("collect", raises(NothingNewError("no hour is new"))))
    assert (night.outcome, night.reason) == ("nothing", "no hour is new")
    assert night_of(tmp_path, all_steps()).parent == ""


def test_a_fault_leaves_the_night_open_until_it_was_tried_often_enough(tmp_path: Path, workspace: Workspace) -> None:
    broken = going_through("publish", raises(StoreError("the store is away")))
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(StoreError):
            night_of(tmp_path, broken)
    failing, fresh = night_of(tmp_path, all_steps()), Ledger(workspace.root).nights()[0]
    assert fresh.outcome == "failed"
    assert fresh.reason == "begun 3 times without getting beyond the step publish"
    assert (failing.outcome, failing.parent) == ("accepted", "")


def test_a_night_that_another_build_overtook_is_not_gone_on_with(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(StoreError):
        night_of(tmp_path, going_through("publish", raises(StoreError("away"))))
    with_build(workspace.root, "second")
    night = night_of(tmp_path, all_steps())
    overtaken, _ = Ledger(workspace.root).nights()
    assert (overtaken.outcome, night.outcome, night.parent) == ("failed", "accepted", "")


def test_without_a_build_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="tritonrank build RECIPE, serve it, and then learn"):
        night_of(tmp_path, all_steps())


def test_one_night_at_a_time(tmp_path: Path, workspace: Workspace) -> None:
    folder = Ledger(workspace.root).folder
    code = (
        "import sys, time; from pathlib import Path; from tritonrank.artifacts.locks import take\n"
        f"assert take(Path({str(folder)!r}), wait=False); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match="another process learns here just now"):
            night_of(tmp_path, all_steps())
        other.kill()
    assert night_of(tmp_path, all_steps()).outcome == "accepted", "a lock ends with its process"


def test_one_night_at_a_time_of_all_machines_of_a_store(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    objects = open_objects(url, make=True)
    with lease(objects, LEARN, holder="elsewhere/1:1:1"):
        with pytest.raises(StoreError, match="another process writes there"), only_night(tmp_path / "here", url):
            pass
        assert take(tmp_path / "here", wait=False), "the lock on this machine was given back"
        release(tmp_path / "here")
    with only_night(tmp_path / "here", url):
        assert len(list(objects.below(LEASES))) == 1
    machine, _, start = this_process().rsplit(":", 2)
    dead = f"{LEASES}/learn-killed.json"
    objects.write(dead, json.dumps({"holder": f"{machine}:4194303:{start}"}).encode())
    with only_night(tmp_path / "here", url):
        assert objects.find(dead) is not None, "whoever was killed on this machine holds nothing up"


@pytest.mark.parametrize(
    ("bound", "said"),
    [("learn.memory_gb=0.001", "learn.memory_gb allows 0.001"), ("learn.hours=0.0001", "its time is")],
)
def test_a_night_beyond_its_bounds_has_failed(tmp_path: Path, workspace: Workspace, bound: str, said: str) -> None:
    code = (
        f"import sys, time; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_learn_night import going_through, night_of\n"
        f"night_of(Path({str(tmp_path)!r}), going_through('finetune', lambda: time.sleep(60)), {bound!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    (night,) = Ledger(workspace.root).nights()
    assert night.outcome == "failed"
    assert said in night.reason
    assert said in done.stdout.replace("\n", " ")


def test_bounds_that_are_kept_end_nothing() -> None:
    failed: list[str] = []
    with bounded(1000.0, 60.0, failed.append, look_seconds=0.01):
        time.sleep(0.1)
    assert failed == []


def test_old_nights_go_and_those_that_are_needed_stay(tmp_path: Path, workspace: Workspace) -> None:
    for _ in range(3):
        night_of(tmp_path, all_steps(), "learn.keep_nights=1")
    ledger = Ledger(workspace.root)
    last = [night.id for night in ledger.nights()]
    for _ in range(2):
        night_of(tmp_path, going_through("judge", raises(GateError("worse"))), "learn.keep_nights=1")
    there = {path.name for path in (ledger.folder / "nights").iterdir()}
    assert there == {*last[1:], ledger.nights()[-1].id}


def test_periods() -> None:
    assert [period_seconds(one) for one in ("24h", "90m", "1.5d")] == [86_400, 5_400, 129_600]
    for wrong in ("24", "h", "10 s", "0.5m", "-1h"):
        with pytest.raises(RecipeError, match="such as 24h"):
            period_seconds(wrong)


def test_due_times_stay_at_their_hour() -> None:
    assert next_due(1000.0, 100.0, 1000.0) == 1100.0
    assert next_due(1000.0, 100.0, 1099.0) == 1100.0
    assert next_due(1000.0, 100.0, 1100.0) == 1200.0
    assert next_due(1000.0, 100.0, 1450.0) == 1500.0, "nights that were overslept are taken once"


def test_a_failed_night_costs_that_night_alone(tmp_path: Path) -> None:
    stopping, marks = threading.Event(), tmp_path / "marks"
    code = f"import sys; open({str(marks)!r}, 'a').write('x'); sys.exit(1)"
    thread = threading.Thread(target=every, args=(0.2, [sys.executable, "-c", code]), kwargs={"stopping": stopping})
    thread.start()
    deadline = time.monotonic() + 60
    while (not marks.is_file() or len(marks.read_text()) < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    stopping.set()
    thread.join(60)
    assert len(marks.read_text()) >= 2
    assert not thread.is_alive()


def test_sigterm_ends_a_schedule_and_its_night(tmp_path: Path) -> None:
    night = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(120)"
    code = f"import sys; from tritonrank.learn.schedule import every; every(3600, [sys.executable, '-c', {night!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as schedule:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        schedule.terminate()
        assert schedule.wait(30) == 0
        assert schedule.stdout is not None
        assert "a night that was cut off goes on with the next run" in schedule.stdout.read()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
