"""Whatever is named to ``tritonrank serve``: it says what that is, and what to type instead."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonrank import cli
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, RecipeError, ServerError
from tritonrank.recipe import load_recipe
from tritonrank.serve import triton_install
from tritonrank.serve.servable import repository_of
from tritonrank.serve.server import LocalTriton

RECIPES = Path(__file__).parents[1] / "build" / "recipes"


def made_by(folder: Path, stage: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"stage": stage}))
    return folder


def written(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def finished(build: Path) -> Path:
    for name, stage in (("dataset", "prepare"), ("int8", "quantize"), ("repository", "assemble")):
        made_by(build / name, stage)
    return build


def half(build: Path) -> Path:
    for name, stage in (("dataset", "prepare"), ("teacher", "finetune")):
        made_by(build / name, stage)
    return build


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a recipe": (
        lambda root: written(root / "my shop.yaml", "name: shop\n"),
        r"recipe.*tritonrank build '.*my shop\.yaml' && tritonrank serve artifacts/shop",
    ),
    "another YAML file": (lambda root: written(root / "x.yml", "- 1\n"), r"no recipe.*tritonrank serve artifacts/"),
    "broken YAML": (lambda root: written(root / "x.yaml", "a: [\n"), r"no recipe.*tritonrank serve artifacts/"),
    "a folder of recipes": (lambda _: RECIPES, r"recipes.*tritonrank build .*\.yaml"),
    "nothing": (lambda root: root / "absent", r"no such file or folder.*tritonrank build RECIPE"),
    "a recipe's name": (
        lambda root: written(root / "shop.yaml", "name: shop").with_suffix(""),
        r"no such file or folder.*tritonrank build .*shop\.yaml",
    ),
    "a checkpoint": (
        lambda root: written(root / "model" / "config.json", "{}").parent,
        r"checkpoint.*tritonrank up .*model: \{checkpoint: \"/.*model\"\}.*tritonrank build RECIPE",
    ),
    "weights": (lambda root: written(root / "model.safetensors"), r"weights.*tritonrank build RECIPE"),
    "an ONNX file": (lambda root: written(root / "model.onnx"), r"ONNX graph.*tritonrank serve artifacts/"),
    "an ONNX file of a build": (
        lambda root: written(finished(root / "demo") / "int8" / "model.onnx"),
        r"ONNX graph.*tritonrank serve .*/demo$",
    ),
    "ONNX files": (lambda root: written(root / "g" / "model.onnx").parent, r"ONNX graphs.*tritonrank build RECIPE"),
    "a pack": (lambda root: written(root / "demo.pack.tar.gz"), r"archive.*tritonrank gpu-check .*demo\.pack"),
    "a manifest": (lambda root: made_by(root / "a", "assemble") / "manifest.json", r"manifest.*tritonrank serve .*/a$"),
    "an empty folder": (lambda root: root, r"empty folder.*manifest\.json.*tritonrank build RECIPE"),
    "a folder of anything": (lambda root: written(root / "x" / "a.txt").parent, r"no artifact.*tritonrank build"),
    "a stage of a build": (lambda root: finished(root / "demo") / "int8", r"stage quantize.*tritonrank serve .*/demo$"),
    "a stage of half a build": (
        lambda root: half(root / "demo") / "teacher",
        r"stage finetune.*onnx \(export\), int8 \(quantize\), repository \(assemble\).*tritonrank build",
    ),
    "half a build": (
        lambda root: half(root / "demo"),
        r"not finished.*onnx \(export\), int8 \(quantize\), repository \(assemble\).*tritonrank build RECIPE",
    ),
    "a folder of builds": (lambda root: finished(root / "demo").parent, r"folder of builds.*tritonrank serve .*/demo$"),
    "a build for a GPU": (
        lambda root: made_by(half(root / "demo") / "repository-tensorrt", "assemble").parent,
        r"another target.*tritonrank serve .*/repository-tensorrt$",
    ),
    "another's Triton repository": (
        lambda root: written(root / "echo" / "config.pbtxt").parents[1],
        r"Triton repository.*tritonrank assemble RECIPE",
    ),
    "any file": (lambda root: written(root / "notes.txt"), r"a file.*tritonrank build RECIPE"),
}


@pytest.mark.parametrize(("make", "expected"), CASES.values(), ids=CASES.keys())
def test_what_is_no_artifact_is_named_with_the_next_command(
    tmp_path: Path, make: Callable[[Path], Path], expected: str
) -> None:
    named = make(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        repository_of(named)
    message = str(caught.value)
    assert message.startswith(f"{named}: ")
    assert re.search(expected, message), message
    assert not re.search(r"\b[Dd]elete\b|\brm\b", message), "it may be somebody's work"


MISTAKES = ("a recipe", "nothing", "a checkpoint", "an empty folder", "a stage of half a build", "half a build")


@pytest.mark.parametrize("verb", ["report", "pack"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_verbs_that_want_a_build_say_it_too(
    verb: str, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = CASES[mistake][0](tmp_path)
    monkeypatch.setattr(sys, "argv", ["tritonrank", verb, str(named)])
    with pytest.raises(SystemExit) as exit_of:
        cli.main()
    assert exit_of.value.code == 2
    message = capsys.readouterr().err
    assert f"ArtifactError: {named}: " in message
    assert "tritonrank build" in message
    assert "tritonrank serve" not in message
    if "half" not in mistake:
        assert f"tritonrank {verb} artifacts/" in message


def test_a_recipe_that_comes_along_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="tritonrank build demo && tritonrank serve artifacts/demo"):
        repository_of(Path("demo"))


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        ("half a build", r"folder of a build.*demo\.yaml.*--artifacts"),
        ("a checkpoint", r"checkpoint.*tritonrank up .*model\.base"),
        ("a folder of recipes", r"folder; a recipe is a YAML file, such as .*\.yaml"),
        ("an empty folder", r"folder; a recipe is a YAML file.*tritonrank init"),
    ],
)
def test_a_folder_in_place_of_a_recipe_is_named(mistake: str, expected: str, tmp_path: Path) -> None:
    named = CASES[mistake][0](tmp_path)
    with pytest.raises(RecipeError, match=expected):
        load_recipe(named)


def test_the_recipes_folder_and_the_repository_are_both_taken(tmp_path: Path) -> None:
    build = finished(tmp_path / "demo")
    assert repository_of(build) == repository_of(build / "repository") == build / "repository"
    assert repository_of(made_by(tmp_path / "elsewhere", "assemble")) == tmp_path / "elsewhere"


def test_a_manifest_that_cannot_be_read_is_left_to_its_reader(tmp_path: Path) -> None:
    written(tmp_path / "manifest.json", "{")
    assert repository_of(tmp_path) == tmp_path


def test_the_command_tells_it_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path / "shop.yaml", "name: shop\n")
    monkeypatch.setattr(sys, "argv", ["tritonrank", "serve", str(recipe)])
    with pytest.raises(SystemExit) as exit_of:
        cli.main()
    assert exit_of.value.code == 2
    assert f"tritonrank build {recipe} && tritonrank serve artifacts/shop" in capsys.readouterr().err


def test_a_real_build_is_taken(workspace: Workspace) -> None:
    assert repository_of(workspace.root) == workspace.repository


@pytest.mark.parametrize("host", ["::1", "::", "localhost.example"])
def test_an_address_is_refused_for_the_right_cause(workspace: Workspace, host: str) -> None:
    with pytest.raises(ServerError, match=rf"127\.0\.0\.1 only, not on {host}"):
        LocalTriton(workspace.repository, host=host).start()


def test_a_container_has_no_ipv6(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written(tmp_path / "bin" / "tritonserver")
    monkeypatch.setattr(triton_install, "CONTAINER_ROOT", tmp_path)
    with pytest.raises(ServerError, match=r"::1.*IPv4.*0\.0\.0\.0"):
        triton_install.check_host("::1")
