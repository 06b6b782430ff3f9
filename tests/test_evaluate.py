"""The judge scores every example once, refuses what is no ranking, and remembers by content."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score
from stage_runs import prepared
from tritonrank.data.dataset import Dataset, Example
from tritonrank.errors import ArtifactError
from tritonrank.judge import evaluate
from tritonrank.judge.evaluate import (
    Judgement,
    cached,
    content_hash,
    judge,
    judge_artifact,
    judge_scorer,
    judge_test_examples,
)
from tritonrank.judge.metrics import METRICS
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import Recipe
from tritonrank_runtime.text import RULES_FILE, TextRules

RULES = TextRules("{title} by {brand}", query_tokens=8, history_items=4, history_tokens=24, candidate_tokens=12)


def examples(count: int = 6, candidates: int = 15) -> list[Example]:
    random = np.random.default_rng(1)
    return [
        Example(
            example_id=f"user-{n}:4",
            user_id=f"user-{n}",
            query="",
            history=[],
            candidates=[f"item-{c}" for c in range(candidates)],
            labels=np.eye(1, candidates, random.integers(0, candidates), dtype=int)[0].tolist(),
        )
        for n in range(count)
    ]


def random_scores(example: Example) -> np.ndarray[Any, Any]:
    seed = int(example.user_id.removeprefix("user-"))
    return np.random.default_rng(seed).permutation(len(example.candidates)) / 7


class LengthScorer:
    """Likes long texts, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def score(self, request: Request) -> np.ndarray[Any, Any]:
        self.requests.append(request)
        return np.array([len(item) for item in request.items], dtype=np.float32)


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "dataset"
    recipe = {
        "name": "test",
        "data": {"source": "sample", "items": 80, "users": 40},
        "examples": {"judged_negatives": 12, "test_users": 8, "validation_users": 5, "training_examples": 20},
        "text": {"item_template": RULES.item_template},
    }
    prepared(Recipe.model_validate(recipe), folder)
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    RULES.save(folder)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[LengthScorer]:
    """Every model folder opens as a LengthScorer; they are collected here."""
    scorers: list[LengthScorer] = []

    def open_scorer(folder: Path) -> LengthScorer:
        scorers.append(LengthScorer())
        return scorers[-1]

    monkeypatch.setattr(evaluate, "open_scorer", open_scorer)
    return scorers


# Judging


def test_the_table_holds_every_score_and_the_metrics_of_scikit_learn() -> None:
    judged = judge("random", random_scores, examples())
    assert judged.example_ids == [example.example_id for example in examples()]
    for row, example in zip(judged.table.iter_rows(named=True), examples(), strict=True):
        scores = random_scores(example)
        assert row["scores"] == scores.astype(np.float32).tolist()
        assert row["labels"] == example.labels
        assert row["ndcg@10"] == pytest.approx(ndcg_score([example.labels], [scores], k=10))
        assert row["auc"] == pytest.approx(roc_auc_score(example.labels, scores))
    assert judged.table.schema["scores"] == pl.List(pl.Float32)
    assert set(METRICS) <= set(judged.table.columns)
    assert judged.values("auc").mean() == pytest.approx(judged.interval("auc").mean)


def test_a_perfect_scorer_has_the_best_marks() -> None:
    judged = judge("oracle", lambda example: np.array(example.labels, dtype=np.float32), examples())
    for metric in METRICS:
        assert (judged.values(metric) == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])  # 1e39 is more than float32 holds
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_score_that_is_not_finite_is_an_error(bad: float) -> None:
    def score(example: Example) -> np.ndarray[Any, Any]:
        scores = np.arange(len(example.candidates), dtype=np.float64)
        if example.example_id == "user-3:4":
            scores[[2, 5]] = bad
        return scores

    with pytest.raises(ArtifactError, match=r"broken: example 4 of \d+ .* 2 of them not finite") as caught:
        judge("broken", score, examples())
    assert "user-3" not in str(caught.value)  # messages end up in logs


@pytest.mark.parametrize("shape", [(14,), (16,), (15, 1), (1, 15), ()])
def test_one_score_per_candidate_is_needed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match=r"example 1 of .*expected 15 numbers"):
        judge("broken", lambda _: np.zeros(shape, dtype=np.float32), examples())


def test_a_scorer_gets_what_a_client_would_send(dataset_folder: Path) -> None:
    dataset, scorer = Dataset.read(dataset_folder), LengthScorer()
    judged = judge_scorer("length", scorer, dataset, dataset.test, RULES)

    def text(item: str) -> str:
        return f"{dataset.items[item]['title']} by {dataset.items[item]['brand']}"

    assert len(scorer.requests) == len(dataset.test) == 8
    for request, example, scores in zip(scorer.requests, dataset.test, judged.table["scores"], strict=True):
        assert request.query == example.query
        assert request.history == [text(item) for item in example.history]
        assert request.items == [text(item) for item in example.candidates]
        assert scores.to_list() == [len(item) for item in request.items]
    assert judged.example_ids == [example.example_id for example in dataset.test]


