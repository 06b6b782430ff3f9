"""What ``--over`` may say, and the recipe that a search writes: nothing is trained here."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from search_bench import SMALLEST, quick_bench
from tritonrank.errors import RecipeError
from tritonrank.recipe import load_recipe
from tritonrank.search.choices import Sampler
from tritonrank.search.proposals import plan_of
from tritonrank.search.recipe_text import with_settings
from tritonrank.search.space import Space, in_words, key_of, overrides_of, read_space
from tritonrank.search.winner import recipe_of_point


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


def read(recipe: Path, *over: str) -> Space:
    return read_space(recipe, over)


@pytest.mark.parametrize(
    ("written", "distribution", "values"),
    [
        ("learning_rate=1e-6..1e-2:log", FloatDistribution(1e-6, 1e-2, log=True), None),
        ("epochs=1..3", FloatDistribution(1.0, 3.0), None),
        ("epochs=0.5..2:step=0.5", CategoricalDistribution((0.5, 1.0, 1.5, 2.0)), (0.5, 1.0, 1.5, 2.0)),
        ("examples_per_step=4..13:step=4", IntDistribution(4, 12, step=4), (4, 8, 12)),
        ("examples_per_step=2..32:log:points=5", CategoricalDistribution((2, 4, 8, 16, 32)), (2, 4, 8, 16, 32)),
        ("learning_rate=1e-5, 1e-4", CategoricalDistribution((1e-5, 1e-4)), (1e-5, 1e-4)),
        ("loss=listwise,pairwise", CategoricalDistribution(("listwise", "pairwise")), ("listwise", "pairwise")),
        ("teacher=[null, other/teacher]", CategoricalDistribution((None, "other/teacher")), (None, "other/teacher")),
    ],
)
def test_ranges_and_values_are_read_as_the_recipe_reads_them(
    recipe: Path, written: str, distribution: Any, values: Any
) -> None:
    (setting,) = read(recipe, f"finetune.{written}").settings
    assert setting.distribution == distribution
    assert setting.values == values


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("finetune.lerning_rate=1..2", r"finetune\.lerning_rate: no such setting; did you mean learning_rate"),
        ("finetune.learning_rate=1e-6..2", r"finetune\.learning_rate: Input should be less than 1"),
        ("finetune.loss=listwise,foo", r"finetune\.loss: .*found 'foo'"),
        ("finetune.loss=1..2", r"finetune\.loss"),
        ("finetune.epochs=3..1", r"finetune\.epochs.*3 is not below 1"),
        ("finetune.epochs=0..1:log", r"finetune\.epochs.*begins above 0"),
        ("finetune.epochs=1..4:logarithmic", r"has no 'logarithmic'"),
        ("finetune.epochs=1..4:log:step=1", "either :log or :step"),
        ("finetune.epochs=1..4:step=9", "does not fit"),
        ("finetune.epochs=1..4:points=1", "at least 2 points"),
        ("finetune.epochs=one..two", "a number at each end"),
        ("finetune.examples_per_step=1..8:step=0.5", r"finetune\.examples_per_step.*no step of one"),
        ("finetune.loss=listwise,listwise", "a value twice"),
        ("finetune.evaluations=2,4", r"finetune\.evaluations.*use --set"),
        ("examples.training_examples=100,200", r"examples\.training_examples.*only settings of finetune"),
        ("finetune.learning_rate", "expected section.key=VALUES"),
        ("distill.epochs=1,2", "distill needs a prune section"),
        ("@absent.yaml", "absent.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(recipe: Path, over: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read(recipe, over)


def test_all_faults_are_told_together_and_a_setting_only_once(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"(?s)2 fault.*finetune\.epochs.*finetune\.loss"):
        read(recipe, "finetune.epochs=0,1", "finetune.loss=foo")
    with pytest.raises(RecipeError, match=r"finetune\.epochs is there twice"):
        read(recipe, "finetune.epochs=1,2", "finetune.epochs=3,4")
    with pytest.raises(RecipeError, match=r"--over finetune\.learning_rate=1e-6"):
        read(recipe)


def test_settings_that_need_each_other_are_searched_together(recipe: Path) -> None:
    space = read(recipe, "prune.layers=2,3,null", "distill.epochs=1,2")
    assert space.size == 6
    assert {"prune.layers": None, "distill.epochs": 2.0} in list(space.points())


def test_a_file_says_the_same_as_options(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("finetune:\n  learning_rate: 1e-6..1e-2:log\n  loss: [listwise, pairwise]\n", encoding="utf-8")
    options = read(recipe, "finetune.learning_rate=1e-6..1e-2:log", "finetune.loss=[listwise, pairwise]")
    assert read(recipe, f"@{file}").distributions == options.distributions


def test_points_go_into_the_recipe_and_come_back(recipe: Path) -> None:
    space = read(recipe, "finetune.learning_rate=1e-6..1e-2:log", "finetune.teacher=[null, a/b]")
    point = space.point_of({"finetune.learning_rate": 0.00012345678, "finetune.teacher": None})
    assert point == {"finetune.learning_rate": 0.0001235, "finetune.teacher": None}
    loaded = load_recipe(recipe, overrides_of(point)).finetune
    assert (loaded.learning_rate, loaded.teacher) == (0.0001235, None)
    assert space.point_of(space.drawn_for(point)) == point
    assert key_of(point) == key_of(dict(reversed(point.items())))
    assert in_words(point) == "learning_rate 0.0001235, teacher null"
    assert space.point_of_recipe(load_recipe(recipe)) == {"finetune.learning_rate": 8e-5, "finetune.teacher": None}
    with pytest.raises(ValueError, match=r"0\.5 in the recipe, which 1e-6\.\.1e-2:log does not hold"):
        space.drawn_for(point | {"finetune.learning_rate": 0.5})


def test_a_grid_needs_an_end(recipe: Path) -> None:
    space, loaded = read(recipe, "finetune.learning_rate=1e-6..1e-2:log"), load_recipe(recipe)
    with pytest.raises(RecipeError, match=r"finetune\.learning_rate=1e-6\.\.1e-2:log has no end.*:points=5"):
        plan_of(Sampler.GRID, space, loaded)
    plan = plan_of(Sampler.GRID, read(recipe, "finetune.learning_rate=1e-6..1e-2:log:points=3"), loaded)
    assert plan == [{"finetune.learning_rate": value} for value in (1e-6, 1e-4, 1e-2)]


FILE = """\
# What this recipe is for.
name: shop  # and this

