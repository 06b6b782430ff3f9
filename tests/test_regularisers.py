"""What a recipe may ask for against overfitting and for less memory: each does what it says, and nothing else."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import optimizer_steps
from safetensors.torch import load_file
from tiny_models import save_ranker
from torch import nn
from torch.nn import functional
from training_runs import STEPS, Run, make_run, weights_of
from tritonrank.artifacts import read_manifest
from tritonrank.data.dataset import Dataset
from tritonrank.errors import RecipeError
from tritonrank.rankers.modeling import SharedContextRanker, from_encoder
from tritonrank.rankers.pretrained import load_encoder
from tritonrank.recipe import FinetuneSettings, load_recipe
from tritonrank.train import arguments
from tritonrank.train.adversary import Adversary, adversarial_move
from tritonrank.train.averaging import AveragedWeights
from tritonrank.train.batches import Collator
from tritonrank.train.finetune import untrained_ranker
from tritonrank.train.losses import disagreement, list_loss
from tritonrank.train.ranking_trainer import RankingTrainer
from tritonrank.train.recomputing import keep_layers, recompute_layers
from tritonrank.train.text_dropout import TextDropout

SHORT = "finetune.epochs=2"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("regularisers"), "shared-context")


@pytest.fixture(scope="module")
def plain(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.again(tmp_path_factory.mktemp("plain"), SHORT)


@pytest.fixture
def ranker(tmp_path: Path) -> SharedContextRanker:
    folder = str(save_ranker("bert", tmp_path / "base", head=False, **NO_DROPOUT))
    return from_encoder(load_encoder(folder), folder, context_positions=32).train()


def batch_of(run: Run, count: int = 3) -> dict[str, torch.Tensor]:
    model, tokenizer = untrained_ranker(run.recipe)
    dataset = Dataset.read(run.dataset)
    return Collator(dataset, tokenizer, model)(dataset.training[:count])


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


# Adversarial embeddings


def test_embeddings_are_moved_by_the_length_along_the_gradient(ranker: SharedContextRanker, run: Run) -> None:
    batch = batch_of(run)
    labels = batch.pop("labels")
    words = ranker.get_input_embeddings()
    before = words.weight.detach().clone()
    seen: list[torch.Tensor] = []
    adversary = Adversary(words, length=0.5)
    words.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with adversary.watching():
        loss = list_loss(ranker(**batch), labels, "listwise")
        loss.backward()
    gradient, clean = seen[0].grad, seen[0].detach()
    assert gradient is not None
    own = gradients(ranker)
    with adversary.moved():
        worse = list_loss(ranker(**batch), labels, "listwise")
        worse.backward()
    move = seen[1].detach() - clean
    torch.testing.assert_close(move.flatten(1).norm(dim=1), torch.full((3,), 0.5), atol=1e-4, rtol=1e-4)
    cosines = functional.cosine_similarity(move.flatten(1), gradient.flatten(1))
    torch.testing.assert_close(cosines, torch.ones(3), atol=1e-4, rtol=0)
    assert worse > loss
    assert torch.equal(words.weight, before)
    assert any(not torch.equal(gradient, own[name]) for name, gradient in gradients(ranker).items())
    assert torch.equal(ranker(**batch), ranker(**batch))
    torch.testing.assert_close(words(batch["token_ids"]), clean, atol=0, rtol=0)  # nothing is moved any more


def test_a_sequence_without_a_gradient_is_not_moved() -> None:
    gradient = torch.stack([torch.zeros(2, 3), torch.ones(2, 3)])
    move = adversarial_move(gradient, 2.0)
    assert torch.equal(move[0], torch.zeros(2, 3))
    assert move[1].norm().item() == pytest.approx(2.0)


def test_a_frozen_table_of_words_is_moved_too(ranker: SharedContextRanker, run: Run) -> None:
    """As under LoRA."""
    batch = batch_of(run)
    labels = batch.pop("labels")
    ranker.requires_grad_(False)
    ranker.head.requires_grad_(True)
    adversary = Adversary(ranker.get_input_embeddings(), 1.0)
    with adversary.watching():
        loss = list_loss(ranker(**batch), labels, "listwise")
        loss.backward()
    with adversary.moved():
        assert list_loss(ranker(**batch), labels, "listwise") > loss


def test_moving_before_a_backward_pass_is_an_error(ranker: SharedContextRanker) -> None:
    adversary = Adversary(ranker.get_input_embeddings(), 1.0)
    with pytest.raises(RuntimeError, match="backward pass"), adversary.moved():
        pass


def test_a_step_learns_from_both_gradients(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a step is that of the list plus that of the moved one."""
    losses: list[float] = []
    compute = RankingTrainer.compute_loss

    def remembered(self: Any, *arguments: Any, **named: Any) -> Any:
        loss = compute(self, *arguments, **named)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(RankingTrainer, "compute_loss", remembered)
    folder = run.again(tmp_path, SHORT, "finetune.adversarial=2")
    assert len(losses) == 2 * read_manifest(folder).metrics["steps"]
    assert all(worse > clean for clean, worse in zip(losses[::2], losses[1::2], strict=True))


