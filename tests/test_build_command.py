"""``tritonrank build`` and ``tritonrank evaluate`` at the command line."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from conftest import TESTS, Build
from onnx import numpy_helper
from test_built import ran_and_skipped, read_summary
from test_pipeline import VERBS
from tritonrank import cli
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import GateError, RecipeError
from tritonrank.recipe import Recipe
from tritonrank.report.answer import LOST_EXIT_CODE


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run ``tritonrank`` in this process and give its exit code."""
    monkeypatch.setattr("sys.argv", ["tritonrank", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    return int(raised.value.code or 0)


def test_build_ends_with_one_line_of_json(
    workspace: Workspace, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"model.base={tiny_recipe.model.base}"
    code = command_line(monkeypatch, "build", TESTS / "tiny.yaml", "--set", base, "--artifacts", workspace.root.parent)
    out = capsys.readouterr().out
    assert code == LOST_EXIT_CODE  # so small a ranker loses to item kNN
    assert ran_and_skipped(out) == ([], VERBS)
    last = json.loads(out.splitlines()[-1])
    assert last["recipe"] == "tiny"
    assert last["ndcg@10"] == {name: row["ndcg@10"]["mean"] for name, row in read_summary(workspace).items()}
    table = out.splitlines()[:-1]  # for people, before the line for scripts
    for name, row in read_summary(workspace).items():
        interval = f"[{row['ndcg@10']['low']:.3f} {row['ndcg@10']['high']:.3f}]"
        (line,) = [line for line in table if line.strip(" >").startswith(name) and interval in line]
        if name != "fine-tuned":
            shown = row.get("gain") or row["difference"]
            assert f"[{shown['low']:+.3f} {shown['high']:+.3f}]" in line  # not cut off


@pytest.fixture
def reversed_graph(certain: Build, tmp_path: Path) -> Path:
    """The FP32 graph with its head negated: the best candidate comes last."""
    folder = tmp_path / "reversed"
    shutil.copytree(certain.workspace.onnx, folder)
    model = onnx.load(folder / "model.onnx")
    head = next(node for node in model.graph.node if "logits" in node.output)
    for tensor in model.graph.initializer:
        if tensor.name in head.input:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, folder / "model.onnx")
    return folder


def test_evaluate_passes_what_ranks_the_same(
    certain: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = certain.workspace.root.parent
    code = command_line(
        monkeypatch, "evaluate", certain.recipe_path, "--artifacts", root, "--artifact", certain.workspace.onnx
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "ndcg@10    1.000 [1.000, 1.000]   teacher: 1.000 [1.000, 1.000]" in out
    assert "gate passed on 40 requests, onnx against teacher" in out


def test_evaluate_fails_what_ranks_worse(
    certain: Build,
    reversed_graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = certain.copied(tmp_path)
    arguments = ["evaluate", build.recipe_path, "--artifacts", tmp_path, "--artifact", reversed_graph]
    assert command_line(monkeypatch, *arguments) == GateError.exit_code == 1
    captured = capsys.readouterr()
    assert "ndcg@10    0.0" in captured.out
    assert "GateError: gate closed: reversed against teacher" in captured.err


def test_the_budget_decides(
    certain: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """INT8 costs this build a few percent: within the recipe's 15%, far beyond 0.01%."""
    root, int8 = certain.workspace.root.parent, certain.workspace.int8
    arguments = ["evaluate", certain.recipe_path, "--artifacts", root, "--artifact", int8]
    assert command_line(monkeypatch, *arguments) == 0
    assert command_line(monkeypatch, *arguments, "--set", "gate.budget=0.0001") == 1
    assert "the budget is 0.01%" in capsys.readouterr().err.replace("\n", " ")


def test_evaluate_without_a_build_says_what_to_do(
    certain: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", certain.recipe_path, "--artifacts", tmp_path, "--artifact", certain.workspace.onnx]
    assert command_line(monkeypatch, *arguments) == RecipeError.exit_code == 2
    error = capsys.readouterr().err
    assert "ArtifactError" in error
    assert "tritonrank build" in error
    assert "Traceback" not in error
