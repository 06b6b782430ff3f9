"""Items without text are left out; budgets come from the model; what is cut is counted and said."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from conftest import TESTS
from numpy.typing import NDArray
from scipy.stats import kendalltau
from stage_runs import prepared, publish_instead, run_verb
from tiny_models import FAMILIES, WORDS, save_ranker
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from tritonrank.artifacts import Draft, read_manifest
from tritonrank.artifacts.rungs import Rung
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.errors import DataError, GateError, RecipeError
from tritonrank.judge.gatekeeper import judge_teacher, require_ranking, uncut_rules
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.scorers import Request, torch_scorer
from tritonrank.rankers.text_budgets import Needs, rules_of_checkpoint
from tritonrank.rankers.text_counts import text_warnings
from tritonrank.recipe import DEFAULT_BUDGETS, Recipe, load_recipe
from tritonrank.train.finetune import text_rules
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import RequestTokenizer, TextRules

RECIPES = sorted((TESTS.parent / "build" / "recipes").glob("*.yaml"))
LANGUAGE_MODEL = "movielens-smollm2"
"""Its tokenizer is read out of a GGUF file, which takes half a minute."""
POSITIONS = 128
SMALL = {
    "training_examples": 60,
    "training_negatives": 3,
    "judged_negatives": 9,
    "validation_users": 10,
    "test_users": 40,
}


def words(random: np.random.Generator, count: int) -> str:
    """So many tokens."""
    return " ".join(random.choice(WORDS, count))


def write_tables(
    folder: Path, texts: Sequence[str | None], query: Callable[[np.random.Generator], str] | None = None
) -> dict[str, Any]:
    """80 or so items and 40 users with six events each, as CSV; the data section of their recipe."""
    random = np.random.default_rng(3)
    items = pl.DataFrame(
        {"item_id": [f"i{n}" for n in range(len(texts))], "title": texts}, schema_overrides={"title": pl.String}
    )
    rows = [
        (
            f"user-{user}",
            f"i{random.integers(len(texts))}",
            1_600_000_000 + 1_000 * event + user,
            query(random) if query else "",
        )
        for user in range(40)
        for event in range(6)
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "query"], orient="row")
    folder.mkdir(parents=True, exist_ok=True)
    items.write_csv(folder / "items.csv")
    events.write_csv(folder / "events.csv")
    data = {"source": "tables", "items": str(folder / "items.csv"), "events": str(folder / "events.csv")}
    return data | {"text_fields": ["title"]} | ({"query": "query"} if query else {})


def recipe_of(data: dict[str, Any], model: dict[str, Any] | None = None, **text: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "texts",
            "data": data,
            "examples": SMALL,
            "model": model or {},
            "text": text,
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ranker("bert", tmp_path_factory.mktemp("checkpoint"), positions=POSITIONS)


def every(dataset: Dataset) -> Iterator[Example]:
    yield from (*dataset.training, *dataset.validation, *dataset.test)


# Items without text

WITHOUT_TEXT = {3: "", 10: "   ", 17: None, 24: "\u200b\u200b", 31: "\x00"}
"""Empty, blank, absent, and texts of which the tokenizer keeps no token."""


@pytest.fixture(scope="module")
def with_gaps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    random = np.random.default_rng(1)
    texts = [WITHOUT_TEXT.get(n, words(random, 4)) for n in range(80)]
    return write_tables(tmp_path_factory.mktemp("gaps"), texts)


def test_items_without_text_are_nowhere_in_a_dataset(
    with_gaps: dict[str, Any], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(with_gaps, {"checkpoint": str(checkpoint)})
    manifest = prepared(recipe, tmp_path / "dataset")
    dataset = Dataset.read(tmp_path / "dataset")
    absent = {f"i{n}" for n in WITHOUT_TEXT}
    assert not absent & set(dataset.items)
    assert not absent & set(dataset.training_events["item_id"])
    for example in every(dataset):
        assert not absent & {*example.candidates, *example.history}
        assert sum(example.labels) == 1
    found = manifest.metrics["items_without_text"]
    assert (found["count"], found["of"], manifest.metrics["items"]) == (len(absent), 80, 80 - len(absent))
    assert set(found["first"]) <= absent
    events = pl.read_csv(with_gaps["events"])
    assert found["events"] == events.filter(pl.col("item_id").is_in(absent)).height > 0
    said = capsys.readouterr().out
    assert f"{len(absent)} items without text by text.item_template" in said
    assert "(such as i3, i10, i17, ...)" in said
    # Whose held-out positive has no text is judged by the one before it.
    last = {
        user: rows["item_id"].to_list()
        for (user,), rows in events.sort("timestamp").group_by("user_id", maintain_order=True)
    }
    cut_short = [example for example in dataset.test if last[example.user_id][-1] in absent]
    assert cut_short
    for example in cut_short:
        liked = [item for item in last[example.user_id] if item not in absent]
        assert example.candidates[example.labels.index(1)] == liked[-1]


def test_punctuation_of_the_template_is_no_text(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    data = write_tables(tmp_path, ["" if n % 8 == 0 else words(random, 3) for n in range(80)])
    manifest = prepared(recipe_of(data, item_template="Title: {title}, "), tmp_path / "dataset")
    assert manifest.metrics["items_without_text"]["count"] == 10


def test_a_catalogue_without_enough_texts_is_an_error_that_says_so(tmp_path: Path) -> None:
    data = write_tables(tmp_path, ["" if n > 8 else f"lamp {n}" for n in range(80)])
    with pytest.raises(DataError, match=r"71 of 80 items have no text .*\{title\}.*i9, .*leaves 9 items"):
        prepared(recipe_of(data), tmp_path / "dataset")
    nothing = write_tables(tmp_path / "nothing", [""] * 80)
    with pytest.raises(DataError, match="80 of 80 items have no text"):
        prepared(recipe_of(nothing), tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_another_tokenizer_prepares_anew_and_leaves_later_stages_alone(
    with_gaps: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    named = prepared(recipe_of(with_gaps, candidate_tokens=20), tmp_path / "named")
    fewer = prepared(recipe_of(with_gaps, candidate_tokens=4), tmp_path / "fewer")
    other = prepared(recipe_of(with_gaps, {"checkpoint": str(checkpoint)}), tmp_path / "other")
    assert len({named.key, fewer.key, other.key}) == 3
    assert named.artifact == fewer.artifact == other.artifact


# What is counted


def test_counts_are_those_of_the_models_own_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    texts = [words(random, int(random.integers(2, 60))) for _ in range(80)]
    data = write_tables(tmp_path, texts, lambda random: words(random, int(random.integers(1, 12))))
    budgets = {"query_tokens": 6, "history_items": 4, "history_tokens": 50, "candidate_tokens": 30}
    metrics = prepared(recipe_of(data, {"checkpoint": str(checkpoint)}, **budgets), tmp_path / "dataset").metrics
    counts, dataset = metrics["text"], Dataset.read(tmp_path / "dataset")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def lengths(texts: Sequence[str]) -> NDArray[np.int64]:
        return np.array([len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts])

    items = lengths(texts)
    assert counts["items"]["cut_share"] == pytest.approx((items > 30).mean())
    assert counts["items"]["lost"] == np.median(items[items > 30] - 30)
    assert counts["items"]["longest"] == items.max()
    assert (items <= counts["items"]["tokens_95"]).mean() >= 0.95 > (items < counts["items"]["tokens_95"]).mean()
    queries = lengths(sorted(set(pl.read_csv(data["events"])["query"])))
    assert counts["queries"]["cut_share"] == pytest.approx((queries > 6).mean())
    of_item = dict(zip((f"i{n}" for n in range(80)), items, strict=True))
    candidates = np.array([of_item[item] for example in dataset.test for item in example.candidates])
    assert counts["judged_candidates"]["cut_share"] == pytest.approx((candidates > 30).mean())

    rules = TextRules(**counts["rules"])
    request_tokenizer = RequestTokenizer(AutoTokenizer.from_pretrained(checkpoint).backend_tokenizer, rules)
    separator = tokenizer.sep_token_id
    read = [
        request_tokenizer.context("", request.history).count(separator) + 1
        for request in requests_of(dataset, dataset.test, rules)
    ]
    assert counts["history"]["read"] == pytest.approx(np.mean(read))
    assert counts["history"]["wanted"] == pytest.approx(np.mean([len(e.history[-4:]) for e in dataset.test]))


@pytest.mark.parametrize(("long", "warned"), [(2, False), (10, True)])
def test_cut_texts_are_told_with_the_setting_that_holds_them(
    long: int, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tables(tmp_path, ["lamp " * (40 if n < long else 4) for n in range(80)])
    prepared(recipe_of(data), tmp_path / "dataset")
    said = capsys.readouterr().out
    assert ("--set text.candidate_tokens=40" in said) == warned
    assert f"{long / 80:.1%} cut" in said


def test_a_history_that_hardly_fits_is_told(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    data = write_tables(tmp_path, [words(random, 30) for _ in range(80)])
    metrics = prepared(recipe_of(data, history_items=5, history_tokens=40), tmp_path / "dataset").metrics
    (warning,) = [said for said in text_warnings(metrics["text"]) if "history" in said]
    enough = int(re.search(r"text\.history_tokens=(\d+)", warning)[1])  # type: ignore[index]
    assert 100 < enough < 250


def test_a_ranking_that_is_the_same_for_everybody_is_told(checkpoint: Path, tmp_path: Path) -> None:
    data = write_tables(tmp_path, [f"lamp {n}" for n in range(80)])
    for text, told in (({}, True), ({"history_items": 2}, False)):
        metrics = prepared(recipe_of(data, {"checkpoint": str(checkpoint)}, **text), tmp_path / "dataset").metrics
        assert any("--set text.history_items=8" in said for said in text_warnings(metrics["text"])) == told


# Budgets from the model


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem == LANGUAGE_MODEL else [])
        for path in RECIPES
    ],
)
def test_the_recipes_here_keep_the_budgets_that_they_name(path: Path) -> None:
    named = yaml.safe_load(path.read_text(encoding="utf-8"))["text"]
    rules = text_rules(load_recipe(path))
    assert {name: getattr(rules, name) for name in named} == named


def test_a_ranker_that_is_trained_here_has_the_defaults() -> None:
    rules = text_rules(Recipe(name="some", data={"source": "sample"}))
    assert {name: getattr(rules, name) for name in DEFAULT_BUDGETS} == DEFAULT_BUDGETS


@pytest.mark.parametrize(
    ("needs", "named", "expected"),
    [
        # (query, history items, history tokens, candidate); rows of 128 with three special tokens and a separator
        (Needs(0, 20), {}, (24, 0, 0, 32)),
        (Needs(30, 61), {}, (32, 0, 0, 64)),
        (Needs(10, 500), {}, (24, 0, 0, 100)),
        (Needs(500, 500), {}, (62, 0, 0, 62)),
        (Needs(500, 20), {}, (92, 0, 0, 32)),
        (Needs(10, 500), {"candidate_tokens": 40}, (24, 0, 0, 40)),
        (Needs(10, 500), {"query_tokens": 8}, (8, 0, 0, 116)),
        (Needs(10, 500), {"history_items": 4}, (24, 4, 31, 69)),
        (Needs(10, 20), {"history_items": 1}, (24, 1, 33, 32)),
        (Needs(10, 500), {"history_tokens": 20}, (24, 8, 20, 80)),
        (Needs(10, 500), {"history_items": 0, "history_tokens": 20}, (24, 0, 20, 80)),
    ],
)
def test_budgets_share_the_positions_by_what_the_data_need(
    needs: Needs, named: dict[str, int], expected: tuple[int, ...], checkpoint: Path
) -> None:
    recipe = recipe_of({"source": "sample"}, {"checkpoint": str(checkpoint)}, **named)
    rules = rules_of_checkpoint(recipe.model, recipe.text, needs)
    assert (rules.query_tokens, rules.history_items, rules.history_tokens, rules.candidate_tokens) == expected
    row = RequestTokenizer(AutoTokenizer.from_pretrained(checkpoint).backend_tokenizer, rules).longest_rows["input_ids"]
    assert row <= POSITIONS


def test_a_model_for_long_texts_reads_them(tmp_path: Path) -> None:
    folder = save_ranker("bert", tmp_path / "long", positions=2_048)
    recipe = recipe_of({"source": "sample"}, {"checkpoint": str(folder)})
    assert rules_of_checkpoint(recipe.model, recipe.text, Needs(10, 1_500)).candidate_tokens == 1_504
    named = recipe_of({"source": "sample"}, {"checkpoint": str(folder)}, candidate_tokens=1_024)
    assert rules_of_checkpoint(named.model, named.text, Needs(10, 1_500)).candidate_tokens == 1_024


def test_budgets_that_wait_for_the_data_say_so(checkpoint: Path) -> None:
    with pytest.raises(RecipeError, match="tritonrank prepare"):
        text_rules(recipe_of({"source": "sample"}, {"checkpoint": str(checkpoint)}))


def test_a_checkpoint_of_our_own_brings_its_budgets(tmp_path: Path) -> None:
    folder = save_ranker("bert", tmp_path / "own")
    TextRules("{old}", 5, 2, 11, 13).save(folder)
    rules = text_rules(recipe_of({"source": "sample"}, {"checkpoint": str(folder)}, candidate_tokens=9))
    assert rules == TextRules("{title}", 5, 2, 11, 9)


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Long texts that begin alike: what tells them apart lies behind the default budget."""
    random = np.random.default_rng(6)
    texts = ["oak lamp " * 20 + words(random, 45) for _ in range(80)]
    return write_tables(tmp_path_factory.mktemp("passages"), texts, lambda random: words(random, 3))