def test_only_test_examples_are_judged(dataset_folder: Path) -> None:
    dataset = Dataset.read(dataset_folder)
    judged = judge_test_examples("length", LengthScorer(), dataset_folder, RULES)
    assert judged.example_ids == [example.example_id for example in dataset.test]
    assert not set(judged.example_ids) & {example.example_id for example in [*dataset.training, *dataset.validation]}


# Remembering


def test_nothing_is_judged_twice(
    dataset_folder: Path, model_folder: Path, tmp_path: Path, opened: list[LengthScorer]
) -> None:
    first = judge_artifact("onnx", model_folder, dataset_folder, tmp_path / "judgements")
    again = judge_artifact("another name", model_folder, dataset_folder, tmp_path / "judgements")
    assert len(opened) == 1
    assert again.table.equals(first.table)
    assert again.table.schema == first.table.schema
    assert (first.name, again.name) == ("onnx", "another name")


def append(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b" ")


@pytest.mark.parametrize(
    ("change", "judged_again"),
    [
        (append("model.onnx"), True),
        (append("tokenizer.json"), True),
        (append(RULES_FILE), True),
        (lambda folder: (folder / "tokenizer.json").unlink(), True),
        (lambda folder: (folder / "config.json").write_text("{}"), True),
        (lambda folder: (folder / "notes.txt").write_text("nothing that scores"), False),
        (lambda folder: (folder / "manifest.json").write_text("{}"), False),
    ],
)
def test_what_scores_decides_what_is_remembered(
    dataset_folder: Path,
    model_folder: Path,
    tmp_path: Path,
    opened: list[LengthScorer],
    change: Callable[[Path], Any],
    judged_again: bool,
) -> None:
    judge_artifact("onnx", model_folder, dataset_folder, tmp_path / "judgements")
    change(model_folder)
    judge_artifact("onnx", model_folder, dataset_folder, tmp_path / "judgements")
    assert len(opened) == 1 + judged_again


def test_other_test_examples_are_judged_anew(
    dataset_folder: Path, model_folder: Path, tmp_path: Path, opened: list[LengthScorer]
) -> None:
    judge_artifact("onnx", model_folder, dataset_folder, tmp_path / "judgements")
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for file in dataset_folder.iterdir():
        (fewer / file.name).write_bytes(file.read_bytes())
    pl.read_parquet(fewer / "test.parquet").head(3).write_parquet(fewer / "test.parquet")
    assert judge_artifact("onnx", model_folder, fewer, tmp_path / "judgements").table.height == 3
    assert len(opened) == 2


@pytest.mark.parametrize(("table", "column"), [("items", "title"), ("test", "query")])
def test_other_texts_are_judged_anew(
    table: str, column: str, dataset_folder: Path, model_folder: Path, tmp_path: Path, opened: list[LengthScorer]
) -> None:
    """Examples name their items only; what the model reads is in another file."""
    judge_artifact("onnx", model_folder, dataset_folder, tmp_path / "judgements")
    other = tmp_path / "other"
    shutil.copytree(dataset_folder, other)
    path = other / f"{table}.parquet"
    pl.read_parquet(path).with_columns(pl.lit("corrected").alias(column)).write_parquet(path)
    judge_artifact("onnx", model_folder, other, tmp_path / "judgements")
    assert len(opened) == 2


@pytest.mark.parametrize("changed", ["rank1.bin", "rank0.model.onnx", "shards.json"])
def test_shards_are_what_scores(changed: str, tmp_path: Path) -> None:
    for name in ("shards.json", "rank0.model.onnx", "rank1.model.onnx", "rank0.bin", "rank1.bin", "replicated.bin"):
        (tmp_path / name).write_text("before")
    before = content_hash(tmp_path)
    (tmp_path / changed).write_text("after")
    assert content_hash(tmp_path) != before


def test_a_folder_without_weights_is_nothing_to_judge(model_folder: Path) -> None:
    (model_folder / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model: no model\.safetensors, ONNX graph or shards"):
        content_hash(model_folder)


def test_where_a_model_lies_does_not_matter(model_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tmp"
    copy.mkdir()
    for file in model_folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert content_hash(copy) == content_hash(model_folder)
    (copy / "model.onnx").rename(copy / "model.safetensors")  # the same bytes in another role
    assert content_hash(copy) != content_hash(model_folder)


def test_a_failed_judgement_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "judgements" / "one.parquet"

    def fail() -> Judgement:
        raise ArtifactError("not finite")

    with pytest.raises(ArtifactError):
        cached("broken", path, fail)
    assert not path.exists()
    made = cached("mended", path, lambda: judge("mended", random_scores, examples()))
    read = cached("read", path, fail)
    assert read.table.equals(made.table)
    assert [file.name for file in path.parent.iterdir()] == ["one.parquet"]


def test_a_judgement_cut_off_while_writing_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.parquet"

    def cut_off(self: pl.DataFrame, file: Path) -> None:
        Path(file).write_bytes(b"PAR1 half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", cut_off)
        with pytest.raises(KeyboardInterrupt):
            cached("cut off", path, lambda: judge("cut off", random_scores, examples()))
    assert not path.exists()
    assert cached("again", path, lambda: judge("again", random_scores, examples())).table.height == 6
