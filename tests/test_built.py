"""A real build of the tiny recipe: what is up to date, what its summary says, what its golden requests hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import VERBS, changed
from tiny_rerankers import save_reranker
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.rungs import model_rungs
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.judge.evaluate import ExampleScorer, judge_artifact
from tritonrank.judge.gate import paired_difference
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import ModelSettings, Recipe
from tritonrank.report import baselines as baselines_module
from tritonrank.report.answer import SUMMARY_FILE
from tritonrank.report.baselines import UNTRAINED, UNTRAINED_EXAMPLES, baseline_judgements
from tritonrank.serve.assemble import GOLDEN_CANDIDATES, golden_cases
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.text import RequestTokenizer, TextRules


@pytest.fixture
def copied(workspace: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(workspace.root, tmp_path / "tiny", symlinks=True)
    return Workspace(tmp_path / "tiny")


def ran_and_skipped(output: str) -> tuple[list[str], list[str]]:
    lines = [line.split() for line in output.splitlines() if line.split()[:1] and line.split()[0] in VERBS]
    return [w[0] for w in lines if w[1] == "->"], [w[0] for w in lines if w[1:4] == ["up", "to", "date"]]


def test_a_finished_build_has_nothing_to_do(
    tiny_recipe: Recipe, copied: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(tiny_recipe, copied)
    assert ran_and_skipped(capsys.readouterr().out) == ([], VERBS)


def test_a_serving_setting_rebuilds_the_repository_alone(
    tiny_recipe: Recipe, copied: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(changed(tiny_recipe, "serve", queue_requests=5), copied)
    ran, skipped = ran_and_skipped(capsys.readouterr().out)
    assert (ran, skipped) == (["assemble"], [verb for verb in VERBS if verb != "assemble"])
    assert 'string_value: "5"' in (copied.repository / "ranker" / "config.pbtxt").read_text()


def test_a_damaged_repository_is_rebuilt_as_it_was(
    tiny_recipe: Recipe, copied: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(copied.repository)
    (copied.repository / "ranker" / "1" / "candidates.onnx").write_bytes(b"half")
    run_stages(tiny_recipe, copied)
    assert ran_and_skipped(capsys.readouterr().out)[0] == ["assemble"]
    assert read_manifest(copied.repository).files == before.files


def read_summary(workspace: Workspace) -> dict[str, dict[str, object]]:
    rows = json.loads((workspace.summary / SUMMARY_FILE).read_text())["rows"]
    return {row["name"]: row for row in rows}


def test_summary_has_every_baseline_and_every_rung(workspace: Workspace) -> None:
    rows = read_summary(workspace)
    baselines = ["random", "popularity", "item kNN", "zero-shot cosine", "untrained"]
    assert list(rows) == [*baselines, "fine-tuned", "ONNX FP32", "INT8"]
    # Two graphs around one file of weights, most of which are the word embeddings, in FP32.
    megabytes = {"fine-tuned": 8.2, "ONNX FP32": 8.3, "INT8": 8.1}
    for name, row in rows.items():
        for metric in ("ndcg@10", "mrr@10", "recall@10", "auc", "difference"):
            interval = row[metric]
            assert interval["low"] <= interval["mean"] <= interval["high"], (name, metric)
        assert ("milliseconds_per_100" in row) == (name not in baselines)
        if name not in baselines:
            assert row["milliseconds_per_100"] > 0
            assert row["megabytes"] == pytest.approx(megabytes[name], abs=0.3)


def test_summary_pairs_each_row_with_the_teacher_on_the_same_examples(
    workspace: Workspace, tiny_recipe: Recipe
) -> None:
    rows, dataset = read_summary(workspace), Dataset.read(workspace.dataset)
    judged = baseline_judgements(tiny_recipe, dataset, workspace)
    rungs = model_rungs(tiny_recipe, workspace)
    for name, folder in rungs.items():
        judged[name] = judge_artifact(name, folder, workspace.dataset, workspace.judgements)
    test = [example.example_id for example in dataset.test]
    teacher = judged["fine-tuned"]
    for name, judgement in judged.items():
        count = UNTRAINED_EXAMPLES if name == UNTRAINED else len(test)  # the untrained ranker's place is clear earlier
        assert judgement.example_ids == test[:count]
        differences = judgement.values() - teacher.values()[:count]
        assert rows[name]["difference"]["mean"] == pytest.approx(float(np.mean(differences)))
        paired = paired_difference(judgement, teacher.first(count))
        assert rows[name]["difference"] == pytest.approx(vars(paired))
    assert rows["fine-tuned"]["difference"] == {"mean": 0, "low": 0, "high": 0}


def test_baselines_are_judged_anew_for_another_architecture(
    workspace: Workspace, tiny_recipe: Recipe, joint_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The untrained ranker is one, and a recipe's artifacts folder may have held the other."""
    made: list[str] = []

    def untrained(recipe: Recipe, *_: object) -> dict[str, Callable[[], ExampleScorer]]:
        def make() -> ExampleScorer:
            made.append(recipe.model.architecture)
            return lambda example: np.arange(len(example.candidates), dtype=np.float32)

        return {"untrained": make}

    monkeypatch.setattr(baselines_module, "all_baselines", untrained)
    folder = Workspace(tmp_path / "tiny")
    shutil.copytree(workspace.dataset, folder.dataset)
    for recipe in (tiny_recipe, joint_recipe, tiny_recipe, joint_recipe):
        baseline_judgements(recipe, Dataset.read(folder.dataset), folder)
    assert made == ["shared-context", "joint"]


