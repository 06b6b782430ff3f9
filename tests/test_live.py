"""Rungs judged again from a live server: the same answers pass, others are told by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_models import WORDS, save_ranker
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.errors import GateError, RecipeError, ServerError
from tritonrank.judge.evaluate import Judgement, judge_artifact
from tritonrank.judge.live_record import LIVE, LIVE_FILE
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.server_scorer import Request, ServerScorer
from tritonrank.recipe import Recipe
from tritonrank.report.answer import SUMMARY_FILE
from tritonrank.report.ladder import ladder, read_build
from tritonrank.report.page import make_report
from tritonrank.serve import live
from tritonrank.serve.live import compare, judge_live
from tritonrank_client import RankClient, Retry


@pytest.fixture
def copied(workspace: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(workspace.root, tmp_path / "tiny", symlinks=True)
    return Workspace(tmp_path / "tiny")


def test_a_checkpoint_and_an_int8_graph_answer_through_triton_as_they_were_judged(
    copied: Workspace, tiny_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = judge_live(tiny_recipe, copied, ["fine-tuned", "INT8"])
    assert [rung.name for rung in judged] == ["fine-tuned", "INT8"]
    for rung, folder in zip(judged, (copied.teacher, copied.int8), strict=True):
        before = judge_artifact(rung.name, folder, copied.dataset, copied.judgements)
        assert rung.examples == len(before.table) > 10
        assert rung.ndcg == pytest.approx(before.values().mean())
        assert rung.live_ndcg == pytest.approx(rung.ndcg, abs=1e-3)
        assert rung.same_top10 >= 0.99
    assert "as judged" in capsys.readouterr().out
    rows = {row.name: row for row in ladder(read_build(copied.root))}
    assert rows["INT8"].live == judged[1]
    assert rows["ONNX FP32"].live is None
    page, markdown = make_report(copied.root)
    assert "the same ten best" in page.read_text(encoding="utf-8")
    served = next(line for line in markdown.read_text(encoding="utf-8").splitlines() if line.startswith("| INT8"))
    assert served.endswith(f"| {judged[1].live_ndcg:.4f} ({100 * judged[1].same_top10:.1f}%) |")


@pytest.fixture(scope="module")
def odd_texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Workspace]:
    """A ready checkpoint on a shop where every seventh item has no title, and half of the others are JSON."""
    root, random = tmp_path_factory.mktemp("odd"), np.random.default_rng(1)
    titles = [" ".join(random.choice(WORDS, 4)) for _ in range(80)]
    titles = [json.dumps({"title": title, "en": title}) if n % 2 else title for n, title in enumerate(titles)]
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(80)], "title": titles})
    items = items.with_columns(pl.when(pl.int_range(80) % 7 == 0).then(pl.lit("")).otherwise("title").alias("title"))
    rows = [(f"u{user}", f"i{random.integers(80)}", 1_600_000_000 + 99 * n) for user in range(40) for n in range(6)]
    items.write_csv(root / "items.csv")
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(root / "events.csv")
    tables = {"items": str(root / "items.csv"), "events": str(root / "events.csv"), "text_fields": ["title"]}
    values = {
        "name": "odd",
        "data": {"source": "tables", **tables},
        "text": {"history_items": 3},
        "examples": {"judged_negatives": 9, "training_negatives": 3, "validation_users": 10, "test_users": 40},
        "model": {"checkpoint": str(save_ranker("bert", root / "checkpoint"))},
        "quantize": {"method": "none"},
    }
    recipe, workspace = Recipe.model_validate(values), Workspace(root / "artifacts")
    run_stages(recipe, workspace)
    return recipe, workspace


def test_texts_that_are_json_and_items_without_text_are_served_as_they_were_judged(
    odd_texts: tuple[Recipe, Workspace],
) -> None:
    recipe, workspace = odd_texts
    (judged,) = judge_live(recipe, workspace, ["ONNX FP32"])
    assert (judged.passed, judged.same_top10) == (True, 1.0)
    titles = [fields["title"] for fields in Dataset.read(workspace.dataset).items.values()]
    assert any(title.startswith("{") for title in titles)
    assert "" not in titles


def test_a_ready_checkpoint_is_called_one_and_has_no_untrained_state(odd_texts: tuple[Recipe, Workspace]) -> None:
    _, workspace = odd_texts
    rows = [row["name"] for row in json.loads((workspace.summary / SUMMARY_FILE).read_text())["rows"]]
    assert rows == ["random", "popularity", "item kNN", "zero-shot cosine", "checkpoint", "ONNX FP32"]
    page, markdown = make_report(workspace.root)
    for text in (page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")):
        assert "fine-tuned" not in text
        assert "What the model reads" in text
        assert "12 of 80 items have no text" in text.replace("\\", "")


@pytest.mark.slow
def test_graphs_for_tensorrt_answer_through_triton_on_the_cpu(copied: Workspace, tiny_recipe: Recipe) -> None:
    tensorrt = tiny_recipe.tensorrt.model_copy(update={"precisions": ["fp16"]})
    recipe = tiny_recipe.model_copy(update={"tensorrt": tensorrt})
    run_stages(recipe, copied, until="fp16")
    judged = judge_live(recipe, copied, ["ONNX FP32, batched", "FP16"])
    assert [rung.passed for rung in judged] == [True, True]


def test_a_rung_that_answers_otherwise_is_told_by_name(
    copied: Workspace, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(recipe: Recipe, workspace: Workspace, name: str, artifact: live.Artifact) -> Judgement:
        found = judge_artifact(name, artifact.folder, workspace.dataset, workspace.judgements)
        return found if name != "ONNX FP32" else Judgement(name, reordered(found.table, len(found.table)))

    monkeypatch.setattr(live, "judge_served", answers)
    with pytest.raises(GateError, match=r"was judged: ONNX FP32; .*live\.json has .* --live --rung NAME"):
        judge_live(tiny_recipe, copied)
    assert passed(copied) == {"fine-tuned": True, "ONNX FP32": False, "INT8": True}
    page, markdown = make_report(copied.root)
    assert page.read_text(encoding="utf-8").count("not as judged") == 1
    assert "(0.0%, not as judged)" in markdown.read_text(encoding="utf-8")

    # One alone is what the message asks for; what is known of the others stays.
    judge_live(tiny_recipe, copied, ["INT8"])
    assert passed(copied) == {"fine-tuned": True, "ONNX FP32": False, "INT8": True}


def passed(workspace: Workspace) -> dict[str, bool]:
    return {row["name"]: row["passed"] for row in json.loads((workspace.root / LIVE / LIVE_FILE).read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("serve", [{"executor": "torch"}, {"device": "cuda"}])
def test_rungs_are_served_as_they_were_judged_whatever_the_recipe_serves_with(
    serve: dict[str, str], copied: Workspace, tiny_recipe: Recipe
) -> None:
    recipe = tiny_recipe.model_copy(update={"serve": tiny_recipe.serve.model_copy(update=serve)})
    (judged,) = judge_live(recipe, copied, ["ONNX FP32"])
    assert judged.passed


def test_a_request_without_an_answer_is_an_error_of_the_server() -> None:
    with (
        RankClient("grpc://127.0.0.1:1", retry=Retry(attempts=1)) as client,
        pytest.raises(ServerError, match=r"grpc://127\.0\.0\.1:1"),
    ):
        ServerScorer(client).score(Request("desk", [], ["lamp"]))


def reordered(table: pl.DataFrame, requests: int) -> pl.DataFrame:
    """The first so many requests with the opposite ranking."""
    scores = [
        [-score for score in row] if number < requests else row for number, row in enumerate(table["scores"].to_list())
    ]
    return table.with_columns(pl.Series("scores", scores, dtype=pl.List(pl.Float32)))


@pytest.mark.parametrize(("requests", "passed"), [(0, True), (1, True), (2, False)])
def test_one_request_in_a_hundred_may_have_another_order(requests: int, passed: bool) -> None:
    generator = np.random.default_rng(5)
    scores = generator.normal(size=(100, 12)).astype(np.float32).tolist()
    table = pl.DataFrame({"scores": pl.Series(scores, dtype=pl.List(pl.Float32)), "ndcg@10": [0.5] * 100})
    found = compare(Judgement("INT8", table), Judgement("live", reordered(table, requests)), "hash")
    assert found.same_top10 == pytest.approx(1 - requests / 100)
    assert found.passed == passed


@pytest.mark.parametrize(("difference", "passed"), [(0.0009, True), (0.0011, False), (-0.0011, False)])
def test_the_mean_of_the_metric_has_to_be_the_same(difference: float, passed: bool) -> None:
    scores = pl.Series([[2.0, 1.0]] * 40, dtype=pl.List(pl.Float32))
    judged, answered = (
        Judgement("INT8", pl.DataFrame({"scores": scores, "ndcg@10": [value] * 40}))
        for value in (0.5, 0.5 + difference)
    )
    assert compare(judged, answered, "hash").passed == passed


def test_a_rung_that_is_not_there_is_an_error(workspace: Workspace, tiny_recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"no rung student; there are: fine-tuned, ONNX FP32, INT8"):
        judge_live(tiny_recipe, workspace, ["student"])
