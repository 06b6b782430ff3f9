"""``tritonrank search`` as it is typed, over trainings of seconds: it finds, ends early, and goes on after kill -9."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import optimizer_steps
from test_cli import main
from tiny_models import save_ranker
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline import finetune, prepare
from tritonrank.pipeline import prune as prune_stage
from tritonrank.recipe import load_recipe

STEPS, EVALUATIONS = 48, 3
SETTINGS = {
    "name": "small",
    "data": {"source": "sample", "items": 60, "users": 120},
    "text": {"item_template": "{title}", "query_tokens": 12, "history_items": 2, "history_tokens": 32}
    | {"candidate_tokens": 24},
    "examples": {"training_examples": 96, "training_negatives": 3, "judged_negatives": 9}
    | {"validation_users": 40, "test_users": 40},
    "finetune": {"epochs": 4, "learning_rate": 1e-6, "evaluations": EVALUATIONS},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose learning rate teaches nothing."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("search")
    base = save_ranker("bert", root / "base", head=False, initializer_range=0.05, num_hidden_layers=2)
    path = root / "small.yaml"
    path.write_text("# A bad start.\n" + yaml.safe_dump(SETTINGS | {"model": {"base": str(base)}}), encoding="utf-8")
    return path


def search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The command in this process; its last line."""
    capsys.readouterr()
    assert main(monkeypatch, "search", *words) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def start(recipe: Path, artifacts: Path, *words: object) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "tritonrank", "search", recipe, "--artifacts", artifacts, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, dict[str, Any]]:
    """What a process said, and its last line."""
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3_000:]
    return said, json.loads(said.splitlines()[-1])


