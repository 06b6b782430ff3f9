"""``tritonrank build --quick``: what it trains, what it says, and that it leaves a build alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS
from tritonrank import cli
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import RecipeError
from tritonrank.pipeline.quick import run_quick, seconds_of_build
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.report.quick import sizes_of_runs
from tritonrank.report.quick_table import best_baseline, in_words, quick_json, read_quick, show_quick

DEMO = TESTS.parent / "build" / "recipes" / "demo.yaml"


def interval(mean: float, half: float = 0.02) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def chance(better: float, difference: float) -> dict[str, Any]:
    return {"better": better, "difference": interval(difference)}


def result(**changes: Any) -> dict[str, Any]:
    """A quick.json in which item kNN is the best baseline."""
    return {
        "recipe": "shop",
        "training_examples": 8_000,
        "positives_to_learn_from": 30_000,
        "test_users": 200,
        "validation_users": 100,
        "runs": [
            {
                "examples": size,
                "steps": size // 8,
                "training_seconds": 3.0 + 0.1 * size,
                "judging_seconds": 20.0,
                "ndcg@10": interval(0.1 + 0.04 * number),
            }
            for number, size in enumerate((100, 200, 400, 800))
        ],
        "baselines": {"random": interval(0.05), "item kNN": interval(0.3), "zero-shot cosine": interval(0.2)},
        "has_learnt": True,
        "forecasts": [
            {
                "examples": examples,
                "ndcg@10": interval(0.33),
                "against": {"item kNN": chance(0.97, 0.03), "zero-shot cosine": chance(1.0, 0.13)},
            }
            for examples in (8_000, 16_000)
        ],
    } | changes


def said(**changes: Any) -> str:
    return "\n".join(in_words(result(**changes)))


@pytest.mark.parametrize(
    ("examples", "sizes"),
    [(12_000, [150, 300, 600, 1_200]), (2_400, [40, 80, 160, 320]), (800, [25, 50, 100, 200])],
)
def test_the_largest_run_takes_a_tenth_and_each_other_half_of_the_next(examples: int, sizes: list[int]) -> None:
    assert sizes_of_runs(examples) == sizes


def test_too_few_examples_are_refused_with_the_way_out() -> None:
    with pytest.raises(RecipeError, match="leave --quick out"):
        sizes_of_runs(199)


def test_a_checkpoint_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(DEMO, ["model.checkpoint=somebody/ranker"])
    with pytest.raises(RecipeError, match=r"somebody/ranker.*model\.base"):
        run_quick(recipe, Workspace(tmp_path), ["tritonrank"])


def test_the_best_baseline_is_the_one_to_beat() -> None:
    assert best_baseline(result()) == "item kNN"
    assert quick_json(result())["chance_to_beat_it"] == 0.97


@pytest.mark.parametrize(
    ("better", "words"), [(0.97, "likely to beat"), (0.02, "likely to stay behind"), (0.6, "open")]
)
def test_what_is_said_of_the_baseline_follows_the_chance(better: float, words: str) -> None:
    forecasts = result()["forecasts"]
    forecasts[0]["against"]["item kNN"] = chance(better, 0.0)
    assert words in said(forecasts=forecasts)


def test_doubt_is_said() -> None:
    assert "wide" not in said()
    forecasts = result()["forecasts"]
    forecasts[0]["ndcg@10"] = interval(0.3, half=0.1)
    assert "wide" in said(forecasts=forecasts)
    nothing = said(has_learnt=False)
    assert "No forecast" in nothing
    assert quick_json(result(has_learnt=False))["forecast"] is None
    assert "likely" not in nothing
    assert "item kNN" in nothing


def test_more_examples_are_advised_as_far_as_there_are_any() -> None:
    assert "examples.training_examples=16000" in said()
    assert "examples.training_examples=9000" in said(positives_to_learn_from=9_000)
    assert "finetune.epochs" in said(positives_to_learn_from=8_000)


def test_the_table_fits_80_columns_and_the_last_line_is_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    show_quick(result(), "about 5 min", "tritonrank build shop.yaml")
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["forecast"]["examples"] == 8_000
    table = lines[: next(place for place, line in enumerate(lines) if line.startswith("With all"))]
    assert max(map(len, table)) <= 80
    for cell in ("100 examples (1.2%)", "8,000 examples, forecast", "item kNN", "[0.280 0.320]"):
        assert any(cell in line for line in table)
    assert "tritonrank build shop.yaml" in lines[-2]


def test_the_time_of_a_build_comes_from_the_runs_and_not_from_a_table(tmp_path: Path) -> None:
    recipe = load_recipe(DEMO, ["examples.validation_users=100", "finetune.evaluations=3"])
    seconds = seconds_of_build(recipe, Workspace(tmp_path), result())
    assert seconds["finetune"] == pytest.approx(0.1 * 8_000 + 3 * 100 * 20 / 200)
    slower = result()
    for run in slower["runs"]:
        run["judging_seconds"] *= 1.5
    assert seconds_of_build(recipe, Workspace(tmp_path), slower)["export"] >= seconds["export"]


@pytest.mark.slow
def test_the_command_leaves_a_build_alone(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [TESTS / "tiny.yaml", "--set", f"model.base={tiny_recipe.model.base}", "--artifacts", tmp_path]
    words += ["--set", "examples.test_users=40"]

    def run() -> str:
        monkeypatch.setattr("sys.argv", ["tritonrank", *map(str, ["build", *words, "--quick"])])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        assert not raised.value.code
        return capsys.readouterr().out

    first = run()
    assert first.index("leave --quick out") < first.index("run on 8 examples")
    workspace = Workspace(tmp_path / "tiny")
    found = read_quick(workspace.quick)
    assert [one["examples"] for one in found["runs"]] == [8, 16, 32, 64]
    assert [one["steps"] for one in found["runs"]] == [2, 4, 8, 16]
    assert [one["examples"] for one in found["forecasts"]] == [256, 512]
    assert set(found["forecasts"][0]["against"]) == {"popularity", "item kNN", "zero-shot cosine"}
    assert not workspace.teacher.exists()
    assert not list(workspace.quick.glob("*.safetensors"))
    assert not workspace.quick.with_name("quick.work").exists()
    assert f"tritonrank build {words[0]}" in first.splitlines()[-2]
    again = run()
    assert "quick      up to date" in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
