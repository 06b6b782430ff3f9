"""One network with its user shared and pair by pair: the same scores, fewer milliseconds, a verdict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from typer.testing import CliRunner

from loadtests import sharing
from loadtests.__main__ import app


def test_both_ways_are_timed_and_agree(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "sharing.json"
    options = ["--candidates", "3,30", "--requests", "3", "--least", "0", "--out", str(out)]
    done = CliRunner().invoke(app, ["sharing", str(workspace.root), *options])
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    timings = {(one["way"], one["candidates"]): one for one in record["timings"]}
    ways = {sharing.PAIRS, sharing.COMPUTED, sharing.CACHED, sharing.INT8_COMPUTED, sharing.INT8_CACHED}
    assert {*timings} == {(way, size) for way in ways for size in (3, 30)}
    assert all(len(one["milliseconds"]) == 3 and min(one["milliseconds"]) > 0 for one in timings.values())
    assert 0 <= record["largest difference of scores"] < sharing.TOLERANCE
    for place in record["geometry"]:
        count, shared, own = place["candidates"], place["shared_tokens"], place["candidate_tokens"]
        assert place["most"] == pytest.approx(count * (shared + own) / (shared + count * own))
        costs = [timings[way, count]["gflop"] for way in (sharing.PAIRS, sharing.COMPUTED, sharing.CACHED)]
        assert costs == sorted(costs, reverse=True)
        # Attention and the last layer are counted, too, so tokens alone are near and not exact.
        assert costs[0] / costs[1] == pytest.approx(place["most"], rel=0.5)
    assert json.loads(done.output.splitlines()[-1])["gain"] == pytest.approx(record["gain"])


def test_too_little_gain_is_a_failure(workspace: Workspace) -> None:
    options = ["--candidates", "1", "--requests", "1", "--least", "1000"]
    done = CliRunner().invoke(app, ["sharing", str(workspace.root), *options])
    assert done.exit_code == 1, done.output
    assert json.loads(done.output.splitlines()[-1])["passed"] is False


def test_scores_that_differ_end_it() -> None:
    pairs = np.array([1.0, -200.0], dtype=np.float32)
    assert sharing._difference(pairs, pairs + np.float32([1e-5, 1e-3])) < sharing.TOLERANCE
    with pytest.raises(ArtifactError, match="pair by pair"):
        sharing._difference(pairs, pairs + np.float32([1e-3, 0]))
    with pytest.raises(ArtifactError, match="same score"):
        sharing._difference(pairs[:1].repeat(2), pairs[:1].repeat(2))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--candidates", "10,1000"], "30 candidates each; lower --candidates"),
        (["--candidates", "many"], "expected numbers above 0"),
    ],
)
def test_what_cannot_be_timed_is_said(workspace: Workspace, options: list[str], why: str) -> None:
    done = CliRunner().invoke(app, ["sharing", str(workspace.root), *options])
    assert done.exit_code == 2
    assert why in json.loads(done.stdout.splitlines()[-1])["why"][0]


def test_without_its_checkpoint_the_next_command_is_named(workspace: Workspace, tmp_path: Path) -> None:
    for folder in (workspace.onnx, workspace.dataset):
        shutil.copytree(folder, tmp_path / folder.name)
    done = CliRunner().invoke(app, ["sharing", str(tmp_path)])
    assert done.exit_code == 2
    assert "tritonrank build" in done.output
