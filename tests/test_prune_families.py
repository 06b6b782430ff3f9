"""Every family, in both architectures: prune -> distil -> ONNX, and what is cut was as good as zeroed."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import yaml
from conftest import TESTS
from numpy.typing import NDArray
from tiny_models import RANKERS, TEXTS, save_ranker
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.anatomy import head_size_of, only_layers, parts_of, sizes_of
from tritonrank.rankers.pretrained import load_any_ranker, longest_input
from tritonrank.rankers.scorers import Request, torch_scorer
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.shrink.cut import Kept, cut, everything
from tritonrank.shrink.importance import choose_layers, measure_importance, most_important, ranking_loss
from tritonrank.train.batches import Collator
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shared_context import SHARED_CONTEXT
from tritonrank_runtime.text import RequestTokenizer, TextRules

LAYERS, HEADS, NEURONS, HIDDEN = 3, 4, 64, 32
REQUESTS = [Request("", [], TEXTS[:3]), Request("waterproof shoe", TEXTS[2:4], TEXTS)]
SMALLER = """
prune: {layers: 2, heads: 2, ffn_neurons: 32, reserve_tokens: 10}
distill: {examples: 8, pool: 4, epochs: 1}
gate: {budget: 0.99, prune_budget: 1}
"""


@dataclass(frozen=True)
class Built:
    """One family in one architecture: fine-tuned a little, pruned, distilled and exported."""

    architecture: str
    recipe: Recipe
    workspace: Workspace

    @property
    def teacher(self) -> PreTrainedModel:
        return load_any_ranker(self.workspace.teacher).eval()

    @property
    def tokenizer(self) -> RequestTokenizer:
        return RequestTokenizer.from_folder(self.workspace.teacher)

    def batches(self) -> list[dict[str, torch.Tensor]]:
        dataset = Dataset.read(self.workspace.dataset)
        collate = Collator(dataset, self.tokenizer, self.teacher)
        return [collate(dataset.training[start : start + 2]) for start in (0, 2)]

    def scores(self, model: PreTrainedModel) -> NDArray[np.float32]:
        scorer = torch_scorer(model.eval(), self.tokenizer)
        return np.concatenate([scorer.score(request) for request in REQUESTS])


@pytest.fixture(scope="module", params=RANKERS)  # most of which have mark.slow
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    family, architecture = request.param
    root = tmp_path_factory.mktemp(f"{family}-{architecture}")
    sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    base = save_ranker(family, root / "hub", head=False, **sizes)
    recipe = load_recipe(TESTS / "tiny.yaml", [f"model.base={base}", f"model.architecture={architecture}"])
    values = recipe.model_dump(mode="json") | yaml.safe_load(SMALLER)
    values["data"] |= {"items": 60, "users": 60}
    values["examples"] |= {"training_examples": 24, "judged_negatives": 9, "validation_users": 4, "test_users": 31}
    values["finetune"] |= {"epochs": 0.3, "evaluations": 1, "examples_per_step": 4}
    made = Built(architecture, Recipe.model_validate(values), Workspace(root / "artifacts"))
    run_stages(made.recipe, made.workspace, until="export")
    return made


def test_the_student_is_smaller_and_loads_as_any_other(built: Built) -> None:
    student = load_any_ranker(built.workspace.student)
    sizes = sizes_of(student.config)
    assert (sizes.layers, sizes.heads, sizes.ffn_neurons) == (2, 2, 32)
    parts, width = parts_of(student), 2 * head_size_of(student.config)
    for layer in range(2):
        for name, shape in (("query", (width, HIDDEN)), ("attention_out", (HIDDEN, width)), ("ffn_in", (32, HIDDEN))):
            assert tuple(parts[f"layers.{layer}.{name}"].weight.shape) == shape
    kept, tokenizer = Kept.load(built.workspace.pruned), RequestTokenizer.from_folder(built.workspace.student)
    assert parts["embeddings.words"].weight.shape[0] == sizes.vocabulary == len(kept.tokens)
    assert sizes.vocabulary < sizes_of(built.teacher.config).vocabulary
    longest = (
        student.config.context_positions + tokenizer.longest_rows["candidate_ids"]
        if built.architecture == SHARED_CONTEXT
        else tokenizer.longest_rows["input_ids"]
    )
    assert longest <= longest_input(student) < longest_input(built.teacher)
    if built.architecture == JOINT:  # nothing of ours is needed to load it
        assert type(student) is type(AutoModelForSequenceClassification.from_pretrained(built.workspace.student))


def test_distillation_trained_it_and_every_form_scores_alike(built: Built) -> None:
    pruned, student, graph = (
        open_scorer(folder) for folder in (built.workspace.pruned, built.workspace.student, built.workspace.onnx)
    )
    dataset = Dataset.read(built.workspace.dataset)
    requests = requests_of(dataset, dataset.test[:3], TextRules.load(built.workspace.student))
    before, after, exported = (np.concatenate([s.score(r) for r in requests]) for s in (pruned, student, graph))
    assert np.abs(before - after).max() > 1e-4
    np.testing.assert_allclose(after, exported, atol=1e-4)
    assert read_manifest(built.workspace.student).metrics["steps"] == 2


def test_cut_equals_zeroed(built: Built) -> None:
    """Zeroing heads and neurons in the whole model gives the logits of the model that no longer has them."""
    teacher = built.teacher
    whole = everything(sizes_of(teacher.config))
    heads = [[0, 2], [1, 3], [2, 3]]
    generator = np.random.default_rng(4)
    neurons = [sorted(generator.choice(NEURONS, 40, replace=False).tolist()) for _ in range(LAYERS)]
    found = built.scores(cut(teacher, replace(whole, heads=heads, neurons=neurons)))
    untouched = built.scores(teacher)
    parts, size = parts_of(teacher), head_size_of(teacher.config)
    with torch.no_grad():
        for layer in range(LAYERS):
            for head in set(range(HEADS)) - set(heads[layer]):
                parts[f"layers.{layer}.attention_out"].weight[:, head * size : (head + 1) * size] = 0
            gone = sorted(set(range(NEURONS)) - set(neurons[layer]))
            parts[f"layers.{layer}.ffn_out"].weight[:, gone] = 0
    np.testing.assert_allclose(found, built.scores(teacher), atol=1e-5)
    assert np.abs(found - untouched).max() > 1e-3  # or else the tolerance would prove nothing


def test_cut_layers_equal_skipped_ones(built: Built) -> None:
    teacher = built.teacher
    whole = everything(sizes_of(teacher.config))
    found = built.scores(cut(teacher, replace(whole, layers=[0, 2], heads=whole.heads[:2], neurons=whole.neurons[:2])))
    with only_layers(teacher, [0, 2]):
        np.testing.assert_allclose(found, built.scores(teacher), atol=1e-5)
    assert np.abs(found - built.scores(teacher)).max() > 1e-3


def test_a_smaller_vocabulary_scores_texts_of_the_corpus_as_before(built: Built) -> None:
    """The teacher with fewer tokens and positions, under the rewritten tokenizer, gives the teacher's logits."""
    teacher, kept = built.teacher, Kept.load(built.workspace.pruned)
    fewer = cut(teacher, replace(everything(sizes_of(teacher.config)), tokens=kept.tokens, positions=kept.positions))
    dataset = Dataset.read(built.workspace.dataset)
    rules = TextRules.load(built.workspace.pruned)
    before = torch_scorer(teacher, built.tokenizer)
    after = torch_scorer(fewer, RequestTokenizer.from_folder(built.workspace.pruned))
    for request in requests_of(dataset, dataset.test[:5], rules):
        np.testing.assert_allclose(after.score(request), before.score(request), atol=1e-5)


