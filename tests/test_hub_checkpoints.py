"""Checkpoints of the hub: which commit a build is of, what pins it, and what happens without a network."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from fake_hub import FakeHub, point_at, running_hub
from safetensors.torch import load_file, save_file
from test_checkpoints import change_json, only_pickled, recipe_for, refusal, sharded, values_for
from tiny_models import save_ranker
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.pipeline.finetune import check_models
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers import checkpoint_source
from tritonrank.recipe import PACKAGED_MINILM, Recipe

MODEL = "org/ranker"


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    checkpoint_source.forget_the_hub()
    yield
    checkpoint_source.forget_the_hub()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    with running_hub() as running:
        point_at(running, tmp_path / "cache", monkeypatch)
        yield running


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    """A ranker, and the same after some more training."""
    first = save_ranker("bert", tmp_path / "first")
    (first / "README.md").write_text("not downloaded")
    second = shutil.copytree(first, tmp_path / "second")
    weights = load_file(second / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    return first, second


def cached(folder: Path, cache: Path, sha: str, branch: str = "main") -> None:
    """What the hub's cache holds after a download."""
    model = cache / f"models--{MODEL.replace('/', '--')}"
    shutil.copytree(folder, model / "snapshots" / sha)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / branch).write_text(sha)


def bias_of(folder: Path) -> float:
    return float(load_file(folder / "model.safetensors")["classifier.bias"])


