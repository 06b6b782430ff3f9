"""kill -9 at every step of a real night, in the middle of it and between its end and its line: it goes on there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from learning_shop import learning_recipe, own_copy, write_hours
from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.artifacts.builds import recorded_builds, served_name
from tritonrank.artifacts.lines import read_lines
from tritonrank.artifacts.store.index import Index
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.workspace import Workspace
from tritonrank.learn.ledger import LEDGER_FILE, STEPS, Ledger
from tritonrank.learn.night import run_night
from tritonrank.learn.steps import ALL

pytestmark = [pytest.mark.slow, pytest.mark.long]

TESTS = Path(__file__).parent
CONTROLLER = "http://127.0.0.1:9"


@pytest.mark.timeout(600)
def test_a_night_killed_twice_at_every_step_comes_to_the_same_end(
    workspace: Workspace, tiny_base: Path, tmp_path: Path
) -> None:
    log, store = tmp_path / "log", f"file://{tmp_path}/store"
    killed, whole = (own_copy(workspace, tmp_path / name / "tiny") for name in ("killed", "whole"))
    before = [one.name for one in recorded_builds(killed.root)]
    now = write_hours(workspace, log, 12) + 300
    arguments = [str(killed.root), str(log), str(tiny_base), store, str(now)]
    done = subprocess.run(
        [sys.executable, str(TESTS / "killed_nights.py"), *arguments], check=False, capture_output=True, text=True
    )
    print(done.stdout[-4_000:], done.stderr[-4_000:])
    *kills, last = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    assert {(one["step"], one["moment"]): one["ended"] for one in kills} == {
        (step, moment): -9 for step in STEPS for moment in ("within", "after")
    }
    assert last["ended"] == 0
    ledger = Ledger(killed.root)
    (night,) = ledger.nights()
    assert (night.outcome, night.decision) == ("accepted", "live"), night.reason
    lines = [line["step"] for line in read_lines(ledger.folder / LEDGER_FILE) if line["event"] == "step"]
    assert lines == list(STEPS), "each step was done once"
    calls = (killed.root / "calls.txt").read_text().split()
    assert calls == [step for step in STEPS for _ in range(3)], "what was done was not done again"
    assert "resuming from checkpoint-" in done.stdout, "training went on from its last evaluation"

    recipe = learning_recipe(tiny_base, log, f"learn.store={store}", "learn.release=promote")
    run_night(recipe, whole, ALL, controller=CONTROLLER, now=now)
    (uncut,) = Ledger(whole.root).nights()
    for folder in ("dataset", "teacher", "int8"):
        of_killed, of_whole = (
            read_manifest(one.workspace_of(name).root / folder)
            for one, name in ((ledger, night), (Ledger(whole.root), uncut))
        )
        assert of_killed.artifact == of_whole.artifact, folder
    home = ledger.workspace_of(night)
    for folder in (home.dataset, home.teacher, home.int8, home.repository, home.summary):
        verify_artifact(folder)
    leftovers = [path for path in ledger.folder.rglob("*") if path.suffix in (".tmp", ".old", ".work")]
    assert leftovers == []
    build = night.told("build")["build"]
    assert [one.name for one in recorded_builds(killed.root)] == [*before, build]
    assert served_name(killed.root) == build
    versions = Index(open_objects(store)).versions()
    assert night.told("publish")["digest"] in {one.digest for one in versions}
