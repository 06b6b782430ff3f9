"""A second build does nothing, and says why where it does: with every real stage."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from tritonrank.artifacts import FORMAT, MANIFEST, manifest, read_manifest, verify_artifact
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline import stages as pipeline
from tritonrank.pipeline.stages import STAGES, run_stages, stages
from tritonrank.recipe import Recipe
from tritonrank.serve.serving import CheckedRepository


def with_every_stage(recipe: Recipe) -> Recipe:
    """The tiny recipe, pruned, distilled, cut into ranks and with all graphs for TensorRT."""
    values = recipe.model_dump(mode="json")
    values["prune"] = {"layers": 1, "heads": 2, "ffn_neurons": 64}
    values["distill"] = {"examples": 8, "pool": 6, "hard_negatives": 2, "random_negatives": 2, "epochs": 1}
    values["gate"] = {"budget": 0.99, "prune_budget": 1}
    values["tensorrt"] |= {"precisions": ["fp16", "int8-fp16"], "noise": 1_000.0}
    return Recipe.model_validate(values | {"tensor_parallel": 2})


def copied(workspace: Workspace, root: Path, *names: str) -> Workspace:
    for name in names:
        shutil.copytree(workspace.root / name, root / name)
    return Workspace(root)


def lines_of(output: str) -> dict[str, str]:
    """By verb the line that says that its stage runs, and why, or that it does not."""
    words = {line: line.split() for line in output.splitlines()}
    return {said[0]: line for line, said in words.items() if said[1:2] == ["->"] or said[1:4] == ["up", "to", "date"]}


@pytest.mark.slow
def test_a_second_run_does_nothing_for_any_stage(
    workspace: Workspace,
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = with_every_stage(tiny_recipe)
    made = copied(workspace, tmp_path / "tiny", "dataset", "teacher", "judgements")
    run_stages(recipe, made)
    first = lines_of(capsys.readouterr().out)
    assert len(first) == len(STAGES)
    assert {verb for verb, line in first.items() if "up to date" in line} == {"prepare", "finetune"}
    assert {verb for verb, line in first.items() if line.endswith("(new)")} == first.keys() - {"prepare", "finetune"}
    there = {path: path.stat().st_mtime_ns for path in made.root.rglob(MANIFEST)}
    run_stages(recipe, made)
    second = lines_of(capsys.readouterr().out)
    assert [line for line in second.values() if "up to date" not in line] == []
    assert second.keys() == first.keys()
    assert {path: path.stat().st_mtime_ns for path in made.root.rglob(MANIFEST)} == there

    for stage in stages(recipe, made):
        repaired = replace(stage, revision=stage.revision + 1).why_anew()
        assert repaired == f"{stage.verb}'s code has revision 2, the artifact revision 1"
    version = importlib.metadata.version
    for tool in manifest.RECORDED_TOOLS:
        with monkeypatch.context() as patched:
            patched.setattr(
                importlib.metadata, "version", lambda name, tool=tool: "99.1" if name == tool else version(name)
            )
            anew = {stage.verb: why for stage in stages(recipe, made) if (why := stage.why_anew()) is not None}
        assert anew == {
            stage.verb: f"made with {tool} {manifest.tool_version(tool)}, here is 99.1"
            for stage in stages(recipe, made)
            if tool in stage.tools
        }


def test_a_build_with_nothing_to_do_waits_for_no_library(
    workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Whether anything is to be done is known from the declarations; what makes artifacts takes seconds to load."""
    made = Workspace(tmp_path / "tiny")
    shutil.copytree(workspace.root, made.root)
    code = """
        import sys
        from pathlib import Path
        from tritonrank.artifacts.workspace import Workspace
        from tritonrank.pipeline.stages import run_stages
        from tritonrank.recipe import Recipe

        run_stages(Recipe.model_validate_json(sys.argv[1]), Workspace(Path(sys.argv[2])))
        print(sorted({"torch", "transformers", "optimum", "onnx", "onnxruntime", "scipy"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tiny_recipe.model_dump_json(), str(made.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert all("up to date" in line for line in lines)
    assert len(lines) == len(stages(tiny_recipe, made))


def test_every_stage_names_tools_that_manifests_record(tiny_recipe: Recipe) -> None:
    for stage in stages(with_every_stage(tiny_recipe), Workspace(Path("tiny"))):
        assert stage.tools, stage.verb
        assert set(stage.tools) <= set(manifest.RECORDED_TOOLS), stage.verb
        assert all(manifest.tool_version(tool) for tool in stage.tools), stage.verb


def test_a_repaired_stage_runs_again_and_what_comes_out_the_same_lets_the_others_stand(
    workspace: Workspace,
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = copied(workspace, tmp_path / "tiny", "dataset", "teacher", "onnx", "int8", "judgements")
    before = read_manifest(made.onnx)
    monkeypatch.setattr("tritonrank.pipeline.export.REVISION", 2)
    run_stages(tiny_recipe, made, until="quantize")
    said = lines_of(capsys.readouterr().out)
    assert said["export"].endswith("(export's code has revision 2, the artifact revision 1)")
    assert [verb for verb, line in said.items() if "up to date" in line] == ["prepare", "finetune", "quantize"]
    after = read_manifest(made.onnx)
    assert (after.artifact, after.revision) == (before.artifact, 2)


def test_another_library_makes_its_stages_anew(
    workspace: Workspace,
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = copied(workspace, tmp_path / "tiny", "dataset", "teacher", "onnx")
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.1" if name == "onnxruntime" else version(name))
    before = read_manifest(made.onnx).tools["onnxruntime"]
    run_stages(tiny_recipe, made, until="export")
    said = lines_of(capsys.readouterr().out)
    assert said["export"].endswith(f"(made with onnxruntime {before}, here is 99.1)")
    assert [verb for verb, line in said.items() if "up to date" in line] == ["prepare", "finetune"]
    assert read_manifest(made.onnx).tools["onnxruntime"] == "99.1"


def as_written_before(folder: Path) -> None:
    """The manifest of an artifact in the format that had neither revisions nor tools in its key."""
    path = folder / MANIFEST
    recorded = json.loads(path.read_text())
    del recorded["revision"]
    path.write_text(json.dumps(recorded | {"format": 1, "key": "0" * 64}))


def test_artifacts_of_the_earlier_format_are_served_and_made_anew(
    workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = copied(workspace, tmp_path / "tiny", "dataset", "teacher", "repository")
    before = read_manifest(made.dataset)
    as_written_before(made.dataset)
    as_written_before(made.repository)
    CheckedRepository(made.repository).check()
    assert verify_artifact(made.repository).format == 1
    run_stages(tiny_recipe, made, until="finetune")
    said = lines_of(capsys.readouterr().out)
    assert f"format 1 of {MANIFEST}, not {FORMAT}" in said["prepare"]
    assert "up to date" in said["finetune"], "its dataset came out as it was"
    assert read_manifest(made.dataset).artifact == before.artifact


def test_what_is_declared_is_what_is_listed(tiny_recipe: Recipe) -> None:
    """One function per stage, and one verb and folder for each."""
    made: list[Stage] = [listed.stage(with_every_stage(tiny_recipe), Workspace(Path("tiny"))) for listed in STAGES]
    assert len({stage.verb for stage in made}) == len({stage.folder for stage in made}) == len(STAGES)
    assert [stage.verb for stage in pipeline.stages(with_every_stage(tiny_recipe), Workspace(Path("tiny")))] == [
        stage.verb for stage in made
    ]
    for stage in made:
        earlier = {one.folder for one in made[: made.index(stage)]}
        assert set(stage.parents.values()) <= earlier, f"{stage.verb} comes before one of its parents"