def build(recipe: Recipe, root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    """Build up to the checkpoint as a new process: whether it was up to date, and what was said."""
    checkpoint_source.forget_the_hub()
    run_stages(recipe, Workspace.of(recipe, root), until="finetune")
    said = capsys.readouterr()
    (line,) = (line for line in said.out.splitlines() if line.startswith("finetune"))
    return "up to date" in line, said.err


def test_a_build_is_of_one_commit_and_starts_anew_when_the_branch_moved(
    hub: FakeHub, versions: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = hub.push(MODEL, versions[0])
    recipe, pinned = recipe_for(MODEL), recipe_for(MODEL, revision=first)
    teacher = Workspace.of(recipe, tmp_path / "a").teacher
    is_current, said = build(recipe, tmp_path / "a", capsys)
    assert not is_current
    assert first in said
    assert read_manifest(teacher).settings["model_identity"] == f"{MODEL}@{first}"
    assert sorted(set(hub.downloaded)) == sorted(p.name for p in versions[0].iterdir() if p.name != "README.md")
    assert build(recipe, tmp_path / "a", capsys)[0]
    assert not build(pinned, tmp_path / "b", capsys)[0]

    second = hub.push(MODEL, versions[1])
    is_current, said = build(recipe, tmp_path / "a", capsys)
    assert not is_current
    assert second in said
    assert bias_of(teacher) == bias_of(versions[1])
    assert build(pinned, tmp_path / "b", capsys)[0]
    assert bias_of(Workspace.of(pinned, tmp_path / "b").teacher) == bias_of(versions[0])


def test_branches_tags_and_short_commits_are_revisions(
    hub: FakeHub, versions: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = hub.push(MODEL, versions[0], branch="v1.0")
    hub.push(MODEL, versions[1])
    for number, revision in enumerate(("v1.0", first, first[:8])):
        recipe = recipe_for(MODEL, revision=revision)
        assert first in build(recipe, tmp_path / str(number), capsys)[1]
        assert bias_of(Workspace.of(recipe, tmp_path / str(number)).teacher) == bias_of(versions[0])
    assert "model.revision" in refusal(MODEL, revision="v9")


def test_a_base_has_a_revision_too(
    hub: FakeHub, versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.push(MODEL, versions[0])
    hub.push(MODEL, versions[1])
    recipe = recipe_for(MODEL, "base", revision=first)
    assert recipe.model.untrained.revision == first
    assert recipe_for(MODEL, revision=first).model.untrained.source == PACKAGED_MINILM
    assert recipe_for(MODEL, revision=first).model.untrained.revision is None
    check_models(recipe, Workspace(tmp_path))


def test_without_a_network_the_cached_commit_is_taken_and_named(
    versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, root = tmp_path / "cache", tmp_path / "a"
    shas = "1" * 40, "2" * 40
    point_at(None, cache, monkeypatch)
    cached(versions[0], cache, shas[0])
    recipe, pinned = recipe_for(MODEL), recipe_for(MODEL, revision=shas[0])
    is_current, said = build(recipe, root, capsys)
    assert not is_current
    assert shas[0] in said
    assert "cache" in said
    assert build(recipe, root, capsys)[0]
    build(pinned, tmp_path / "b", capsys)

    cached(versions[1], cache, shas[1])  # the branch moved
    assert not build(recipe, root, capsys)[0]
    assert bias_of(Workspace.of(recipe, root).teacher) == bias_of(versions[1])
    assert build(pinned, tmp_path / "b", capsys)[0], "pinned"
    assert build(recipe_for(MODEL, revision=shas[0][:7]), tmp_path / "c", capsys)[1].count(shas[0]) == 1


def test_a_cache_that_holds_only_a_part_is_told_so(
    versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(None, tmp_path / "cache", monkeypatch)
    (versions[0] / "model.safetensors").unlink()
    cached(versions[0], tmp_path / "cache", "3" * 40)
    assert "model.safetensors" in refusal(MODEL)


def test_a_hub_that_cannot_be_asked_is_no_wait(
    hub: FakeHub, versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent, out of order, or not there: a few seconds, then the cache, or what to do without a network."""
    monkeypatch.setattr(checkpoint_source, "HUB_SECONDS", 0.5)
    hub.push(MODEL, versions[0])
    hub.is_slow = True
    started = time.monotonic()
    message = refusal(MODEL)
    assert time.monotonic() - started < 5
    for hint in ("hf download", "HF_HUB_OFFLINE=1", "HF_HOME", str(tmp_path / MODEL)):
        assert hint in message
    hub.is_slow = False
    hub.status = 503
    checkpoint_source.forget_the_hub()
    assert "hf download" in refusal(MODEL)
    cached(versions[0], tmp_path / "cache", "4" * 40)
    checkpoint_source.forget_the_hub()
    check_models(recipe_for(MODEL), Workspace(tmp_path))
    hub.status = None
    point_at(FakeHub(url="http://127.0.0.1:9"), tmp_path / "empty", monkeypatch)
    checkpoint_source.forget_the_hub()
    assert "hf download" in refusal(MODEL)


def test_what_the_hub_refuses_is_explained(hub: FakeHub, tmp_path: Path) -> None:
    message = refusal("org/absent")
    assert "hf auth login" in message
    assert str(tmp_path / "org/absent") in message, "perhaps a folder was meant"
    hub.status, hub.error_code = 403, "GatedRepo"
    checkpoint_source.forget_the_hub()
    assert "terms" in refusal("org/gated")


def test_weights_are_not_downloaded_of_what_is_refused(hub: FakeHub, versions: tuple[Path, Path]) -> None:
    change_json(versions[0] / "config.json", id2label={"0": "a", "1": "b"})
    hub.push(MODEL, versions[0])
    assert "one label" in refusal(MODEL)
    assert "model.safetensors" not in hub.downloaded


def test_shards_are_downloaded_and_pickles_are_not(hub: FakeHub, versions: tuple[Path, Path], tmp_path: Path) -> None:
    names = {path.name for path in sharded(versions[0])}
    hub.push(MODEL, versions[0])
    check_models(recipe_for(MODEL), Workspace(tmp_path))
    assert names <= set(hub.downloaded)
    only_pickled(versions[1])
    hub.push("org/pickled", versions[1])
    message = refusal("org/pickled")
    assert 'from_pretrained("org/pickled")' in message
    assert 'save_pretrained("pickled")' in message
    assert "pytorch_model.bin" not in hub.downloaded


def test_code_at_the_hub_is_refused_before_it_is_there(hub: FakeHub, versions: tuple[Path, Path]) -> None:
    change_json(versions[0] / "config.json", auto_map={"AutoModel": "mine.Mine"})
    (versions[0] / "mine.py").write_text("raise SystemExit('code ran')\n")
    hub.push(MODEL, versions[0])
    assert "code of the checkpoint" in refusal(MODEL)
    assert "mine.py" not in hub.downloaded


def test_a_folder_of_the_name_comes_first(hub: FakeHub, versions: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(versions[0], tmp_path / MODEL)
    check_models(recipe_for(MODEL), Workspace(tmp_path))
    assert not hub.downloaded
    assert "no such folder" in refusal("org/other"), "org/ is a folder here, so a folder is meant"
    with pytest.raises(ArtifactError, match="no such folder"):
        check_models(recipe_for("./nowhere/ranker"), Workspace(tmp_path))


@pytest.mark.slow
def test_the_command_line_works_offline_and_says_the_commit(versions: tuple[Path, Path], tmp_path: Path) -> None:
    cached(versions[0], tmp_path / "home" / "hub", "5" * 40)
    recipe = tmp_path / "only.yaml"
    recipe.write_text(yaml.safe_dump(values_for(MODEL)))
    done = subprocess.run(
        [sys.executable, "-m", "tritonrank", "finetune", str(recipe)],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "5" * 40 in done.stderr
    settings = read_manifest(tmp_path / "artifacts" / "only" / "teacher").settings
    assert settings["model_identity"] == f"{MODEL}@{'5' * 40}"
    assert torch.equal(
        load_file(tmp_path / "artifacts/only/teacher/model.safetensors")["classifier.bias"],
        load_file(versions[0] / "model.safetensors")["classifier.bias"],
    )
