"""A decoder's whole way down: fine-tuned, pruned, distilled, exported, quantized; and as the teacher of an encoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from stage_runs import run_verb
from tiny_decoders import SIZES
from tiny_models import TEXTS, save_ranker
from tiny_prompts import smol
from transformers import LlamaConfig, LlamaForCausalLM
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import GateError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.anatomy import sizes_of
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.shrink.cut import Kept
from tritonrank_runtime.text import RequestTokenizer, TextRules

TESTS = Path(__file__).parent
REQUESTS = [Request("", [], TEXTS[:3]), Request("waterproof shoe", TEXTS[2:4], TEXTS)]
SMALLER = """
prune: {layers: 2, heads: 2, ffn_neurons: 24, reserve_tokens: 10}
distill: {examples: 8, pool: 4, epochs: 1}
gate: {budget: 0.99, prune_budget: 1}
finetune: {epochs: 0.3, evaluations: 1, examples_per_step: 4, learning_rate: 0.001}
examples: {training_examples: 24, training_negatives: 3, judged_negatives: 9, validation_users: 4, test_users: 31}
"""


@dataclass(frozen=True)
class Built:
    recipe: Recipe
    workspace: Workspace

    def scores(self, folder: Path) -> NDArray[np.float32]:
        scorer = open_scorer(folder)
        return np.concatenate([scorer.score(request) for request in self.test_requests])

    @property
    def test_requests(self) -> list[Request]:
        dataset = Dataset.read(self.workspace.dataset)
        return requests_of(dataset, dataset.test[:6], TextRules.load(self.workspace.teacher))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model with SmolLM2's kind of tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), smol()
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)  # whatever was drawn before: a student learns some teachers better than others
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    recipe = load_recipe(
        TESTS / "tiny.yaml", [f"model.base={base}", "model.architecture=decoder", 'model.answers=["1", "0"]']
    )
    values = recipe.model_dump(mode="json", exclude_unset=True) | yaml.safe_load(SMALLER)
    values["data"] |= {"items": 60, "users": 60}
    made = Built(Recipe.model_validate(values), Workspace(tmp_path_factory.mktemp("decoder")))
    run_stages(made.recipe, made.workspace, until="quantize")
    return made


def test_the_student_is_smaller_in_everything(built: Built) -> None:
    sizes = sizes_of(load_any_ranker(built.workspace.student).config)
    assert (sizes.layers, sizes.heads, sizes.ffn_neurons) == (2, 2, 24)
    assert sizes.vocabulary < sizes_of(load_any_ranker(built.workspace.teacher).config).vocabulary
    assert sizes.positions == 256, "rotary positions are no rows of weights"
    metrics = read_manifest(built.workspace.pruned).metrics
    assert metrics["gflop_per_request"]["pruned"] < 0.75 * metrics["gflop_per_request"]["teacher"]
    assert Kept.load(built.workspace.pruned).heads[0] in ([0, 1], [2, 3]), "a key head goes with its queries"


def test_fewer_tokens_read_prompt_and_texts_as_before(built: Built) -> None:
    """The same pieces by other numbers, in the prompt, in queries, in histories and in documents."""
    before, after = (RequestTokenizer.from_folder(f) for f in (built.workspace.teacher, built.workspace.pruned))
    tokens = Kept.load(built.workspace.pruned).tokens
    assert before.layout.prefix or before.layout.middle
    for request in built.test_requests:
        old, new = (
            one.tensors(one.context(request.query, request.history), one.items(request.items))
            for one in (before, after)
        )
        for name in ("prefix_ids", "branch_ids"):
            expected = old[name]
            found = np.where(new[name] >= 0, np.take(tokens, np.maximum(new[name], 0)), -1)
            np.testing.assert_array_equal(found, expected)


def test_distillation_trained_it_and_every_form_scores_alike(built: Built) -> None:
    pruned, student, graph, int8 = (
        built.scores(folder)
        for folder in (built.workspace.pruned, built.workspace.student, built.workspace.onnx, built.workspace.int8)
    )
    assert np.abs(pruned - student).max() > 1e-4
    np.testing.assert_allclose(graph, student, atol=1e-4)
    assert np.corrcoef(int8, graph)[0, 1] > 0.9
    for folder, other in ((built.workspace.student, "pruned"), (built.workspace.int8, "ONNX FP32")):
        assert read_manifest(folder).metrics[f"gate against {other}"]["passed"]


def test_a_gate_closes_on_a_decoder_too(built: Built, tmp_path: Path) -> None:
    gate = built.recipe.gate.model_copy(update={"quantize_budget": 1e-9, "budget": 1e-9})
    for method in ("static-int8", "int4-weights"):
        quantize = built.recipe.quantize.model_copy(update={"method": method})
        with pytest.raises(GateError, match="was not published"):
            run_verb(
                "quantize",
                built.recipe.model_copy(update={"gate": gate, "quantize": quantize}),
                built.workspace,
                tmp_path / method,
            )
        assert not (tmp_path / method).exists()


def test_an_encoder_learns_a_decoders_scores(built: Built, tmp_path: Path) -> None:
    """The teacher reads requests by its own prompt and tokenizer, the student by its own."""
    encoder = save_ranker("bert", tmp_path / "encoder", head=False)
    dataset = Dataset.read(built.workspace.dataset)
    teacher = open_scorer(built.workspace.teacher)
    requests = requests_of(dataset, dataset.training, TextRules.load(built.workspace.teacher))
    wanted = [teacher.score(request) for request in requests]

    def agreement(learns: bool) -> float:
        """Correlation with the teacher's scores over the candidates of all lists, each list's mean taken off."""
        values = built.recipe.model_dump(mode="json", exclude_unset=True, exclude={"prune", "distill"})
        values["model"] = {"base": str(encoder), "architecture": "shared-context"}
        values["finetune"] |= {"epochs": 30, "learning_rate": 0.002}
        values["finetune"] |= {"teacher": str(built.workspace.teacher)} if learns else {}
        recipe, workspace = Recipe.model_validate(values), Workspace(tmp_path / str(learns))
        workspace.root.mkdir()
        workspace.dataset.symlink_to(built.workspace.dataset)
        run_verb("finetune", recipe, workspace)
        student = open_scorer(workspace.teacher)
        found = [student.score(request) for request in requests]
        centred = [np.concatenate([row - row.mean() for row in rows]) for rows in (found, wanted)]
        return float(np.corrcoef(*centred)[0, 1])

    assert agreement(learns=True) > agreement(learns=False) + 0.1