def test_taylor_importance_is_the_slope_of_the_loss(built: Built) -> None:
    """Against the loss when one sequence's activations are scaled by 1 - epsilon and 1 + epsilon."""
    teacher, batch = built.teacher.double(), built.batches()[0]
    found = measure_importance(teacher, [batch], "taylor")
    size, epsilon = head_size_of(teacher.config), 1e-4
    for part, channels, value in (
        ("layers.1.attention_out", slice(size, 2 * size), found.heads[1, 1]),
        ("layers.0.ffn_out", slice(5, 6), found.neurons[0, 5]),
    ):
        module = parts_of(teacher)[part]
        slopes = []
        for sequence in range(batch["labels"].numel() if built.architecture == JOINT else len(batch["labels"])):
            losses = []
            for factor in (1 - epsilon, 1 + epsilon):
                with scaled_input(module, sequence, channels, factor), torch.inference_mode():
                    losses.append(ranking_loss(teacher, batch).item())
            slopes.append(abs(losses[1] - losses[0]) / (2 * epsilon))
        assert value == pytest.approx(sum(slopes), rel=1e-2, abs=1e-6)


@contextmanager
def scaled_input(module: torch.nn.Module, sequence: int, channels: slice, factor: float) -> Iterator[None]:
    def scale(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        scaled = given[0].clone()
        scaled[sequence, :, channels] *= factor
        return scaled

    handle = module.register_forward_pre_hook(scale)
    yield
    handle.remove()


@pytest.mark.parametrize("criterion", ["influence", "taylor"])
def test_a_layer_that_does_nothing_goes_first(built: Built, criterion: str) -> None:
    teacher = built.teacher
    parts = parts_of(teacher)
    with torch.no_grad():
        for name in ("attention_out", "ffn_out"):
            parts[f"layers.1.{name}"].weight.zero_()
            parts[f"layers.1.{name}"].bias.zero_()
    assert choose_layers(teacher, built.batches(), criterion, 2).kept == [0, 2]


def test_ablation_keeps_the_layers_with_the_lowest_loss(built: Built) -> None:
    """Against models that really are one layer shorter."""
    teacher, batches = built.teacher, built.batches()
    whole = everything(sizes_of(teacher.config))
    losses = []
    for gone in range(LAYERS):
        kept = [layer for layer in range(LAYERS) if layer != gone]
        shorter = cut(teacher, replace(whole, layers=kept, heads=whole.heads[:2], neurons=whole.neurons[:2]))
        losses.append(np.mean([ranking_loss(shorter, batch).item() for batch in batches]))
    choice = choose_layers(teacher, batches, "ablation", 2)
    assert choice.importance["loss without"] == pytest.approx(losses, abs=1e-5)
    assert choice.kept == [layer for layer in range(LAYERS) if layer != int(np.argmin(losses))]
    assert len(choose_layers(teacher, batches, "ablation", 1).kept) == 1


def test_importance_has_a_value_for_everything_and_criteria_differ(built: Built) -> None:
    taylor, magnitude = (measure_importance(built.teacher, built.batches(), c) for c in ("taylor", "magnitude"))
    for found in (taylor, magnitude):
        assert found.heads.shape == (LAYERS, HEADS)
        assert found.neurons.shape == (LAYERS, NEURONS)
        assert (found.neurons >= 0).all()
    assert most_important(taylor.neurons, 16) != most_important(magnitude.neurons, 16)


def test_the_manifest_says_what_stayed_and_why(built: Built) -> None:
    metrics = read_manifest(built.workspace.pruned).metrics
    kept = Kept.load(built.workspace.pruned)
    assert metrics["layers"]["kept"] == kept.layers
    assert len(metrics["layers"]["steps"]) == LAYERS - 2
    neurons = np.array(metrics["importance"]["neurons"])
    for layer, stayed in enumerate(kept.neurons):
        assert neurons[layer][stayed].min() >= np.delete(neurons[layer], stayed).max()
    vocabulary = metrics["vocabulary"]
    assert vocabulary["tokens"] == len(kept.tokens)
    assert vocabulary["held-out items"]["after"]["tokens"] >= vocabulary["held-out items"]["before"]["tokens"] > 0
    parameters = metrics["parameters"]
    assert parameters["pruned"] == sum(p.numel() for p in load_any_ranker(built.workspace.pruned).parameters())
    assert parameters["pruned"] < parameters["teacher"]
    assert Counter(map(len, kept.heads)) == {2: 2}
    assert json.loads((built.workspace.pruned / "pruning.json").read_text())["layers"] == kept.layers
