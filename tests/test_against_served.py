"""A new build is judged against the one that is served, as that is served, on the new build's requests."""

import json
import shutil
from pathlib import Path

import pytest
from tritonrank.artifacts.builds import recorded_builds
from tritonrank.artifacts.promotions import promote
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.evaluate import Judgement, judge_artifact
from tritonrank.judge.gate import paired_difference
from tritonrank.report.against_served import against_served, judge_repository


@pytest.fixture
def copied(workspace: Workspace, tmp_path: Path) -> Workspace:
    """The tiny build, served, with another repository in the stages' folder, as after a further build."""
    root = tmp_path / "tiny"
    shutil.copytree(workspace.root, root, symlinks=True)
    (build,) = recorded_builds(root)
    promote(root, build.name)
    manifest = root / "repository" / "manifest.json"
    told = json.loads(manifest.read_text()) | {"artifact": "0" * 64}
    manifest.unlink()
    manifest.write_text(json.dumps(told))
    return Workspace(root)


@pytest.fixture
def challenger(copied: Workspace) -> Judgement:
    return judge_artifact("ONNX FP32", copied.onnx, copied.dataset, copied.judgements)


def test_a_repository_ranks_as_the_model_that_it_was_assembled_of(copied: Workspace, tmp_path: Path) -> None:
    (build,) = recorded_builds(copied.root)
    judged = judge_repository("served", build.repository, copied.dataset, tmp_path / "judgements")
    expected = judge_artifact("INT8", copied.int8, copied.dataset, copied.judgements)
    assert judged.table.equals(expected.table)
    assert [path.suffix for path in (tmp_path / "judgements").iterdir()] == [".parquet"]


def test_the_difference_is_paired_and_names_the_build(copied: Workspace, challenger: Judgement) -> None:
    (build,) = recorded_builds(copied.root)
    champion = judge_artifact("INT8", copied.int8, copied.dataset, copied.judgements)
    expected = paired_difference(challenger, champion)
    found = against_served(copied, challenger)
    assert found is not None
    assert found["build"] == build.name
    assert (found["difference"], found["low"], found["high"]) == (expected.mean, expected.low, expected.high)
    assert found["better"] is (True if expected.low > 0 else False if expected.high < 0 else None)


def test_nothing_is_said_where_the_same_is_served_or_nothing_is(
    workspace: Workspace, copied: Workspace, challenger: Judgement
) -> None:
    assert against_served(workspace, challenger) is None
    (copied.root / "served").unlink()
    assert against_served(copied, challenger) is None


@pytest.mark.parametrize("gone", ["ranker/1/tokenizer.json", "ranker/1/weights.bin", "manifest.json"])
def test_a_served_build_that_cannot_be_judged_costs_one_line(
    gone: str, copied: Workspace, challenger: Judgement, capsys: pytest.CaptureFixture[str]
) -> None:
    (build,) = recorded_builds(copied.root)
    (build.repository / gone).unlink()
    assert against_served(copied, challenger) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert "cannot be judged" in line