# R-Drop


def test_disagreement_is_the_mean_of_both_divergences() -> None:
    first, second = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    p, q = first.softmax(dim=1), second.softmax(dim=1)
    expected = ((p * (p / q).log()).sum(dim=1) + (q * (q / p).log()).sum(dim=1)).mean() / 2
    assert disagreement(first, second).item() == pytest.approx(expected.item())
    assert disagreement(second, first).item() == pytest.approx(expected.item())
    assert disagreement(first, first + 3).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("architecture", ["shared-context", "joint"])
def test_r_drop_adds_its_weight_times_the_disagreement(architecture: str, run: Run) -> None:
    recipe = load_recipe(run.recipe_path, [f"model.architecture={architecture}"])
    model, tokenizer = untrained_ranker(recipe)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    dataset = Dataset.read(run.dataset)
    batch = Collator(dataset, tokenizer, model)(dataset.training[:3])

    class Calls(nn.Module):
        logits: torch.Tensor

        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            output = model.train()(**inputs)
            self.logits = output if isinstance(output, torch.Tensor) else output.logits.view(-1, 4)
            return self.logits

    calls = Calls()

    def loss_with(weight: float) -> float:
        trainer = object.__new__(RankingTrainer)
        trainer._settings = FinetuneSettings(r_drop=weight)
        torch.manual_seed(3)
        return trainer.compute_loss(calls, dict(batch)).item()

    found = loss_with(2.5)
    first, second = calls.logits.chunk(2)
    assert calls.logits.shape == (6, 4)
    assert (first - second).abs().max() > 1e-3  # each has a dropout of its own
    own = (list_loss(first, batch["labels"], "listwise") + list_loss(second, batch["labels"], "listwise")) / 2
    assert found == pytest.approx((own + 2.5 * disagreement(first, second)).item(), rel=1e-5)
    assert loss_with(0) == pytest.approx(list_loss(calls.logits, batch["labels"], "listwise").item())


# Averages


def test_averages_follow_their_recurrence_and_give_the_weights_back() -> None:
    model = nn.Linear(3, 1, bias=False)
    averages = AveragedWeights(model, decay=0.5)
    expected = model.weight.detach().clone()
    for number in range(1, 6):
        with torch.no_grad():
            model.weight.add_(torch.randn(1, 3))
        averages.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    own = model.weight.detach().clone()
    with averages.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)


def test_what_is_published_is_the_average(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course: list[dict[str, torch.Tensor]] = []
    update = AveragedWeights.update

    def remembered(self: AveragedWeights, step: int) -> None:
        course.append({name: weight.detach().clone() for name, weight in self._weights.items()})
        update(self, step)

    monkeypatch.setattr(AveragedWeights, "update", remembered)
    base, _ = untrained_ranker(load_recipe(run.recipe_path))
    start = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    folder = run.again(tmp_path, "finetune.epochs=1", "finetune.evaluations=1", "finetune.averaging=0.9")
    steps = read_manifest(folder).metrics["steps"]
    assert len(course) == steps == 4
    name = "layers.0.query.weight"
    expected = start[name]
    for number, weights in enumerate(course, start=1):
        decay = (1 + number) / (10 + number)
        expected = decay * expected + (1 - decay) * weights[name]
    found = load_file(folder / "model.safetensors")[name]
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, course[-1][name])


# Dropout of texts


def dropped(run: Run, tokens: float, fields: float, epoch: int = 0) -> list[dict[str, Any]]:
    _, tokenizer = untrained_ranker(run.recipe)
    dataset = Dataset.read(run.dataset)
    dropout = TextDropout(tokens, fields, seed=5)
    dropout.epoch = epoch
    return [dropout.tensors(dataset, example, tokenizer) for example in dataset.training]


def lengths(tensors: list[dict[str, Any]], name: str) -> list[int]:
    return [int((one[name] >= 0).sum()) for one in tensors]


