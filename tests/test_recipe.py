"""A recipe is right as a whole, or every fault in it is named with its place."""

from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from tritonrank.errors import RecipeError
from tritonrank.recipe import ExampleSettings, ImageSettings, Recipe, load_recipe, setting_rows, shipped_recipes
from tritonrank.system.dates import iso_seconds

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "build" / "recipes").glob("*.yaml"))
SMALLEST = "name: small\ndata:\n  source: sample\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults_of(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_in_the_tree_loads(path: Path) -> None:
    assert load_recipe(path).name == path.stem
    assert f"tritonrank build build/recipes/{path.name}" in path.read_text()


def test_there_are_recipes_to_load() -> None:
    assert {"demo.yaml", "movielens.yaml"} <= {path.name for path in RECIPES}


def test_what_a_file_leaves_out_is_the_default(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALLEST + "finetune:\n  epochs: 3\n"))
    assert loaded.finetune.epochs == 3
    assert loaded.finetune.model_copy(update={"epochs": 1.0}) == Recipe.model_fields["finetune"].default
    assert loaded.examples == ExampleSettings()


def test_a_recipe_cannot_be_changed_after_loading(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALLEST))
    with pytest.raises(ValueError, match="frozen"):
        loaded.seed = 3


def test_all_faults_come_in_one_message_with_file_line_and_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: Not A Name\n"
        "data:\n"
        "  source: movielens\n"
        "  positive_rating: 9\n"
        "text:\n"
        "  item_template: no braces\n"
        "finetune:\n"
        "  epoch: 2\n"
        "  learning_rate: fast\n",
    )
    message = faults_of(path)
    heading, *faults = message.splitlines()
    assert heading == f"{path} has 6 fault(s):"
    places = [fault.split(": ")[:2] for fault in faults]
    assert places == [
        [f"  {path}:1", "name"],
        [f"  {path}:2", "data.path"],  # absent: the line of its section
        [f"  {path}:4", "data.positive_rating"],
        [f"  {path}:6", "text.item_template"],
        [f"  {path}:9", "finetune.learning_rate"],
        [f"  {path}:8", "finetune.epoch"],
    ]
    for said in ("is required", "found 9", "such as {title}", "found 'fast'", "did you mean epochs?"):
        assert said in message


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("finetune: {learningrate: 1}", "did you mean learning_rate?"),
        ("quantise: {}", "did you mean quantize?"),
        ("serve: {max_candidate: 3}", "did you mean max_candidates?"),
        ("xyzzy: 3", "see `tritonrank settings`"),
    ],
)
def test_a_misspelt_key_gets_a_suggestion(tmp_path: Path, line: str, suggestion: str) -> None:
    message = faults_of(write(tmp_path, SMALLEST + line + "\n"))
    assert f"no such setting; {suggestion}" in message
    assert ":4: " in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("data:", "data: Input should be"),
        ("data: sample", "(found 'sample')"),
        ("data: {items: 60}", "'source'"),
        ("data: {source: sampel}", "'sample', 'movielens', "),
        ("data: {source: tables, items: a, events: b, text_fields: []}", "data.text_fields: "),
        ("data: {source: tables, items: a, events: b, text_fields: [title, 3]}", "data.text_fields.1: "),
    ],
)
def test_a_wrong_source_is_named(tmp_path: Path, data: str, said: str) -> None:
    message = faults_of(write(tmp_path, f"name: a\n{data}\n"))
    assert "1 fault(s)" in message
    assert "recipe.yaml:2: " in message
    assert said in message


@pytest.mark.parametrize(
    "examples",
    [
        "{cutoff: soon}",
        "{cutoff: 2015-02-30}",  # YAML itself chokes on this day
        "{cutoff: '2015-02-30'}",
    ],
)
def test_a_cutoff_is_a_real_date(tmp_path: Path, examples: str) -> None:
    assert "recipe.yaml" in faults_of(write(tmp_path, SMALLEST + f"examples: {examples}\n"))


