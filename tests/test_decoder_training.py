"""A decoder is trained with all that a recipe may ask for: LoRA, regularisers, parts of a step, and resumed."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import optimizer_steps
from peft import PeftModel
from safetensors.torch import load_file
from stage_runs import run_verb
from tiny_decoders import SIZES, causal_model, decoder_configs
from tiny_prompts import smol
from training_runs import SETTINGS, Run, weights_of
from transformers import LlamaConfig, LlamaForCausalLM
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.decoder_weights import decoder_from
from tritonrank.rankers.scorers import Request, torch_scorer
from tritonrank.recipe import FinetuneSettings, load_recipe
from tritonrank.train.adapters import adapted, merge, target_names
from tritonrank.train.finetune import untrained_ranker

LAYER = {"query", "key", "value", "attention_out", "ffn_in", "ffn_out"}
ALL = (
    "finetune.token_dropout=0.1",
    "finetune.field_dropout=0.1",
    "finetune.r_drop=1",
    "finetune.averaging=0.9",
    "finetune.adversarial=0.5",
    "finetune.accumulation=2",
)
REQUEST = Request("warm light", ["oak desk lamp", "cast iron pan"], ["Ceramic teapot", "blue shoe", "wool"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A recipe with LoRA on a random language model, trained once."""
    root, tokenizer = tmp_path_factory.mktemp("decoder"), smol()
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes | {"initializer_range": 0.05})).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    model = {"base": str(root / "base"), "architecture": "decoder", "answers": ["1", "0"]}
    training = {"epochs": 4, "learning_rate": 0.01, "evaluations": 2, "adapter": "lora", "adapter_rank": 4}
    recipe_path = root / "small.yaml"
    recipe_path.write_text(yaml.safe_dump(SETTINGS | {"model": model, "finetune": training}))
    recipe = load_recipe(recipe_path)
    torch.set_num_threads(1)
    run_verb("prepare", recipe, Workspace(root))
    run_verb("finetune", recipe, Workspace(root))
    return Run(recipe_path, recipe, root / "dataset", root / "teacher")


@pytest.mark.parametrize("family", sorted(decoder_configs()))
def test_all_linear_layers_of_every_family_are_adapted_and_merged(family: str) -> None:
    model = decoder_from(causal_model(family), family)
    gated = {"ffn_gate"} if model.config.ffn == "gated" else set()
    assert set(target_names(model, None)) == {f"layers.{n}.{name}" for n in range(3) for name in LAYER | gated}
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = adapted(model, FinetuneSettings(adapter="lora", adapter_rank=2))
    names = {name for name, weight in trained.named_parameters() if weight.requires_grad}
    assert {name for name in names if "lora_" not in name} == {
        "base_model.model.head.modules_to_save.default.weight",
        "base_model.model.head.modules_to_save.default.bias",
    }
    merge(trained)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_it_learns_and_the_adapter_on_its_base_scores_the_same(run: Run) -> None:
    metrics = read_manifest(run.folder).metrics
    losses = [loss for _, loss in metrics["loss"]]
    assert losses[-1] < losses[0]
    thin = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    assert metrics["trained_parameters"] == sum(weight.numel() for weight in thin.values())
    assert json.loads((run.folder / "adapter" / "base.json").read_text())["architecture"] == "decoder"
    model, tokenizer = untrained_ranker(run.recipe)
    # The head that training started from is random; the adapter brings the one that it ended with.
    found = PeftModel.from_pretrained(model, str(run.folder / "adapter")).get_base_model().eval()
    expected = open_scorer(run.folder).score(REQUEST)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(torch_scorer(found, tokenizer).score(REQUEST), expected, atol=1e-4)


def test_layers_computed_again_give_the_same_weights_bit_for_bit(run: Run, tmp_path: Path) -> None:
    assert weights_of(run.again(tmp_path, "finetune.gradient_checkpointing=true")) == weights_of(run.folder)


def test_with_all_regularisers_an_interrupted_training_goes_on_bit_for_bit(run: Run, tmp_path: Path) -> None:
    settings = (*ALL, "finetune.epochs=2", "finetune.evaluations=2")
    whole = run.again(tmp_path / "whole", *settings)
    with optimizer_steps(last=6), pytest.raises(KeyboardInterrupt):
        run.again(tmp_path / "cut", *settings)
    cut = run.again(tmp_path / "cut", *settings)
    assert read_manifest(cut).metrics["loss"] == read_manifest(whole).metrics["loss"]
    assert weights_of(cut) == weights_of(whole)
    assert weights_of(whole) != weights_of(run.folder)