def test_about_that_share_of_the_tokens_is_left_out_and_the_rest_keeps_its_order(run: Run) -> None:
    whole, part = dropped(run, 0, 0), dropped(run, 0.3, 0)
    for full, less in zip(whole, part, strict=True):
        rows = [(full["context_ids"], less["context_ids"])]
        rows += list(zip(full["candidate_ids"], less["candidate_ids"], strict=True))
        for all_ids, some_ids in rows:
            rest = iter(all_ids.tolist())
            assert all(token in rest for token in some_ids[some_ids >= 0].tolist())
    special = 1 + 4  # [CLS] of the context and of each candidate stays
    total, left = (sum(lengths(tensors, "candidate_ids")) for tensors in (whole, part))
    assert (total - left) / (total - special * len(whole)) == pytest.approx(0.3, abs=0.06)
    assert min(lengths(part, "candidate_ids")) >= 4 * 2


def test_no_text_is_left_out_whole(run: Run) -> None:
    for one in dropped(run, 0.999, 0):
        assert ((one["candidate_ids"] >= 0).sum(axis=1) == 2).all()  # [CLS] and one token


def test_queries_histories_and_fields_are_left_out_but_never_a_candidate(run: Run) -> None:
    recipe = load_recipe(run.recipe_path, ['text.item_template="{title} {category} {attributes}"'])
    _, tokenizer = untrained_ranker(recipe)
    read = Dataset.read(run.dataset)
    some = next(iter(read.items))
    examples = [replace(example, query="lamp", history=[some, some]) for example in read.training]
    asked: list[tuple[str, list[str], list[str]]] = []

    class Spy:
        rules, layout = tokenizer.rules, tokenizer.layout

        def context(self, query: str, history: list[str]) -> list[int]:
            asked.append((query, history, []))
            return []

        def items(self, texts: list[str]) -> list[list[int]]:
            asked[-1][2].extend(texts)
            return [[] for _ in texts]

        def tensors(self, context: Any, candidates: Any) -> dict[str, Any]:
            return {}

    dropout = TextDropout(0, 0.4, seed=5)
    for example in examples:
        dropout.tensors(read, example, Spy())  # type: ignore[arg-type]
    whole = {key: " ".join(f"{v['title']} {v['category']} {v['attributes']}".split()) for key, v in read.items.items()}
    assert np.mean([query == "" for query, _, _ in asked]) == pytest.approx(0.4, abs=0.2)
    assert {len(history) for _, history, _ in asked} == {0, 1, 2}
    texts = [text for _, _, items in asked for text in items]
    assert all(texts)
    shortened = [text not in whole.values() for text in texts]
    assert 0.4 < np.mean(shortened) < 0.95  # 1 - 0.6^3 = 0.78 of those with three fields


def test_another_pass_leaves_out_others_and_the_same_pass_the_same(run: Run) -> None:
    first, again, second = (lengths(dropped(run, 0.5, 0, epoch), "candidate_ids") for epoch in (0, 0, 1))
    assert first == again
    assert first != second


# Less memory


def test_parts_of_a_step_give_the_same_step(run: Run, tmp_path: Path) -> None:
    base = save_ranker("bert", tmp_path / "base", head=False, num_hidden_layers=1, initializer_range=0.05, **NO_DROPOUT)
    # SGD: AdamW makes whole steps of the noise in gradients that are 0, as that of the head's bias is.
    common = (f"model.base={base}", "finetune.epochs=2", "finetune.evaluations=1")
    common += ("finetune.optimizer=sgd", "finetune.learning_rate=0.3")
    whole = run.again(tmp_path / "whole", *common)
    parts = run.again(tmp_path / "parts", *common, "finetune.accumulation=4")
    assert read_manifest(parts).metrics["steps"] == read_manifest(whole).metrics["steps"] == 8
    found, expected = (load_file(folder / "model.safetensors") for folder in (parts, whole))
    start = dict(untrained_ranker(load_recipe(run.recipe_path, common))[0].named_parameters())
    assert (expected["layers.0.ffn_in.weight"] - start["layers.0.ffn_in.weight"]).abs().max() > 0.005
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["shared-context", "joint"])
def test_layers_computed_again_give_the_same_weights_bit_for_bit(
    architecture: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (SHORT, f"model.architecture={architecture}")
    kept = run.again(tmp_path / "kept", *settings)
    passes: list[int] = []
    from tritonrank.train import recomputing

    checkpoint = recomputing.checkpoint

    def counted(*arguments: Any, **named: Any) -> Any:
        passes.append(1)
        return checkpoint(*arguments, **named)

    monkeypatch.setattr(recomputing, "checkpoint", counted)
    again = run.again(tmp_path / "again", *settings, "finetune.gradient_checkpointing=true")
    assert len(passes) == read_manifest(again).metrics["steps"]  # one layer
    assert weights_of(again) == weights_of(kept)


def test_recomputing_is_undone(ranker: SharedContextRanker) -> None:
    recompute_layers(ranker)
    assert "packed" in vars(ranker.layers[0])
    keep_layers(ranker)
    assert "packed" not in vars(ranker.layers[0])


# Optimizers and precision


def test_adafactor_learns(run: Run, tmp_path: Path) -> None:
    folder = run.again(tmp_path, "finetune.optimizer=adafactor")
    losses = [loss for _, loss in read_manifest(folder).metrics["loss"]]
    assert losses[0] == pytest.approx(math.log(4), abs=0.25)
    assert losses[-1] < 0.85 * losses[0]


def test_sgd_has_momentum(run: Run, tmp_path: Path) -> None:
    made: list[torch.optim.Optimizer] = []
    init = torch.optim.SGD.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "__init__", lambda self, *a, **k: (made.append(self), init(self, *a, **k))[1])
        run.again(tmp_path, "finetune.epochs=0.5", "finetune.optimizer=sgd")
    assert made[0].param_groups[0]["momentum"] == 0.9


