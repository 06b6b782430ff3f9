"""Settings: few enough to be read, none ignored without a word, and each described once."""

import json
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import yaml
from tritonrank import cli
from tritonrank.artifacts.workspace import Target
from tritonrank.errors import RecipeError
from tritonrank.recipe import Recipe, load_recipe, require_effects, setting_rows
from tritonrank.recipe.applicability import EXAMPLE
from tritonrank.recipe.explain import example_value, find_settings
from tritonrank.recipe.listing import SettingRow
from tritonrank.recipe.removed import FIXED, FOLLOWS, what_became_of
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
MOST_SETTINGS = 150
"""80 of a ranker, and what training on large bases, images, retrieval, blend, the events of a gateway and learning from
them need."""
ASK_FOR_MORE = {
    "tensor_parallel",
    "serve.device",
    "serve.executor",
    "images.field",
    "images.folder",
    "images.encoder",
    "images.soft_tokens",
}
"""Settings that ask for others beside them."""
SMALLEST = "name: small\ndata: {source: sample}\n"
JOINT = "model: {architecture: joint}\n"
GPUS = [target for target in Target if target is not Target.CPU]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


def loaded(path: Path, text: str, *overrides: str, target: Target = Target.CPU) -> Recipe:
    path.write_text(SMALLEST + text, encoding="utf-8")
    return load_recipe(path, overrides, target)


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["settings", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_there_are_few_enough_to_be_read() -> None:
    assert len(list(setting_rows())) <= MOST_SETTINGS


def test_the_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == shown("--markdown"), "write it again: tritonrank settings --markdown > docs/settings.md"
    assert max(map(len, page.splitlines())) <= 120


def test_the_schema_knows_every_setting_and_the_sections_of_targets() -> None:
    schema = json.loads(shown("--json"))
    assert set(Recipe.model_fields) == set(schema["properties"])
    assert set(map(str, Target)) <= set(schema["$defs"]["ServeSettings"]["properties"])


def test_one_setting_is_explained() -> None:
    page = shown("serve.deadline_ms")
    for word in ("serve.deadline_ms", "2000", "integer from", "--set 'serve.deadline_ms=", "serve: {deadline_ms: "):
        assert word in page
    assert "serve.max_candidates" not in page


def test_a_section_or_a_word_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    gate, tokens, everything = shown("gate"), shown("tokens"), shown()
    assert "budget = " in gate
    assert "deadline_ms" not in gate
    assert "history_tokens = " in tokens
    assert "deadline_ms" not in tokens
    for row in setting_rows():
        assert f"  {row.key.rpartition('.')[2]} = " in everything, row.key
    assert max(map(len, everything.splitlines())) <= 80


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("hard_negatves", "examples.judged_negatives"),
        ("serve.dedline_ms", "serve.deadline_ms"),
        ("finetune.temperature", "delete the line"),
        ("xyzzy", "tritonrank settings"),
    ],
)
def test_a_word_that_is_nowhere_is_helped(word: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        find_settings(word)


@pytest.mark.parametrize("row", [row for row in setting_rows() if not row.key.startswith("data.")], ids=lambda r: r.key)
def test_the_example_of_a_setting_may_stand_in_a_recipe(row: SettingRow, recipe: Path) -> None:
    """As far as the setting itself goes: some ask for another setting beside them."""
    sections = "prune: {}\ndistill: {}\n" if row.key.startswith(("prune.", "distill.")) else ""
    faults = suppress(RecipeError) if row.key in ASK_FOR_MORE else nullcontext()
    with faults:
        loaded(recipe, sections, f"{row.key}={example_value(row)}")


@pytest.mark.parametrize("key", [*FIXED, *FOLLOWS])
def test_a_setting_that_is_gone_says_what_became_of_it(key: str, recipe: Path) -> None:
    value = {"prune": "prune: {}\n", "distill": "prune: {}\ndistill: {}\n"}.get(key.partition(".")[0], "")
    with pytest.raises(RecipeError) as caught:
        loaded(recipe, value, f"{key}=1")
    message = str(caught.value)
    assert f"{key.partition('.')[0] if key.startswith('export') else key}: " in message
    assert "delete the line" in message
    assert "no such setting" not in message


def test_no_setting_is_both_there_and_gone() -> None:
    there = {row.key.partition(" ")[0] for row in setting_rows()}
    assert not there & {*FIXED, *FOLLOWS}
    assert what_became_of("serve.never_was") is None


@pytest.mark.parametrize(
    ("text", "target", "key", "instead"),
    [
        *(("serve: {queue_share: 0.5}", target, "serve.queue_share", "--target cpu") for target in GPUS),
        ("serve: {context_cache_mb: 8}", Target.ONNXRUNTIME, "serve.context_cache_mb", "--target cpu"),
        ("serve: {threads: 2}", Target.TENSORRT, "serve.threads", "--target cpu"),
        ("serve: {executor: torch}", Target.TENSORRT, "serve.executor", "--target cpu"),
        ("serve: {tensorrt: {device: cuda}}", Target.TENSORRT, "serve.device", "--target cpu"),
        ("serve: {instances: 3}", Target.TENSORRT_TP, "serve.instances", "--target cpu, onnxruntime or tensorrt"),
        ("tensor_parallel: 2", Target.ONNXRUNTIME, "tensor_parallel", "--target cpu, tensorrt or tensorrt-tp"),
        ("serve: {threads: 2, device: cuda}", Target.CPU, "serve.threads", "serve.device to cpu"),
        ("serve: {rows_per_batch: 8}", Target.CPU, "serve.rows_per_batch", "model.architecture to joint"),
        (JOINT + "serve: {context_cache_mb: 8}", Target.CPU, "serve.context_cache_mb", "to shared-context or decoder"),
        (JOINT + "tensorrt: {requests: 2}", Target.TENSORRT, "tensorrt.requests", "to shared-context or decoder"),
    ],
)
def test_what_has_no_effect_is_refused(text: str, target: Target, key: str, instead: str, recipe: Path) -> None:
    found = loaded(recipe, text, target=target)
    with pytest.raises(RecipeError) as caught:
        require_effects(found, target)
    (line,) = [line for line in str(caught.value).splitlines() if key in line]
    assert line.startswith(f"  {key} has no effect with ")
    assert line.endswith(instead)


@pytest.mark.parametrize(
    ("text", "target"), [("serve: {instances: 1}", Target.TENSORRT_TP), ("tensor_parallel: 1", Target.ONNXRUNTIME)]
)
def test_what_is_so_anyway_may_be_said(text: str, target: Target, recipe: Path) -> None:
    require_effects(loaded(recipe, text, target=target), target)


def test_all_of_them_come_in_one_message(recipe: Path) -> None:
    found = loaded(recipe, "serve: {queue_share: 0.5, threads: 2, queue_requests: 9}", target=Target.TENSORRT)
    with pytest.raises(RecipeError) as caught:
        require_effects(found, Target.TENSORRT)
    assert len(str(caught.value).splitlines()) == 3
    assert "queue_requests has" not in str(caught.value)


def test_a_section_of_a_target_counts_there_alone(recipe: Path) -> None:
    sections = {target: loaded(recipe, EXAMPLE, target=target) for target in Target}
    for target, found in sections.items():
        require_effects(found, target)
        assert found.serve.deadline_ms == 200
    assert [found.serve.queue_share for found in sections.values()] == [0.5, 0.75, 0.75, 0.75]
    assert [found.serve.instances for found in sections.values()] == ["auto", "auto", 4, "auto"]


def test_the_command_line_wins_over_a_section_of_a_target(recipe: Path) -> None:
    text = "serve: {instances: 2, tensorrt: {instances: 4}}"
    assert loaded(recipe, text, "serve.instances=1", target=Target.TENSORRT).serve.instances == 1
    assert loaded(recipe, text, "serve.tensorrt-tp.queue_requests=7", target=Target.TENSORRT_TP).serve.instances == 2
    own = loaded(recipe, text, "serve.tensorrt.instances=8", target=Target.TENSORRT)
    assert own.serve.instances == 8


@pytest.mark.parametrize("target", Target)
def test_a_fault_in_a_section_of_any_target_is_named_with_its_line(target: Target, recipe: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        loaded(recipe, "serve:\n  tensorrt:\n    instance: 4\n", target=target)
    assert f"{recipe}:5: serve.tensorrt.instance: " in str(caught.value)


def test_the_section_of_plans_may_stand_in_any_recipe_but_not_on_any_command_line(recipe: Path) -> None:
    plans = "tensorrt: {precisions: [fp16]}"
    require_effects(loaded(recipe, plans), Target.CPU)
    told = ["tensorrt.precisions=[fp16]"]
    with pytest.raises(RecipeError, match=r"tensorrt\.precisions has no effect with target cpu"):
        require_effects(loaded(recipe, "", *told), Target.CPU, told)
    on_cuda = [*told, "serve.device=cuda"]
    require_effects(loaded(recipe, "", *on_cuda), Target.CPU, on_cuda)
    require_effects(loaded(recipe, "", *told, target=Target.TENSORRT), Target.TENSORRT, told)


@pytest.mark.parametrize("verb", ["build", "assemble", "compile"])
def test_the_verbs_refuse_before_anything_is_made(
    verb: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = [] if verb == "compile" else ["--target", "tensorrt"]
    arguments = [str(recipe), "--artifacts", str(recipe.parent / "artifacts"), "--set", "serve.queue_share=0.5"]
    monkeypatch.setattr("sys.argv", ["tritonrank", verb, *arguments, *target])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 2
    assert "serve.queue_share has no effect with target tensorrt" in capsys.readouterr().err
    assert [path.name for path in recipe.parent.iterdir()] == [recipe.name]


@pytest.mark.parametrize("path", sorted((ROOT / "build" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("target", [Target.CPU, Target.ONNXRUNTIME, Target.TENSORRT])
def test_the_recipes_in_the_tree_suit_every_target(path: Path, target: Target) -> None:
    require_effects(load_recipe(path, target=target), target)


def test_every_condition_is_shown(recipe: Path) -> None:
    used = {row.key: row.used for row in setting_rows()}
    assert used["serve.queue_share"] == "target cpu"
    assert used["serve.rows_per_batch"] == "target cpu; joint rankers; serve.device cpu"
    assert used["serve.deadline_ms"] == ""
    assert all("target" in used[key] for key in used if key.startswith("tensorrt."))
    assert used["tensorrt.noise"] in " ".join(shown().split())
    assert yaml.safe_load(EXAMPLE)["serve"]
