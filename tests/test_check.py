"""``tritonrank check``: what it says is what ``prepare`` would do, and what it advises mends what it complains of."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from blocked import without
from stage_runs import prepared
from tritonrank import cli
from tritonrank.artifacts import read_manifest
from tritonrank.judge.power import SAME_RANKER_DEVIATION, smallest_budget, smallest_difference, users_to_see
from tritonrank.pipeline import check as checking
from tritonrank.recipe import load_recipe
from typer.testing import CliRunner

WORDS = ["oak", "brass", "linen", "glass", "steel", "wool", "amber", "slate", "cedar", "ivory", "copper", "velvet"]


def shop(folder: Path, users: int = 40, **changes: Any) -> Path:
    """Long titles, typed events, one event of an item that is gone; returns the recipe."""
    chosen = random.Random(3)
    items = [f"p{number},{' '.join(chosen.choices(WORDS, k=12))}" for number in range(60)]
    events = ["u0,gone,1600000000,view"]
    for user in range(users):
        for step in range(8):
            kind = chosen.choice(["view", "cart", "purchase"]) if step < 5 else "purchase"
            events.append(f"u{user},p{chosen.randrange(60)},{1_600_000_000 + 60 * step},{kind}")
    (folder / "items.csv").write_text("item_id,title\n" + "\n".join(items) + "\n")
    (folder / "events.csv").write_text("user_id,item_id,timestamp,kind\n" + "\n".join(events) + "\n")
    recipe = {
        "name": "shop",
        "data": {
            "source": "tables",
            "items": str(folder / "items.csv"),
            "events": str(folder / "events.csv"),
            "text_fields": ["title"],
            "label": {"column": "kind", "view": 0, "cart": 1, "purchase": 3},
        },
        "text": {"candidate_tokens": 8, "history_tokens": 16},
        "examples": {"training_examples": 50, "judged_negatives": 20, "validation_users": 10, "test_users": 20},
    } | changes
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def checked(recipe: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and findings of the real command."""
    result = CliRunner().invoke(cli.app, ["check", str(recipe), "--json", *arguments])
    return result.exit_code, json.loads(result.stdout)


def test_it_counts_what_prepare_makes(tmp_path: Path) -> None:
    recipe = shop(tmp_path)
    code, found = checked(recipe)
    assert code == 0
    assert not (tmp_path / "artifacts").exists()
    prepared(load_recipe(recipe), tmp_path / "made" / "dataset")
    metrics = read_manifest(tmp_path / "made" / "dataset").metrics
    assert found["counts"] == {name: metrics[name] for name in checking.COUNTS}
    assert found["text"] == metrics["text"]
    assert found["users"] == metrics["skipped_users"]
    assert [one["count"] for one in found["dropped"]] == [1]
    kinds = {name: kind for kind in found["kinds"] for name in kind["names"]}
    assert {name: kind["gain"] for name, kind in kinds.items()} == {"view": 0, "cart": 1, "purchase": 3}
    lines = [line.split(",") for line in (tmp_path / "events.csv").read_text().splitlines()[2:]]
    assert {name: kind["events"] for name, kind in kinds.items()} == {
        name: sum(line[3] == name for line in lines) for name in kinds
    }
    (best, *others) = found["shown"][0]["candidates"]
    assert best["liked"]
    assert not any(item["liked"] for item in others)
    assert set(best["text"].split()) <= set(WORDS)


def test_its_advice_leaves_nothing_to_advise(tmp_path: Path) -> None:
    recipe = shop(tmp_path)
    _, found = checked(recipe)
    advised = {one["key"]: one for one in found["suggestions"]}
    assert set(advised) == {"text.candidate_tokens", "text.history_tokens", "gate.budget"}
    assert found["text"]["items"]["cut_share"] > 0.5
    options = [word for one in found["suggestions"] for word in ("--set", one["set"])]
    _, mended = checked(recipe, *options)
    assert mended["suggestions"] == []
    assert mended["text"]["items"]["cut_share"] <= 0.05
    as_lines = yaml.safe_load(recipe.read_text())
    for one in found["suggestions"]:
        for section, values in yaml.safe_load(one["yaml"]).items():
            as_lines.setdefault(section, {}).update(values)
    recipe.write_text(yaml.safe_dump(as_lines))
    assert checked(recipe)[1] == mended


def test_few_users_are_warned_of_with_what_to_do(tmp_path: Path) -> None:
    recipe = shop(tmp_path)
    _, found = checked(recipe)
    (few,) = [one for one in found["warnings"] if "users are judged" in one["what"]]
    assert few["next"].startswith("tritonrank check")
    assert "examples.test_users=40" in few["next"], "there are no more"
    assert found["judged"]["users"] == 20
    _, more = checked(recipe, "--set", "examples.test_users=40")
    seen = [one["judged"]["of_one_ranker"]["smallest_difference"] for one in (found, more)]
    assert seen[0] == pytest.approx(seen[1] * 2**0.5)


def test_the_table_for_people_has_every_part(tmp_path: Path) -> None:
    recipe = shop(tmp_path)
    result = CliRunner().invoke(cli.app, ["check", str(recipe)], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    for expected in ("purchase", "worth 3", "gone", "--set text.candidate_tokens=", "to beat: item kNN", "finetune"):
        assert expected in result.stdout, expected
    assert f"Next: tritonrank build {recipe}" in result.stdout
    assert "u7" not in result.stdout.split(), "nobody is named"


def test_it_exits_with_1_where_a_build_would_stop(tmp_path: Path) -> None:
    recipe = shop(tmp_path)
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp,kind\nu1,p1,1600000000,purchase\n")
    code, found = checked(recipe)
    assert code == 1
    assert not found["ok"]
    assert found["error"]["type"] == "DataError"
    assert "three positives" in found["error"]["message"]
    people = CliRunner().invoke(cli.app, ["check", str(recipe)])
    assert people.exit_code == 1
    assert "A build would stop" in people.stderr


def test_a_real_process_checks_without_torch(tmp_path: Path) -> None:
    recipe = shop(tmp_path)
    environment = without(tmp_path / "blocked", ["torch", "transformers"])
    command = [sys.executable, "-m", "tritonrank", "check", str(recipe), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"]


def test_the_smallest_difference_is_seen_in_four_of_five_draws() -> None:
    generator = np.random.default_rng(7)
    deviation, users = 0.4, 300
    effect = smallest_difference(deviation, users)
    draws = generator.normal(effect, deviation, (4_000, users))
    seen = draws.mean(axis=1) - 1.96 * draws.std(axis=1, ddof=1) / np.sqrt(users) > 0
    assert seen.mean() == pytest.approx(0.8, abs=0.03)
    assert users_to_see(effect, deviation) in {users, users + 1}


def test_a_gate_passes_an_equal_ranking_in_nine_of_ten_draws() -> None:
    generator = np.random.default_rng(7)
    users, reached = 100, 0.45
    budget = smallest_budget(users, reached)
    assert budget == pytest.approx(0.025)
    means = generator.normal(0, SAME_RANKER_DEVIATION, (4_000, users)).mean(axis=1) / reached
    assert (means <= budget).mean() >= 0.9
    assert (means <= budget / 2).mean() < 0.9