def test_what_is_not_installed_is_named_with_its_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install bitsandbytes"):
        arguments.check_optimizer(FinetuneSettings(optimizer="adamw-8bit"))


def test_schedules_end_where_they_say(run: Run, tmp_path: Path) -> None:
    ends = {}
    for schedule in ("linear", "cosine", "constant"):
        rates: list[float] = []
        log = RankingTrainer.log

        def remembered(
            self: Any, logs: dict[str, float], *rest: Any, log: Any = log, rates: list[float] = rates
        ) -> None:
            rates.append(logs.get("learning_rate", -1))
            log(self, logs, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RankingTrainer, "log", remembered)
            run.again(tmp_path / schedule, SHORT, f"finetune.schedule={schedule}", "finetune.evaluations=1")
        ends[schedule] = [rate for rate in rates if rate >= 0][-1]
    assert ends["linear"] < 0.2 * 0.01
    assert ends["cosine"] < 0.2 * 0.01
    assert ends["constant"] == 0.01


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies in FP16")
def test_fp16_needs_a_gpu(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fp16 needs a GPU"):
        run.again(tmp_path, "finetune.mixed_precision=fp16")


def test_bf16_is_used_where_it_is_asked_for(run: Run, tmp_path: Path, plain: Path) -> None:
    folder = run.again(tmp_path, SHORT, "finetune.mixed_precision=bf16")
    assert read_manifest(folder).metrics["mixed_precision"] == "bf16"
    assert read_manifest(plain).metrics["mixed_precision"] == "off"
    assert weights_of(folder) != weights_of(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["finetune.accumulation=3"], "does not divide examples_per_step"),
        (["finetune.sharding=fsdp", "finetune.mixed_precision=fp16"], "not trained together"),
        (["finetune.token_dropout=1"], "token_dropout"),
    ],
)
def test_settings_that_cannot_be(settings: list[str], message: str, run: Run) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(run.recipe_path, settings)


def test_one_process_shares_with_nobody(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"this is one process.*torchrun"):
        run.again(tmp_path, "finetune.sharding=fsdp")


# All of them at once, interrupted


ALL = (
    "finetune.token_dropout=0.1",
    "finetune.field_dropout=0.1",
    "finetune.r_drop=1",
    "finetune.adversarial=0.5",
    "finetune.averaging=0.9",
    "finetune.accumulation=2",
    "finetune.gradient_checkpointing=true",
    "finetune.schedule=cosine",
    "finetune.evaluations=4",
    "finetune.epochs=5",
)


@pytest.mark.parametrize("adapter", [pytest.param("none", marks=pytest.mark.slow), "lora"])
def test_an_interrupted_training_goes_on_bit_for_bit(adapter: str, run: Run, tmp_path: Path) -> None:
    settings = (*ALL, f"finetune.adapter={adapter}", "finetune.learning_rate=0.01")
    whole = run.again(tmp_path / "whole", *settings)
    with optimizer_steps(last=12), pytest.raises(KeyboardInterrupt):
        run.again(tmp_path / "cut", *settings)
    cut = run.again(tmp_path / "cut", *settings)
    assert read_manifest(cut).metrics["loss"] == read_manifest(whole).metrics["loss"]
    assert weights_of(cut) == weights_of(whole)
    assert 12 < read_manifest(cut).metrics["steps"] < STEPS


def test_nothing_of_it_is_loaded_by_who_asks_for_nothing() -> None:
    assert "bitsandbytes" not in sys.modules