data: {source: sample, items: 50}

finetune:
  # a comment of the section
  learning_rate: 8.0e-5  # as others do
  loss: "listwise"

quantize:

# the last words
"""


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("finetune.learning_rate", 0.001, "  learning_rate: 0.001  # as others do"),
        ("finetune.epochs", 2.5, "  epochs: 2.5"),
        ("data.items", 70, "data: {source: sample, items: 70}"),
        ("data.users", 9, "data: {users: 9, source: sample, items: 50}"),
        ("quantize.noise", 0.5, "quantize: {noise: 0.5}"),
        ("prune.layers", 3, "  layers: 3"),
        ("name", "other", "name: other  # and this"),
        ("seed", 5, "seed: 5"),
        ("finetune.teacher", None, "  teacher: null"),
    ],
)
def test_a_setting_is_put_into_the_file_and_comments_stay(key: str, value: Any, line: str) -> None:
    text = with_settings(FILE, {key: value})
    assert line in text.splitlines()
    found = yaml.safe_load(text)
    for name in key.split("."):
        found = found[name]
    assert found == value
    comments = ("# What this recipe", "# and this", "# a comment of the section", "# as others do", "# the last words")
    assert all(comment in text for comment in comments)
    untouched = yaml.safe_load(FILE)
    changed = yaml.safe_load(text)
    section = key.split(".")[0]
    assert {name: one for name, one in changed.items() if name != section} == {
        name: one for name, one in untouched.items() if name != section
    }


def test_a_recipe_with_anchors_loses_its_comments_rather_than_its_meaning(tmp_path: Path) -> None:
    text = SMALLEST + "# words\nprune: {layers: 2}\nfinetune: {epochs: &passes 2}\ndistill: {epochs: *passes}\n"
    bench = quick_bench(tmp_path, "distill.epochs=1,3", text=text)
    out = tmp_path / "best.yaml"
    out.write_text(recipe_of_point(bench, {"distill.epochs": 3.0}, "small-tuned", out), encoding="utf-8")
    found = load_recipe(out)
    assert found.distill is not None
    assert (found.finetune.epochs, found.distill.epochs) == (2.0, 3.0)
    assert "# words" not in out.read_text(encoding="utf-8")


def test_places_of_data_mean_the_same_elsewhere_and_passwords_stay_behind(tmp_path: Path) -> None:
    data = {"source": "tables", "items": "sqlite:///shop.db#items", "text_fields": ["title"]}
    data["events"] = "postgresql://reader:hunter2@db.example/shop#events"
    recipe = tmp_path / "here" / "shop.yaml"
    recipe.parent.mkdir()
    recipe.write_text(yaml.safe_dump({"name": "shop", "data": data}), encoding="utf-8")
    bench = quick_bench(tmp_path, "finetune.epochs=1,2")
    loaded = load_recipe(recipe)
    bench = type(bench)(recipe, (), loaded, bench.space, bench.shared, bench.folder)
    out = tmp_path / "there" / "best.yaml"
    text = recipe_of_point(bench, {"finetune.epochs": 2.0}, "shop-tuned", out)
    assert "hunter2" not in text
    out.write_text(text, encoding="utf-8")
    assert load_recipe(out).data.items.file == recipe.parent / "shop.db"
    assert load_recipe(out).finetune.epochs == 2.0
