"""Real rankers beside what needs no training: one that loses is called that, and the recipe says what follows."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS, Build
from test_build_command import command_line
from test_pipeline import changed
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import GateError
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.report.answer import COMPARISON_FILE


def verdict_of(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.comparison / COMPARISON_FILE).read_text())["verdict"]
    return found


def settings_in(sentence: str) -> list[str]:
    return [shlex.split(value)[0] for value in re.findall(r"--set ('[^']*'|\S+)", sentence)]


@pytest.fixture
def trained(workspace: Workspace, tmp_path: Path) -> Workspace:
    """The tiny build as far as its training, judged already."""
    made = Workspace(tmp_path / "tiny")
    for folder in (workspace.dataset, workspace.teacher, workspace.judgements):
        shutil.copytree(folder, made.root / folder.name)
    return made


def test_a_ranker_that_loses_is_called_that_and_what_may_help_can_be_typed(
    workspace: Workspace, tiny_recipe: Recipe
) -> None:
    found = verdict_of(workspace)
    assert not found["success"]
    assert found["best"] == found["loses_to"][0]["name"] == "item kNN"
    assert found["loses_to"][0]["low"] > 0
    overrides = [settings_in(step) for step in found["next"]]
    assert all(overrides)
    for settings in overrides:
        loaded = load_recipe(TESTS / "tiny.yaml", [f"model.base={tiny_recipe.model.base}", *settings])
        assert loaded != tiny_recipe


def test_training_that_was_spoilt_is_told_what_spoilt_it(trained: Workspace, tiny_recipe: Recipe) -> None:
    shutil.rmtree(trained.teacher)
    run_stages(changed(tiny_recipe, "finetune", learning_rate=0.5, epochs=0.5), trained, until="compare")
    assert not verdict_of(trained)["success"]
    assert any("finetune.learning_rate=8e-05" in step for step in verdict_of(trained)["next"])


def test_a_ranker_that_wins_is_a_success(certain: Build, tmp_path: Path) -> None:
    build = certain.copied(tmp_path)
    run_stages(build.recipe, build.workspace, until="compare")
    found = verdict_of(build.workspace)
    assert found["success"]
    assert (found["best"], found["loses_to"], found["next"]) == ("checkpoint", [], [])


def test_stop_ends_the_build_after_training(trained: Workspace, tiny_recipe: Recipe) -> None:
    with pytest.raises(GateError, match="item kNN") as raised:
        run_stages(changed(tiny_recipe, "gate", training="stop"), trained)
    assert settings_in(str(raised.value))[-1] == "gate.training=warn"
    assert trained.teacher.is_dir()
    assert not trained.onnx.exists()


def test_the_recipe_decides_the_exit_code(
    workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workspace.root, tmp_path / "tiny")
    given = [TESTS / "tiny.yaml", "--artifacts", tmp_path, "--set", f"model.base={tiny_recipe.model.base}"]
    assert command_line(monkeypatch, "build", *given, "--set", "gate.training=ignore") == 0
    assert command_line(monkeypatch, "finetune", *given, "--set", "gate.training=warn") == 3
    assert command_line(monkeypatch, "finetune", *given, "--set", "gate.training=stop") == 1
