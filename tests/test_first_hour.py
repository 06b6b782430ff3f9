"""The first hour of a new user, whole: nothing by hand but what check suggests."""

from pathlib import Path

import pytest
from first_hour import first_hour
from tritonrank.recipe import Recipe, load_recipe


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_the_first_hour_goes_from_dirty_tables_to_a_ranking(tmp_path: Path, tiny_recipe: Recipe) -> None:
    quick_to_train = [f"model.base={tiny_recipe.model.base}", "gate.budget=0.9", "quantize.calibration_examples=16"]
    found = first_hour(tmp_path, 0.3, ["text=product_title,brand"], [*quick_to_train, "quantize.noise=1000"])
    dirt = " ".join(one["kind"] for one in found["checked"]["dropped"])
    for kind in ("repeated rows", "does not have", "before their item existed", "without a positive"):
        assert kind in dirt, kind
    recipe = load_recipe(tmp_path / "shop.yaml")
    assert recipe.examples.test_users == found["checked"]["judged"]["users"]
    assert found["built"]["recipe"] == "shop"
    rows = {row["name"] for row in found["summary"]["rows"]}
    assert {"popularity", "item kNN", "fine-tuned", "INT8"} <= rows
    assert found["ranking"].strip()
    typed = [what for what, _ in found["took"]]
    steps = ("init", "check", "--quick", "build shop.yaml", "report", "serve", "rank")
    assert all(any(step in what for what in typed) for step in steps)