@pytest.mark.parametrize("cutoff", ["2015-06-30", "'2015-06-30'", "20150630", "'20150630'"])
def test_a_quoted_and_an_unquoted_date_are_the_same(tmp_path: Path, cutoff: str) -> None:
    loaded = load_recipe(write(tmp_path, SMALLEST + f"examples: {{cutoff: {cutoff}}}\n"))
    assert loaded.examples.cutoff is not None
    assert iso_seconds(loaded.examples.cutoff) == 1_435_622_400


@pytest.mark.parametrize(
    "cutoff", ["2015", "201506", "1435622400", "20150230", "2015063012", "'20150630112:30'", "true"]
)
def test_a_number_that_is_no_date_is_no_cutoff(tmp_path: Path, cutoff: str) -> None:
    message = faults_of(write(tmp_path, SMALLEST + f"examples: {{cutoff: {cutoff}}}\n"))
    assert "examples.cutoff: " in message


def test_braces_without_quotes_are_explained(tmp_path: Path) -> None:
    message = faults_of(write(tmp_path, SMALLEST), "text.item_template={title}")
    assert "text.item_template: " in message
    assert "quotes" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\n\tdata: b\n", "not valid YAML"),
        ("name: [a\n", "not valid YAML"),
        ("? [1]\n: 2\n", "not valid YAML"),
        ("a: &a {b: *a}\n", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (b"name: \xff\xfe\n", "cannot be read"),
        ("", "a YAML mapping"),
        ("- name\n", "a YAML mapping"),
        ("just words\n", "a YAML mapping"),
    ],
)
def test_what_is_not_a_recipe_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    message = faults_of(write(tmp_path, text))
    assert said in message
    assert str(tmp_path / "recipe.yaml") in message