def scores_of_the_model_alone(checkpoint: Path, request: Request, longest: int) -> NDArray[np.float32]:
    """What the checkpoint's users know: pairs through its own tokenizer and model, cut at so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    pairs = [(request.query, item) for item in request.items]
    inputs = tokenizer(pairs, padding=True, truncation="longest_first", max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        return np.asarray(model(**inputs).logits[:, 0].numpy())


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "roberta"])  # makes too many tokens of these
def test_a_checkpoint_ranks_long_texts_as_it_does_alone(
    family: str, passages: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_ranker(family, tmp_path / "hub", positions=POSITIONS)
    recipe = recipe_of(passages, {"checkpoint": str(checkpoint)})
    workspace = Workspace(tmp_path / "texts")
    run_stages(recipe, workspace, until="finetune")
    rules = TextRules.load(workspace.teacher)
    assert (rules.history_items, rules.candidate_tokens) == (0, 88)  # 85 are the longest
    assert rules == text_rules(recipe, workspace.dataset)
    dataset, scorer = Dataset.read(workspace.dataset), open_scorer(workspace.teacher)
    for request in requests_of(dataset, dataset.test[:5], rules):
        alone = scores_of_the_model_alone(checkpoint, Request(request.query, [], request.items), 120)
        np.testing.assert_allclose(scorer.score(request), alone, atol=1e-5)
        assert kendalltau(scorer.score(request), alone).statistic == pytest.approx(1)
    said = capsys.readouterr().out
    assert re.search(r"88 tokens\s+model", said)
    assert "as it is" in said


def test_texts_beyond_the_positions_are_cut_where_the_positions_end(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(8)
    texts = [words(random, 200) for _ in range(80)]
    recipe = recipe_of(write_tables(tmp_path, texts), {"checkpoint": str(checkpoint)})
    workspace = Workspace(tmp_path / "texts")
    run_stages(recipe, workspace, until="finetune")
    rules, dataset = TextRules.load(workspace.teacher), Dataset.read(workspace.dataset)
    row = RequestTokenizer.from_folder(workspace.teacher).longest_rows["input_ids"]
    assert row == POSITIONS
    assert uncut_rules(recipe, workspace.teacher, workspace.dataset) is None
    said = capsys.readouterr().out
    assert "100% of the item texts are cut at 100 tokens" in said
    assert "--set" not in said.split("item texts are cut")[1].splitlines()[0]  # no setting would hold more
    (request,) = requests_of(dataset, dataset.test[:1], rules)
    longest = POSITIONS - rules.query_tokens - 1  # the query and its separator have their places, and are not there
    alone = scores_of_the_model_alone(checkpoint, Request("", [], request.items), longest)
    np.testing.assert_allclose(open_scorer(workspace.teacher).score(request), alone, atol=1e-5)


def test_long_budgets_remember_fewer_items(checkpoint: Path) -> None:
    """So that the memory of a server stays what it is with short ones: 3.2 million tokens."""
    backend = AutoTokenizer.from_pretrained(checkpoint).backend_tokenizer
    for budget, remembered in ((32, 40), (80_000, 40), (320_000, 10)):
        tokenizer = RequestTokenizer(backend, TextRules("{title}", 0, 0, 0, budget), cache_entries=40)
        tokenizer.items([f"lamp {n}" for n in range(50)])
        assert tokenizer.remembered == remembered


# The gate against the uncut teacher


def label_by(workspace: Workspace, recipe: Recipe, rules: TextRules) -> None:
    """Publish the dataset once more with the favourites of the checkpoint under other rules as the positives."""
    manifest, dataset = read_manifest(workspace.dataset), Dataset.read(workspace.dataset)
    uncut = RequestTokenizer(AutoTokenizer.from_pretrained(workspace.teacher).backend_tokenizer, rules)
    model = AutoModelForSequenceClassification.from_pretrained(workspace.teacher).eval()
    scores = [torch_scorer(model, uncut).score(request) for request in requests_of(dataset, dataset.test, rules)]
    labels = [(one == one.max()).astype("int8").tolist() for one in scores]
    tables = {path.name: pl.read_parquet(path) for path in workspace.dataset.glob("*.parquet")}
    test = tables["test.parquet"]
    tables["test.parquet"] = test.with_columns(pl.Series("labels", labels, dtype=test.schema["labels"]))

    def relabelled(draft: Draft) -> None:
        for name, table in tables.items():
            table.write_parquet(draft.folder / name)
        draft.metrics |= manifest.metrics

    publish_instead(recipe, workspace, relabelled)


def test_a_checkpoint_whose_texts_are_cut_does_not_pass_for_itself(
    passages: dict[str, Any], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ranking depends on late tokens; with 32 of them it agrees with itself, but not with what it was."""
    recipe = recipe_of(passages, {"checkpoint": str(checkpoint)}, candidate_tokens=32)
    workspace = Workspace(tmp_path / "texts")
    run_stages(recipe, workspace, until="finetune")
    whole = uncut_rules(recipe, workspace.teacher, workspace.dataset)
    assert whole is not None
    assert whole.candidate_tokens == 88
    label_by(workspace, recipe, whole)
    run_verb("finetune", recipe, workspace)
    rung = Rung("INT8", workspace.teacher)
    with pytest.raises(
        GateError, match=r"(?s)INT8 against checkpoint, uncut: NDCG@10 fell by .*text\.candidate_tokens=auto"
    ):
        require_ranking(recipe, workspace, "quantize", rung, rung)
    uncut = judge_teacher(recipe, workspace.teacher, workspace.dataset, workspace.judgements)
    assert (uncut.name, uncut.values().mean()) == ("checkpoint, uncut", 1.0)
    capsys.readouterr()
    judge_teacher(recipe, workspace.teacher, workspace.dataset, workspace.judgements)
    assert "takes longer" not in capsys.readouterr().out  # kept, not judged again


