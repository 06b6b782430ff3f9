"""Fine-tuning: the loss is the published one, training learns, and an interrupted run is neither lost nor published."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import optimizer_steps
from safetensors.torch import load_file, save_file
from tiny_models import save_ranker
from torch.nn import functional
from training_runs import EVALUATIONS, STEPS, Run, make_run, weights_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.judge.metrics import ndcg
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.modeling import SharedContextRanker
from tritonrank.rankers.pretrained import load_ranker
from tritonrank.rankers.scorers import Request, torch_scorer
from tritonrank.rankers.shared_context import packed_batch
from tritonrank.recipe import load_recipe
from tritonrank.train import ranking_trainer as stage
from tritonrank.train.batches import Collator
from tritonrank.train.finetune import untrained_ranker
from tritonrank.train.losses import distillation_loss, list_loss
from tritonrank.train.watch import TrainingEndedError, watched_by
from tritonrank_runtime.text import TextRules

# The architecture that a recipe gets when it says nothing, and the other.
SHARED_CONTEXT = pytest.mark.parametrize("run", ["shared-context"], indirect=True)
JOINT = pytest.mark.parametrize("run", ["joint"], indirect=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model gains nothing from more, and sums are then always in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["shared-context", "joint"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("finetune"), request.param)


@pytest.fixture
def steps_taken() -> Iterator[list[int]]:
    with optimizer_steps() as steps:
        yield steps


LOGITS = [[1.5, -0.5, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0], [-2.0, 3.0, 30.0, -30.0]]
LABELS = [[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]]


def brute_force_loss(kind: str) -> float:
    """The three definitions, written out element by element."""
    lists = list(zip(LOGITS, LABELS, strict=True))
    if kind == "listwise":  # -log of the softmax at every positive, each positive counting the same
        losses = [
            math.log(sum(map(math.exp, scores))) - s
            for scores, labels in lists
            for s, label in zip(scores, labels, strict=True)
            if label
        ]
    elif kind == "pairwise":  # RankNet: -log P(positive above negative), each pair counting the same
        losses = [
            math.log1p(math.exp(scores[negative] - scores[positive]))
            for scores, labels in lists
            for positive in range(4)
            for negative in range(4)
            if labels[positive] > labels[negative]
        ]
    else:
        losses = [
            -math.log(1 / (1 + math.exp(-s if label else s)))
            for scores, labels in lists
            for s, label in zip(scores, labels, strict=True)
        ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["listwise", "pairwise", "binary"])
def test_loss_is_the_published_one(kind: str) -> None:
    loss = list_loss(torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(LABELS), kind)
    assert loss.item() == pytest.approx(brute_force_loss(kind), rel=1e-9)


def test_pairwise_loss_equals_margin_ranking_by_torch() -> None:
    logits, labels = torch.randn(3, 5, dtype=torch.float64), torch.tensor([[0, 1, 0, 0, 0]] * 3)
    margins = (logits[:, 1:2] - logits[:, [0, 2, 3, 4]]).flatten()
    expected = functional.soft_margin_loss(margins, torch.ones_like(margins))
    assert list_loss(logits, labels, "pairwise").item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", ["listwise", "pairwise", "binary"])
def test_loss_falls_only_when_positives_rise(kind: str) -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    list_loss(logits, torch.tensor([[0, 1, 0, 1]]), kind).backward()
    assert logits.grad is not None
    assert (logits.grad[0, [1, 3]] < 0).all()
    assert (logits.grad[0, [0, 2]] > 0).all()


@pytest.mark.parametrize(("kind", "expected"), [("listwise", 0.0), ("pairwise", 0.0), ("binary", math.log(2))])
def test_a_list_without_positives_teaches_no_order(kind: str, expected: float) -> None:
    loss = list_loss(torch.zeros(2, 3), torch.zeros(2, 3), kind)
    assert loss.item() == pytest.approx(expected)


def test_training_learns(run: Run) -> None:
    metrics = read_manifest(run.folder).metrics
    losses = [loss for _, loss in metrics["loss"]]
    assert losses[0] == pytest.approx(math.log(4), abs=0.2)  # 1 of 4 candidates, chance
    assert losses[-1] < 0.8 * losses[0]
    dataset = Dataset.read(run.dataset)
    requests = requests_of(dataset, dataset.training, TextRules.load(run.folder))
    scorer = open_scorer(run.folder)
    seen = [ndcg(scorer.score(r), e.labels, k=1) for r, e in zip(requests, dataset.training, strict=True)]
    assert np.mean(seen) > 0.45  # chance: 0.25


def test_manifest_tells_the_course_of_training(run: Run) -> None:
    metrics = verify_artifact(run.folder).metrics
    assert (metrics["trained"], metrics["steps"], metrics["processes"]) == (True, STEPS, 1)
    judged = dict(metrics["validation_ndcg@10"])
    assert list(judged) == [STEPS * part // EVALUATIONS for part in range(1, EVALUATIONS + 1)]
    assert metrics["best_validation_ndcg@10"] == pytest.approx(max(judged.values()), abs=1e-5)


def test_best_evaluation_is_what_is_published(run: Run) -> None:
    dataset = Dataset.read(run.dataset)
    requests = requests_of(dataset, dataset.validation, TextRules.load(run.folder))
    scorer = open_scorer(run.folder)
    found = np.mean([ndcg(scorer.score(r), e.labels) for r, e in zip(requests, dataset.validation, strict=True)])
    assert found == pytest.approx(read_manifest(run.folder).metrics["best_validation_ndcg@10"], abs=1e-6)


def test_the_seed_decides_the_weights(run: Run, tmp_path: Path) -> None:
    short = "finetune.epochs=1"
    first, second = run.again(tmp_path / "first", short), run.again(tmp_path / "second", short)
    assert weights_of(first) == weights_of(second)
    assert weights_of(run.again(tmp_path / "other", short, "seed=18")) != weights_of(first)


@dataclass(frozen=True)
class Interrupted:
    """A run that stopped half-way between its first and its second evaluation."""

    folder: Path
    work: Path


@pytest.fixture
def interrupted(run: Run, tmp_path: Path) -> Interrupted:
    with optimizer_steps(last=STEPS // 2), pytest.raises(KeyboardInterrupt):
        run.again(tmp_path)
    return Interrupted(tmp_path / "teacher", tmp_path / "teacher.work")


def test_interrupted_training_publishes_nothing(interrupted: Interrupted) -> None:
    there = {path.name for path in interrupted.work.parent.iterdir()}
    assert there == {"dataset", interrupted.work.name}


def test_interrupted_training_resumes_and_ends_with_the_same_weights(
    run: Run, interrupted: Interrupted, steps_taken: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    run.again(interrupted.folder.parent)
    assert f"resuming from checkpoint-{STEPS // EVALUATIONS}" in capsys.readouterr().out
    assert len(steps_taken) == STEPS - STEPS // EVALUATIONS
    assert read_manifest(interrupted.folder).metrics["steps"] == STEPS
    assert weights_of(interrupted.folder) == weights_of(run.folder)
    assert not interrupted.work.exists()


def test_a_checkpoint_that_was_being_written_is_not_resumed_from(
    run: Run, interrupted: Interrupted, steps_taken: list[int]
) -> None:
    half = interrupted.work / f"checkpoint-{2 * STEPS // EVALUATIONS}"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    run.again(interrupted.folder.parent)
    assert len(steps_taken) == STEPS - STEPS // EVALUATIONS
    assert weights_of(interrupted.folder) == weights_of(run.folder)


def test_other_settings_start_afresh(
    run: Run, interrupted: Interrupted, steps_taken: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    run.again(interrupted.folder.parent, "finetune.epochs=2", "finetune.evaluations=1")
    assert "resuming" not in capsys.readouterr().out
    assert len(steps_taken) == STEPS * 2 // 12
    assert not interrupted.work.exists()


@SHARED_CONTEXT
def test_who_watches_may_end_a_training_which_then_goes_on_from_there(run: Run, tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []

    def end_at_two_thirds(share: float, ndcg_now: float) -> bool:
        told.append((share, ndcg_now))
        return share > 0.6

    with watched_by(end_at_two_thirds), pytest.raises(TrainingEndedError):
        run.again(tmp_path)
    assert [share for share, _ in told] == pytest.approx([1 / 3, 2 / 3])
    assert not (tmp_path / "teacher").exists()
    before = list(told)
    with watched_by(lambda share, value: bool(told.append((share, value)))), optimizer_steps() as steps:
        folder = run.again(tmp_path)
    assert len(steps) == STEPS // EVALUATIONS
    assert told[2:4] == before
    assert told[4][0] == 1.0
    assert weights_of(folder) == weights_of(run.folder)


@pytest.mark.slow
@SHARED_CONTEXT
def test_two_processes_train_together(run: Run, tmp_path: Path) -> None:
    workspace = Workspace.of(run.recipe, tmp_path)
    shutil.copytree(run.dataset, workspace.dataset)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tritonrank", "finetune", str(run.recipe_path), "--artifacts", str(tmp_path)]
    command += ["--set", "finetune.epochs=24"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    metrics = verify_artifact(workspace.teacher).metrics
    assert (metrics["processes"], metrics["steps"]) == (2, STEPS)
    losses = [loss for _, loss in metrics["loss"]]
    assert losses[-1] < 0.8 * losses[0]
    assert done.stdout.count(f"step {STEPS}/{STEPS}: validation NDCG@10") == 1  # one process speaks
    assert not workspace.teacher.with_name("teacher.work").exists()


@JOINT
def test_a_ready_checkpoint_is_taken_as_it_is(run: Run, tmp_path: Path, steps_taken: list[int]) -> None:
    checkpoint = save_ranker("bert", tmp_path / "ready")
    folder = run.again(tmp_path, f"model.checkpoint={checkpoint}")
    assert read_manifest(folder).metrics == {"trained": False}
    assert not steps_taken
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    items = ["Ceramic teapot", "blue running shoe, size 42", "wool"]
    contexts = ["warm light [SEP] oak desk lamp [SEP] cast iron pan"] * len(items)
    inputs = AutoTokenizer.from_pretrained(checkpoint)(contexts, items, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).logits[:, 0].numpy()
    found = open_scorer(folder).score(Request("warm light", ["oak desk lamp", "cast iron pan"], items))
    assert expected.std() > 0.01  # or else equal scores would prove nothing
    np.testing.assert_allclose(found, expected, atol=1e-6)


@SHARED_CONTEXT
def test_a_ready_shared_context_checkpoint_is_taken_as_it_is(run: Run, tmp_path: Path, steps_taken: list[int]) -> None:
    settings = [f"model.checkpoint={run.folder}", "model.architecture=shared-context"]
    folder = run.again(tmp_path, *settings)
    assert read_manifest(folder).metrics == {"trained": False}
    assert not steps_taken
    request = Request("warm light", ["oak desk lamp", "cast iron pan"], ["Ceramic teapot", "blue shoe", "wool"])
    expected = open_scorer(run.folder).score(request)
    assert expected.std() > 0.01
    np.testing.assert_array_equal(open_scorer(folder).score(request), expected)


def test_a_classifier_is_no_ranker(run: Run, tmp_path: Path) -> None:
    classifier = save_ranker("bert", tmp_path / "classifier", labels=2)
    architecture = run.recipe.model.architecture
    settings = [f"model.checkpoint={classifier}", f"model.architecture={architecture}"]
    with pytest.raises(ArtifactError, match=r"classifier: .*one label, this one 2.*model\.base"):
        run.again(tmp_path, *settings)
    assert not (tmp_path / "teacher").exists()


@JOINT
def test_a_classifier_can_be_fine_tuned_into_a_ranker(run: Run, tmp_path: Path) -> None:
    """What the error above tells users to do."""
    classifier = save_ranker("bert", tmp_path / "classifier", labels=2)
    recipe = load_recipe(run.recipe_path, [f"model.base={classifier}"])
    model, _ = untrained_ranker(recipe)
    assert model.config.num_labels == 1
    assert model.classifier.weight.shape[0] == 1
    encoder = load_ranker(str(classifier), new_head=True).base_model.state_dict()
    for name, weight in AutoModelForSequenceClassification.from_pretrained(classifier).base_model.state_dict().items():
        assert torch.equal(weight, encoder[name]), name


@SHARED_CONTEXT
def test_a_classifiers_encoder_can_be_fine_tuned_into_a_shared_context_ranker(run: Run, tmp_path: Path) -> None:
    classifier = save_ranker("bert", tmp_path / "classifier", labels=2)
    model, _ = untrained_ranker(load_recipe(run.recipe_path, [f"model.base={classifier}"]))
    assert isinstance(model, SharedContextRanker)
    encoder = AutoModelForSequenceClassification.from_pretrained(classifier).base_model
    assert torch.equal(model.embeddings.words.weight, encoder.embeddings.word_embeddings.weight)
    assert torch.equal(model.layers[1].ffn_out.weight, encoder.encoder.layer[1].output.dense.weight)


DO_NOT_FIT = {
    "joint": "do not fit each other: .*word_embeddings",
    "shared-context": r"(?s)no model can be loaded.*size mismatch.*\[136, 32\].*\[137, 32\]",
}


def test_weights_of_another_shape_than_the_config_says_are_refused(run: Run, tmp_path: Path) -> None:
    """transformers would start from random weights instead."""
    odd = save_ranker("bert", tmp_path / "odd", head=False)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(ArtifactError, match=DO_NOT_FIT[run.recipe.model.architecture]):
        untrained_ranker(load_recipe(run.recipe_path, [f"model.base={odd}"]))


def test_damaged_weights_are_named(run: Run, tmp_path: Path) -> None:
    damaged = save_ranker("bert", tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5_000])
    for key in ("base", "checkpoint"):
        with pytest.raises(ArtifactError, match=f"{damaged.name}: model.safetensors .*damaged"):
            untrained_ranker(load_recipe(run.recipe_path, [f"model.{key}={damaged}"]))


@JOINT
def test_a_ranker_without_its_head_is_refused(run: Run, tmp_path: Path) -> None:
    """transformers would put a random one on it."""
    headless = save_ranker("bert", tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file(
        {name: weights[name] for name in weights if "classifier" not in name},
        headless / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ArtifactError, match=r"missing from the checkpoint: classifier\.bias, classifier\.weight"):
        untrained_ranker(load_recipe(run.recipe_path, [f"model.checkpoint={headless}"]))


TOO_LONG = {"joint": "rows of up to 40 tokens", "shared-context": "a context and a candidate of up to 40 tokens"}


def test_too_long_rows_for_the_model_are_refused(run: Run, tmp_path: Path) -> None:
    short = save_ranker("bert", tmp_path / "short", positions=39, head=False)
    with pytest.raises(RecipeError, match=rf"text: .*{TOO_LONG[run.recipe.model.architecture]}.*takes 39"):
        run.again(tmp_path, f"model.base={short}")
    enough = save_ranker("bert", tmp_path / "enough", positions=40, head=False)
    untrained_ranker(load_recipe(run.recipe_path, [f"model.base={enough}"]))


# Batches


def by_hand(context: list[int], *candidates: list[int]) -> dict[str, np.ndarray[Any, Any]]:
    """A shared-context request, its candidates padded to a common width that is wider than it has to be."""
    width = max(map(len, candidates)) + 2
    padded = [[*ids, *[-1] * (width - len(ids))] for ids in candidates]
    return {"context_ids": np.array(context, np.int32), "candidate_ids": np.array(padded, np.int32)}


def test_packed_batch_by_hand() -> None:
    batch = packed_batch([by_hand([2, 8, 3], [2, 5], [2, 6, 7]), by_hand([2, 3], [2, 9, 9, 9], [2])], 10)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "token_ids": [[2, 8, 3, 2, 5, 2, 6, 7], [2, 3, 2, 9, 9, 9, 2, 0]],
        "position_ids": [[0, 1, 2, 10, 11, 10, 11, 12], [0, 1, 10, 11, 12, 13, 10, 0]],
        "segments": [[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, 2, -1]],
        "first_tokens": [[3, 5], [2, 6]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_token_zero_is_packed_like_any_other() -> None:
    """Padding is -1; RoBERTa's first token is 0."""
    batch = packed_batch([by_hand([0, 4], [0, 0, 1])], 7)
    assert batch["token_ids"].tolist() == [[0, 4, 0, 0, 1]]
    assert batch["segments"].tolist() == [[0, 0, 1, 1, 1]]