def trials_of(result: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Every trial, as the JSON beside the page has it."""
    page = Path(result["page"])
    trials: list[dict[str, Any]] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["trials"]
    return trials


def test_a_better_learning_rate_is_found_from_a_bad_start_and_is_a_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    over = ["--over", "finetune.learning_rate=1e-6..1e-2:log", "--trials", 6, "--pruner", "none"]
    result = search(monkeypatch, capsys, recipe, *over, "--artifacts", tmp_path)
    assert result["complete"] == 6
    assert trials_of(result)[0]["settings"] == {"finetune.learning_rate": 1e-6}
    assert result["best"]["settings"]["finetune.learning_rate"] > 1e-4
    assert result["gain"]["mean"] > 0.05
    test = result["test"]  # other users: what they say depends on luck at this size, but it is said
    assert test["gain"]["mean"] == pytest.approx(test["best"]["mean"] - test["recipe"]["mean"], abs=1e-4)
    # The winner: the file with one value changed, and nothing of it is made twice.
    winner = Path(result["winner"])
    text = winner.read_text(encoding="utf-8")
    assert "# A bad start." in text
    assert result["study"] in text
    found = load_recipe(winner)
    assert found.name == "small-tuned"
    assert found.finetune.learning_rate == result["best"]["settings"]["finetune.learning_rate"]
    before = load_recipe(recipe).model_dump(exclude={"name", "finetune"})
    assert found.model_dump(exclude={"name", "finetune"}) == before
    tuned = Workspace.of(found, tmp_path)
    assert prepare.stage(found, tuned).why_anew() is None
    assert finetune.stage(found, tuned).why_anew() is None
    assert len(list((winner.parent / "trials").iterdir())) == 1
    page = Path(result["page"]).read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert "as it is" in page
    # Once more: all is there, so that nothing is trained.
    with optimizer_steps() as steps:
        assert search(monkeypatch, capsys, recipe, *over, "--artifacts", tmp_path) == result
    assert not steps


@pytest.mark.slow
def test_a_hopeless_training_is_ended_early_and_leaves_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = "finetune.learning_rate=0.003,0.0031,0.0032,0.0033,0.0000001"
    with optimizer_steps() as steps:
        result = search(monkeypatch, capsys, recipe, "--over", rates, "--sampler", "grid", "--artifacts", tmp_path)
    assert (result["complete"], result["ended_early"]) == (4, 1)
    hopeless = trials_of(result)[-1]
    assert hopeless["state"] == "ended early"
    assert [number for number, _ in hopeless["evaluations"]] == [1, 2]
    assert len(steps) == 4 * STEPS + 2 * STEPS // EVALUATIONS
    assert result["best"]["trial"] != hopeless["trial"]
    assert len(list((Path(result["page"]).parent / "trials").iterdir())) == 1


def test_time_ends_a_training_that_the_next_search_goes_on_with(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [recipe, "--over", "finetune.learning_rate=0.01", "--sampler", "grid", "--artifacts", tmp_path]
    search_words = [*words, "--set", "finetune.learning_rate=0.01"]
    monkeypatch.setattr("tritonrank.search.search.Budget.seconds_left", property(_gone_after_one_trial_began()))
    assert main(monkeypatch, "search", *search_words) == 1  # no trial has come to its end
    monkeypatch.undo()
    with optimizer_steps() as steps:
        result = search(monkeypatch, capsys, *search_words)
    assert result["complete"] == 1
    assert len(steps) == STEPS - STEPS // EVALUATIONS


def _gone_after_one_trial_began() -> Any:
    asked = iter([60.0])
    return lambda budget: next(asked, 0.0)


@pytest.mark.slow
def test_only_pruning_is_searched_of_one_fine_tuned_ranker(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "finetune.learning_rate=0.01", "--set", "gate.prune_budget=0.99"]
    words += ["--over", "prune.layers=1,2", "--over", "prune.ffn_neurons=32,64", "--sampler", "grid"]
    with optimizer_steps() as steps:
        result = search(monkeypatch, capsys, recipe, *words, "--artifacts", tmp_path)
    assert len(steps) == STEPS
    assert result["complete"] == 4
    (kept,) = (Path(result["page"]).parent / "trials").iterdir()
    assert {path.name for path in kept.iterdir() if path.is_dir()} == {"pruned"}
    found = load_recipe(result["winner"])
    assert prune_stage.stage(found, Workspace.of(found, tmp_path)).why_anew() is None


@pytest.mark.slow
@pytest.mark.long
def test_a_search_goes_on_after_kill_nine_in_the_middle_of_a_training(recipe: Path, tmp_path: Path) -> None:
    words = ["--over", "finetune.learning_rate=1e-6..3e-2:log", "--trials", 3, "--pruner", "none"]
    killed = start(recipe, tmp_path, *words)
    assert killed.stdout is not None
    for line in killed.stdout:
        if re.search(r"^trial 1:", line):
            break
    (study,) = (tmp_path / "small" / "search").glob("small-*")
    deadline = time.monotonic() + 120
    while not any(study.glob("trials/*/teacher.work/checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    said, result = ended(start(recipe, tmp_path, *words))
    assert "its worker is gone; it is tried again" in said
    assert re.search(r"resuming from checkpoint-\d+", said)
    assert result["complete"] == 3
    whole = [trial for trial in trials_of(result) if trial["state"] == "complete"]
    assert all([number for number, _ in trial["evaluations"]] == [1, 2, 3] for trial in whole)
    assert len({json.dumps(trial["settings"]) for trial in whole}) == 3


@pytest.mark.slow
def test_two_processes_work_at_one_study_in_a_shared_journal(recipe: Path, tmp_path: Path) -> None:
    rates = "finetune.learning_rate=1e-6..3e-2:log:points=6"
    words = ["--over", rates, "--sampler", "grid", "--pruner", "none", "--storage", tmp_path / "study.journal"]
    both = [start(recipe, tmp_path / "one", *words), start(recipe, tmp_path / "two", *words)]
    outcomes = [ended(process) for process in both]
    result = max((result for _, result in outcomes), key=lambda one: int(one["complete"]))
    assert result["complete"] == 6
    begun = [set(re.findall(r"^trial (\d+):", said, re.MULTILINE)) for said, _ in outcomes]
    assert all(begun)
    assert not begun[0] & begun[1]
    rates_tried = [trial["settings"]["finetune.learning_rate"] for trial in trials_of(result)]
    assert len(rates_tried) == len(set(rates_tried)) == 6
    kept = [path for root in ("one", "two") for path in (tmp_path / root).glob("small/search/*/trials/*")]
    assert len(kept) <= 2  # the best; and what one worker held for the best before the other found better
    assert any(read_manifest(folder / "teacher").metrics["trained"] for folder in kept)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--over", "finetune.lerning_rate=1,2"], "did you mean learning_rate"),
        (["--over", "finetune.learning_rate=1e-6..1:log", "--sampler", "grid"], "learning_rate"),
        ([], "nothing is searched"),
        (["--study", "absent"], "there is no study absent"),
        (["--over", "finetune.epochs=1,2", "--set", "model.checkpoint=a/b"], "takes the checkpoint a/b as it is"),
        (["--over", "finetune.epochs=1,2", "--storage", "oracle://me:hunter2@db"], "oracle:// is not read"),
    ],
)
def test_what_cannot_be_is_one_message(
    recipe: Path,
    tmp_path: Path,
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, "search", recipe, *words, "--artifacts", tmp_path) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "hunter2" not in told
    assert "Traceback" not in told