def test_a_missing_file_points_to_the_recipes(tmp_path: Path) -> None:
    message = faults_of(tmp_path / "none.yaml")
    assert message.startswith(f"{tmp_path / 'none.yaml'}: no such recipe")
    assert "tritonrank recipes" in message
    assert "tritonrank init" in faults_of(tmp_path)


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "finetune: {epochs: 2}\nseed: 3\n")
    overrides = [
        "finetune.epochs=4",
        "finetune.epochs=0.5",
        "seed=9",
        "data.items=70",
        "serve.instances=auto",
        "quantize.exclude=[a, b]",
        "text.item_template='{title} = {year}'",
    ]
    loaded = load_recipe(path, overrides)
    assert loaded.finetune.epochs == 0.5
    assert (loaded.seed, loaded.data.items) == (9, 70)
    assert loaded.quantize.exclude == ["a", "b"]
    assert loaded.text.item_template == "{title} = {year}"
    assert load_recipe(path).finetune.epochs == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("finetune.epochs", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("finetune..epochs=3", "expected section.key=value"),
        ("finetune.epochs ", "expected section.key=value"),
        ("name.first=3", "name is a single setting"),
        ("finetune.epochs={", "not valid YAML"),
        ("examples.cutoff=2015-02-30", "not valid YAML"),
        ("finetune.epochs=-1", "finetune.epochs: Input should be greater than 0 (found -1)"),
        ("finetune.epoch=1", "did you mean epochs?"),
        ("data.source=movielens", "data.path: is required"),
        ("finetune=", "finetune: "),
        ("serve.instances=0", "Input should be greater than or equal to 1 (found 0)"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    assert said in faults_of(write(tmp_path, SMALLEST), override)


@pytest.mark.parametrize(
    ("model", "architecture"),
    [
        ("{}", "shared-context"),
        ("{base: some/encoder}", "shared-context"),
        ("{checkpoint: null}", "shared-context"),
        ("{checkpoint: some/ranker}", "joint"),
        ("{checkpoint: some/ranker, architecture: shared-context}", "shared-context"),
        ("{checkpoint: some/ranker, architecture: joint}", "joint"),
        ("{architecture: joint}", "joint"),
    ],
)
def test_a_ready_checkpoint_is_joint_unless_said_otherwise(tmp_path: Path, model: str, architecture: str) -> None:
    path = write(tmp_path, SMALLEST + f"model: {model}\n")
    assert load_recipe(path).model.architecture == architecture
    assert load_recipe(path, ["model.architecture=joint"]).model.architecture == "joint"


def test_a_checkpoint_from_the_command_line_is_joint_too(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    assert load_recipe(path, ["model.checkpoint=some/ranker"]).model.architecture == "joint"
    both = ["model.checkpoint=some/ranker", "model.architecture=shared-context"]
    assert load_recipe(path, both).model.architecture == "shared-context"


@pytest.mark.parametrize("architecture", ["cross", "null", "Joint", "3"])
def test_an_unknown_architecture_is_refused(tmp_path: Path, architecture: str) -> None:
    path = write(tmp_path, SMALLEST + f"model: {{checkpoint: some/ranker, architecture: {architecture}}}\n")
    assert "model.architecture: Input should be 'shared-context', 'joint' or 'decoder'" in faults_of(path)


def test_every_setting_has_a_description_and_a_unique_key() -> None:
    rows = list(setting_rows())
    assert not {row.key for row in rows if not row.description.strip()}
    assert len({row.key for row in rows}) == len(rows)


def test_the_reference_lists_every_field_of_every_section() -> None:
    keys = {row.key.partition(" ")[0] for row in setting_rows()}

    def fields(model: type[BaseModel], within: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            kinds = get_args(field.annotation) or (field.annotation,)  # a section that may be absent is a union
            sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
            yield from (one for kind in sections for one in fields(kind, f"{within}{name}."))
            yield from [] if sections else [f"{within}{name}"]

    assert set(fields(Recipe, "")) - {"data"} <= keys
    assert {"name", "seed", "data.path", "data.text_fields", "data.users"} <= keys


def test_the_listed_defaults_are_what_a_recipe_gets(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALLEST + "\nprune: {}\ndistill: {}\nretrieval: {}\n"))
    loaded = loaded.model_copy(
        update={"images": ImageSettings(folder=tmp_path)}
    )  # which asks for a template of its own
    for key, default, *_ in setting_rows():
        name = key.partition(" ")[0]
        if default != "required" and not name.startswith("data."):
            assert repr(reduce(getattr, name.split("."), loaded)) == default, key


def test_minus_one_is_refused_by_every_number(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    for key, default, *_ in setting_rows():
        if key.startswith("data.") or not default.replace(".", "").replace("e-", "").isdigit():
            continue
        assert f"{key}: " in faults_of(path, f"{key}=-1"), key


def test_a_file_of_overrides_is_read_in_its_place(tmp_path: Path) -> None:
    recipe, file = write(tmp_path, SMALLEST), tmp_path / "best.yaml"
    file.write_text("serve:\n  instances: 3\n  threads: auto\nquantize: {method: none}\n")
    loaded = load_recipe(recipe, ["serve.instances=1", f"@{file}", "serve.queue_requests=7"])
    assert (loaded.serve.instances, loaded.serve.threads, loaded.serve.queue_requests) == (3, "auto", 7)
    assert loaded.quantize.method == "none"
    assert load_recipe(recipe, [f"@{file}", "serve.instances=1"]).serve.instances == 1


@pytest.mark.parametrize("content", [None, "serve: 3", "- serve", "{", "\tserve:"])
def test_a_file_of_overrides_that_is_none_is_named(content: str | None, tmp_path: Path) -> None:
    recipe, file = write(tmp_path, SMALLEST), tmp_path / "best.yaml"
    if content is not None:
        file.write_text(content)
    assert f"--set @{file}" in faults_of(recipe, f"@{file}")


def test_a_recipe_that_is_shipped_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {path.stem for path in RECIPES} == set(shipped_recipes())
    assert load_recipe("demo") == load_recipe(ROOT / "build" / "recipes" / "demo.yaml")
    write(tmp_path, SMALLEST).rename(tmp_path / "demo")
    assert load_recipe("demo").name == "small", "a file that is there comes first"