def test_a_batch_holds_the_examples_tokens_labels_and_teacher(run: Run) -> None:
    model, tokenizer = untrained_ranker(run.recipe)
    dataset = Dataset.read(run.dataset)
    examples = dataset.training[:3]
    teacher = {example.example_id: [float(number), 0, 1, 2] for number, example in enumerate(dataset.training)}
    batch = Collator(dataset, tokenizer, model, teacher)(examples)
    assert batch.pop("labels").tolist() == [example.labels for example in examples]
    assert batch.pop("teacher_logits").tolist() == [[0, 0, 1, 2], [1, 0, 1, 2], [2, 0, 1, 2]]
    assert "teacher_logits" not in Collator(dataset, tokenizer, model)(examples)
    with torch.inference_mode():
        output = model.eval()(**batch)
    logits = output if isinstance(output, torch.Tensor) else output.logits.view(3, 4)
    scorer = torch_scorer(model, tokenizer)
    expected = [scorer.score(request) for request in requests_of(dataset, examples, tokenizer.rules)]
    np.testing.assert_allclose(logits.numpy(), np.array(expected), atol=1e-6)


# Distillation


def test_distillation_loss_is_the_divergence_from_the_teacher() -> None:
    student, teacher = torch.tensor(LOGITS[:2]), torch.tensor([[0.5, 2.0, -1.0, 0.0], [3.0, 3, 0, 0]])
    expected = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = (np.exp(np.array(scores)) for scores in (theirs, ours))
        p, q = p / p.sum(), q / q.sum()
        expected += float((p * np.log(p / q)).sum()) / 2
    assert distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher + 4, teacher).item() == pytest.approx(0, abs=1e-6)