@pytest.mark.parametrize("why", ["nothing is cut", "no more positions", "trained here"])
def test_where_whole_texts_make_no_difference_nothing_is_judged_twice(
    why: str, passages: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    model, text = {"checkpoint": str(checkpoint)}, {}
    if why == "no more positions":
        model = {"checkpoint": str(save_ranker("bert", tmp_path / "short", positions=64))}
    folder = tmp_path / "texts"
    recipe = recipe_of(passages, model, **text)
    if why == "trained here":
        recipe = recipe_of(passages, {"architecture": "joint"}, candidate_tokens=32)
    prepared(recipe, folder / "dataset")
    teacher = folder / "teacher"
    if why != "trained here":
        run_verb("finetune", recipe, Workspace(folder))
    assert uncut_rules(recipe, teacher, folder / "dataset") is None


def test_rendered_texts_are_what_is_counted(with_gaps: dict[str, Any], tmp_path: Path) -> None:
    prepared(recipe_of(with_gaps, item_template="{title} {title}"), tmp_path / "dataset")
    counts = read_manifest(tmp_path / "dataset").metrics["text"]
    items = Dataset.read(tmp_path / "dataset").items
    tokenizer = AutoTokenizer.from_pretrained(save_ranker("bert", tmp_path / "other"))
    assert counts["items"]["count"] == len(items)
    assert all(render_fields("{title} {title}", fields).count(" ") == 7 for fields in items.values())
    assert tokenizer is not None
    assert json.loads(json.dumps(counts)) == counts
