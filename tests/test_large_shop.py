"""The generated shop of the benchmark is prepared whole, at a size that a test can afford."""

from pathlib import Path

import pytest
from large_shop import RECIPE, write_shop
from stage_runs import prepared
from tritonrank.data.dataset import Dataset
from tritonrank.recipe import load_recipe


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_every_event_of_many_is_read_and_learnt_from_in_time(tmp_path: Path, suffix: str) -> None:
    write_shop(tmp_path, events=30_000, users=2_000, items=1_000, suffix=suffix)
    files = {name: tmp_path / f"{name}.{suffix}" for name in ("items", "events")}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(**files), encoding="utf-8")
    metrics = prepared(load_recipe(recipe), tmp_path / "dataset").metrics
    lost = {one["kind"]: one["count"] for one in metrics["dropped"]}
    assert metrics["events"] == 30_000 - lost.get("events that are written twice", 0)
    assert metrics["examples"] == {"train": 2_400, "validation": 100, "test": 400}
    dataset = Dataset.read(tmp_path / "dataset")
    assert {gain for example in dataset.training for gain in example.labels} == {0.0, 1.0, 3.0}
    assert all(sum(gain > 0 for gain in example.labels) == 1 for example in dataset.training)