@SHARED_CONTEXT
def test_a_student_learns_its_teachers_scores(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing else: the labels do not count."""
    monkeypatch.setattr(stage, "DISTILLATION", 1.0)
    dataset = Dataset.read(run.dataset)
    requests = requests_of(dataset, dataset.training, TextRules.load(run.folder))

    def agreement(folder: Path) -> float:
        """Correlation with the teacher's scores over the candidates of all lists, each list's mean taken off."""
        scorers = [open_scorer(one) for one in (folder, run.folder)]
        lists = [[scorer.score(request) for request in requests[:16]] for scorer in scorers]
        ours, theirs = (np.concatenate([scores - scores.mean() for scores in one]) for one in lists)
        return float(np.corrcoef(ours, theirs)[0, 1])

    settings = [f"finetune.teacher={run.folder}", "finetune.evaluations=1", "seed=18"]
    little = run.again(tmp_path / "little", *settings, "finetune.epochs=0.25")
    shutil.copytree(Workspace(tmp_path / "little").judgements, Workspace(tmp_path / "more").judgements)
    more = run.again(tmp_path / "more", *settings, "finetune.epochs=12")
    assert agreement(more) > max(0.6, 2 * agreement(little))
    judgements = Workspace(tmp_path / "more").judgements
    assert len(list(judgements.glob("training-*.parquet"))) == 1, "the teacher is asked once"


def test_a_teacher_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"finetune\.teacher: .*absent: no such folder"):
        run.again(tmp_path, f"finetune.teacher={tmp_path / 'absent'}")
    assert not (tmp_path / "teacher").exists()