def test_what_a_language_model_answers_before_training_is_judged_on_all_and_anew_for_another_prompt(
    workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str | None] = []

    def untrained(recipe: Recipe, *_: object) -> dict[str, Callable[[], ExampleScorer]]:
        def make() -> ExampleScorer:
            made.append(recipe.model.template)
            return lambda example: np.arange(len(example.candidates), dtype=np.float32)

        return {UNTRAINED: make}

    monkeypatch.setattr(baselines_module, "all_baselines", untrained)
    folder, base = Workspace(tmp_path / "tiny"), tmp_path / "base"
    shutil.copytree(workspace.dataset, folder.dataset)
    save_reranker(base, "Qwen3-Reranker-tiny")
    dataset = Dataset.read(folder.dataset)
    templates = ["Seen: {history}; {document}?", "History: {history}\nNext: {document}?"]
    for template in [*templates, *templates]:
        settings = {"architecture": "decoder", "base": str(base), "template": template, "answers": ["yes", "no"]}
        recipe = tiny_recipe.model_copy(update={"model": ModelSettings(**settings)})
        judgement = baseline_judgements(recipe, dataset, folder)[UNTRAINED]
        assert judgement.example_ids == [example.example_id for example in dataset.test]
    assert made == templates
    assert len(dataset.test) > UNTRAINED_EXAMPLES


def test_texts_of_a_language_model_without_a_padding_token_have_the_vectors_they_have_alone(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Such as SmolLM2's: the zero-shot cosine reads texts side by side."""
    _, tokenizer = save_reranker(tmp_path, "Qwen3-Reranker-tiny")
    tokenizer.pad_token, tokenizer.padding_side = None, "left"
    tokenizer.save_pretrained(tmp_path)
    settings = {"architecture": "decoder", "base": str(tmp_path), "answers": ["yes", "no"]}
    embed = baselines_module._embedder(tiny_recipe.model_copy(update={"model": ModelSettings(**settings)}))
    texts = ["a bear", "red shoes, and more of them than fit beside a bear"]
    together, alone = embed(texts), np.concatenate([embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together @ together.T) > 1e-3


def test_one_golden_request_has_items_without_text_and_texts_that_are_json(workspace: Workspace) -> None:
    """So that a server proves that it takes both as the judge did; read as fields, such a text would be another one."""
    case = golden_cases(Dataset.read(workspace.dataset), workspace.int8)[-1]
    tokenizer = RequestTokenizer.from_folder(workspace.int8)
    blank = [place for place, item in enumerate(case["items"]) if not tokenizer.items([item])[0]]
    assert len(blank) == 2
    for place, score in enumerate(case["scores"]):
        assert (score == NO_TEXT_SCORE) == (place in blank)
        assert abs(score) < 1e3 or place in blank
    (as_json,) = [item for item in case["items"] if item.startswith("{")]
    assert tokenizer.render(as_json) not in ("", as_json)
    assert as_json in case["history"]
    assert "" in case["history"]


def test_golden_requests_hold_what_the_user_went_on_to_like(workspace: Workspace) -> None:
    dataset = Dataset.read(workspace.dataset)
    rules = TextRules.load(workspace.teacher)
    cases = golden_cases(dataset, workspace.int8)
    for case, example, whole in zip(
        cases, dataset.validation[:3], requests_of(dataset, dataset.validation[:3], rules), strict=False
    ):
        liked = {text for text, label in zip(whole.items, example.labels, strict=True) if label}
        assert len(case["items"]) == GOLDEN_CANDIDATES < len(whole.items)
        assert liked <= set(case["items"])
        assert set(case["items"]) <= set(whole.items)
