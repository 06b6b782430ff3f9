"""The table's last lines: what is served, what it could not read, and whether it is worth its place at all."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tritonrank.judge.evaluate import Judgement
from tritonrank.report.summary import beaten_by
from tritonrank.report.summary_table import SUMMARY_FILE, defeat_in_words, show_summary


def judgement(name: str, values: Sequence[float]) -> Judgement:
    count = len(values)
    columns = {"example_id": [f"u{n}:3" for n in range(count)], "labels": [[1, 0]] * count, "ndcg@10": list(values)}
    return Judgement(name, pl.DataFrame(columns))


def test_only_free_baselines_that_are_better_beyond_doubt_count() -> None:
    served = np.full(60, 0.3)
    noise = np.tile([0.5, -0.5], 30)
    baselines = {
        "random": served + 0.5,
        "popularity": served + 0.01 + noise,
        "item kNN": served + 0.1,
        "zero-shot cosine": served + 0.2 + 0.1 * noise,
        "untrained": served + 0.5,
        "checkpoint, uncut": served + 0.3,
    }
    judged = {name: judgement(name, values.tolist()) for name, values in baselines.items()}
    found = beaten_by(judgement("INT8", served.tolist()), judged)
    assert [one["name"] for one in found] == ["checkpoint, uncut", "zero-shot cosine", "item kNN"]
    assert found[2]["difference"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    worse = {name: judgement(name, (served - 0.1).tolist()) for name in baselines}
    assert beaten_by(judgement("INT8", served.tolist()), worse) == []


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def summary_of(folder: Path, *, trained: bool, beaten: bool) -> Path:
    teacher = "fine-tuned" if trained else "checkpoint"
    quality = {"ndcg@10": interval(0.3), "difference": interval(0.0)}
    costs = {"parameters": 1_000, "gflop_per_request": 1.0, "megabytes": 2.0, "milliseconds_per_100": 3.0}
    result = {
        "recipe": "shop",
        "examples": 50,
        "teacher": teacher,
        "served": "INT8",
        "trained": trained,
        "beaten_by": [{"name": "zero-shot cosine", "difference": interval(0.2)}] if beaten else [],
        "rows": [
            {"name": "zero-shot cosine", **quality},
            *({"name": name, **quality, **costs} for name in (teacher, "INT8")),
        ],
    }
    folder.mkdir()
    (folder / SUMMARY_FILE).write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(
    ("trained", "command"), [(True, "--set examples.training_examples="), (False, "name it as model.base")]
)
def test_a_ranker_that_loses_to_a_free_baseline_is_said_so_at_the_end(
    trained: bool, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_summary(summary_of(tmp_path / "lost", trained=trained, beaten=True))
    *table, before, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["recipe"] == "shop"
    assert "zero-shot cosine ranks better than INT8 by +0.200 [+0.100 +0.300]" in before
    assert command in before
    assert any("+ better, - worse" in line for line in table)
    assert any(("vs fine-tuned" if trained else "vs checkpoint") in line for line in table)
    assert max(map(len, table)) <= 80

    show_summary(summary_of(tmp_path / "won", trained=trained, beaten=False))
    assert "ranks better" not in capsys.readouterr().out


def test_a_ranker_that_loses_to_itself_uncut_is_told_to_read_more() -> None:
    beaten = [{"name": "checkpoint, uncut", "difference": interval(0.2)}]
    said = defeat_in_words({"served": "ONNX FP32", "trained": False, "beaten_by": beaten})
    assert "--set text.candidate_tokens=auto" in said
    assert "model.base" not in said


def test_a_summary_from_before_this_was_looked_at_says_nothing_of_it() -> None:
    assert defeat_in_words({"recipe": "old", "rows": []}) == ""
