"""The table's last lines: is the build better than what is there, what to serve, what may help."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.metrics import Interval
from tritonrank.judge.next_steps import more_judged_users
from tritonrank.judge.worth import Against, against_all, closest_undecided, losses
from tritonrank.report.answer import (
    SUMMARY_FILE,
    build_command,
    exit_code,
    headline_of,
    is_success,
    next_in_lines,
    what_to_serve,
)
from tritonrank.report.summary_table import show_summary

NEXT = "more examples, 256 of about 1,696 were used: --set examples.training_examples=1024"


def judgement(name: str, values: Sequence[float]) -> Judgement:
    count = len(values)
    columns = {"example_id": [f"u{n}:3" for n in range(count)], "labels": [[1, 0]] * count, "ndcg@10": list(values)}
    return Judgement(name, pl.DataFrame(columns))


def test_only_what_is_better_beyond_doubt_is_lost_to() -> None:
    served = np.full(60, 0.3)
    noise = np.tile([0.5, -0.5], 30)
    others = {
        "popularity": served + 0.01 + noise,
        "item kNN": served + 0.1,
        "zero-shot cosine": served + 0.2 + 0.1 * noise,
    }
    compared = against_all(judgement("INT8", served.tolist()), {n: judgement(n, v.tolist()) for n, v in others.items()})
    assert [one["name"] for one in losses(compared)] == ["zero-shot cosine", "item kNN"]
    assert losses(compared)[1] == pytest.approx({"name": "item kNN", "difference": 0.1, "low": 0.1, "high": 0.1})
    close = closest_undecided(compared)
    assert close is not None
    assert close.name == "popularity"
    assert (
        losses(against_all(judgement("INT8", (served + 1).tolist()), {"item kNN": judgement("", served.tolist())}))
        == []
    )


def test_a_baseline_that_was_judged_on_fewer_requests_is_paired_with_those() -> None:
    ranker = judgement("INT8", [1.0, 1.0, 0.0, 0.0])
    (found,) = against_all(ranker, {"untrained": judgement("untrained", [0.0, 0.0])})
    assert found == Against("untrained", Interval(1.0, 1.0, 1.0), 2)


def test_users_that_would_decide_are_those_that_the_data_have() -> None:
    skipped = {"skipped_users": {"test": {"not drawn": 10_000}}}
    undecided = Interval(0.03, -0.06, 0.12)  # nine times as many users: a third of the width
    assert more_judged_users(undecided, 100, skipped).endswith("--set examples.test_users=900")
    few = more_judged_users(undecided, 100, {"skipped_users": {"test": {"not drawn": 50}}})
    assert few.endswith("--set examples.test_users=150")
    assert "--set" not in more_judged_users(undecided, 100, {"skipped_users": {"test": {"not drawn": 0}}})


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def result_of(*, trained: bool, beaten: bool) -> dict[str, Any]:
    teacher = "fine-tuned" if trained else "checkpoint"
    quality = {"ndcg@10": interval(0.3), "difference": interval(0.0)}
    costs = {"parameters": 1_000, "gflop_per_request": 1.0, "megabytes": 2.0, "milliseconds_per_100": 3.0}
    lost = [{"name": "zero-shot cosine", "difference": 0.2, "low": 0.1, "high": 0.3}] if beaten else []
    return {
        "recipe": "shop",
        "examples": 50,
        "teacher": teacher,
        "served": "INT8",
        "trained": trained,
        "verdict": {
            "success": not beaten,
            "best": "zero-shot cosine" if beaten else "INT8",
            "serve": "INT8",
            "loses_to": lost,
            "next": [NEXT] if beaten else [],
            "undecided": "",
        },
        "rows": [
            {"name": "zero-shot cosine", **quality, "gain": interval(-0.2 if beaten else 0.2)},
            *({"name": name, **quality, **costs} for name in (teacher, "INT8")),
        ],
    }


def written(result: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / SUMMARY_FILE).write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(("trained", "words"), [(True, "fine-tuned"), (False, "as given")])
def test_a_ranker_that_loses_to_a_free_baseline_is_called_that(
    trained: bool, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(result_of(trained=trained, beaten=True), tmp_path / "shop" / "summary")
    show_summary(folder)
    *lines, last, for_scripts = capsys.readouterr().out.splitlines()
    assert json.loads(for_scripts)["success"] is False
    (said,) = [line for line in lines if line.startswith("Not a success")]
    assert words in said
    assert "zero-shot cosine (NDCG@10 higher by 0.200 [0.100 0.300])" in said
    assert f"  {NEXT}" in lines
    assert "zero-shot cosine" in last
    assert last.endswith(f"tritonrank serve {tmp_path / 'shop'}")
    table = lines[: lines.index(said)]
    (row,) = [line for line in table if line.strip().startswith("zero-shot cosine")]
    assert "-0.200 [-0.300 -0.100]" in row  # what the build has more: minus is bad in every row
    assert max(map(len, table)) <= 80
    assert [exit_code(folder / SUMMARY_FILE, policy) for policy in ("warn", "ignore")] == [3, 0]


def test_a_ranker_that_wins_is_to_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(result_of(trained=True, beaten=False), tmp_path / "a shop" / "summary")
    show_summary(folder)
    *lines, last, for_scripts = capsys.readouterr().out.splitlines()
    assert json.loads(for_scripts)["success"] is True
    assert not [line for line in lines if re.search("not a success|may help", line, re.IGNORECASE)]
    assert "INT8" in last
    assert last.endswith(f"tritonrank serve '{tmp_path / 'a shop'}'")
    assert exit_code(folder / SUMMARY_FILE, "warn") == 0


@pytest.mark.parametrize(("better", "success"), [(True, True), (None, True), (False, False)])
def test_the_build_that_is_served_counts_as_well(better: bool | None, success: bool, tmp_path: Path) -> None:
    served = {"build": "20261101T000000Z-0123abcd", "difference": -0.1, "low": -0.2, "high": -0.05, "better": better}
    result = result_of(trained=True, beaten=False) | {"against_served": served}
    assert is_success(result) is success
    assert headline_of(result).startswith("Not a success") is not success
    assert (served["build"] in what_to_serve(result, tmp_path)) is not success


def test_a_summary_from_before_this_was_looked_at_says_nothing_of_it(tmp_path: Path) -> None:
    old = {"recipe": "old", "rows": []}
    assert headline_of(old) == ""
    assert is_success(old)
    assert "tritonrank serve" in what_to_serve(old, tmp_path)


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("tritonrank build shop.yaml --set seed=1", "tritonrank build shop.yaml --set seed=1"),
        ("tritonrank finetune 'my shop.yaml'", "tritonrank build 'my shop.yaml'"),
        ("pytest tests", "tritonrank build RECIPE"),
        ("", "tritonrank build RECIPE"),
    ],
)
def test_what_may_help_is_added_to_what_was_typed(typed: str, command: str) -> None:
    assert build_command(typed) == command
    assert command in next_in_lines([NEXT], typed)[0]
