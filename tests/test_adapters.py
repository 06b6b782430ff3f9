"""LoRA: thin matrices and the head are trained and kept beside the checkpoint, which is an ordinary one."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import optimizer_steps
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import FAMILIES, save_ranker
from torch import nn
from training_runs import EVALUATIONS, STEPS, Run, make_run, weights_of
from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import RecipeError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.finetune import stage
from tritonrank.rankers.modeling import from_encoder
from tritonrank.rankers.pretrained import load_encoder, load_ranker
from tritonrank.rankers.scorers import Request, torch_scorer
from tritonrank.recipe import FinetuneSettings, load_recipe
from tritonrank.train.adapters import adapted, merge, target_names
from tritonrank.train.finetune import untrained_ranker

LORA = ("finetune.adapter=lora", "finetune.adapter_rank=2", "finetune.learning_rate=0.02")
REQUEST = Request("warm light", ["oak desk lamp", "cast iron pan"], ["Ceramic teapot", "blue shoe", "wool"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["shared-context", "joint"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("adapters"), request.param)


@pytest.fixture(scope="module")
def lora(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.again(tmp_path_factory.mktemp("lora"), *LORA)


def test_the_checkpoint_is_an_ordinary_one_whose_layers_changed_by_the_adapters(run: Run, lora: Path) -> None:
    verify_artifact(lora)
    trained, whole = load_file(lora / "model.safetensors"), load_file(run.folder / "model.safetensors")
    assert {name: weight.shape for name, weight in trained.items()} == {n: w.shape for n, w in whole.items()}
    base = untrained_ranker(run.recipe)[0].state_dict()
    thin = load_file(lora / "adapter" / "adapter_model.safetensors")
    products = {
        name.removeprefix("base_model.model.").replace("lora_A.weight", "weight"): 2
        * thin[name.replace("lora_A", "lora_B")]
        @ weight
        for name, weight in thin.items()
        if "lora_A" in name
    }
    assert len(products) == 6  # query, key, value, attention out, and two of the FFN
    for name, weight in trained.items():
        if name in products:
            torch.testing.assert_close(weight, base[name] + products[name], atol=1e-6, rtol=1e-5)
            assert products[name].abs().max() > 0
        elif not name.startswith(("head", "classifier", "bert.pooler")):
            assert torch.equal(weight, base[name]), name


def test_what_is_trained_is_what_is_kept_and_told(run: Run, lora: Path) -> None:
    thin = load_file(lora / "adapter" / "adapter_model.safetensors")
    metrics = read_manifest(lora).metrics
    assert metrics["trained_parameters"] == sum(weight.numel() for weight in thin.values())
    assert metrics["trained_parameters"] < read_manifest(run.folder).metrics["trained_parameters"] / 2
    losses = [loss for _, loss in metrics["loss"]]
    assert losses[-1] < 0.9 * losses[0]
    config = json.loads((lora / "adapter" / "adapter_config.json").read_text())
    base = json.loads((lora / "adapter" / "base.json").read_text())
    assert config["base_model_name_or_path"] == base["base"] == run.recipe.model.base
    assert len(base["identity_sha256"]) == 64
    assert {path.name for path in (lora / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    }


def test_peft_loads_the_adapter_on_its_base_and_scores_the_same(run: Run, lora: Path) -> None:
    model, tokenizer = untrained_ranker(run.recipe)
    found = PeftModel.from_pretrained(model, str(lora / "adapter")).get_base_model().eval()
    expected = open_scorer(lora).score(REQUEST)
    assert expected.std() > 0.001
    np.testing.assert_allclose(torch_scorer(found, tokenizer).score(REQUEST), expected, atol=1e-5)


def test_checkpoints_on_the_way_hold_adapters_and_a_run_goes_on_from_them(
    run: Run, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with optimizer_steps(last=STEPS // 2), pytest.raises(KeyboardInterrupt):
        run.again(tmp_path, *LORA)
    (checkpoint,) = (tmp_path / "teacher.work").glob("checkpoint-*")
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    run.again(tmp_path, *LORA)
    assert f"resuming from checkpoint-{STEPS // EVALUATIONS}" in capsys.readouterr().out
    assert weights_of(tmp_path / "teacher") == weights_of(lora)
    assert read_manifest(tmp_path / "teacher").metrics["loss"] == read_manifest(lora).metrics["loss"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("architecture", ["joint", "shared-context"])
def test_all_linear_layers_of_every_family_are_adapted_and_merged(
    family: str, architecture: str, tmp_path: Path
) -> None:
    folder = str(save_ranker(family, tmp_path / "base", head=False))
    if architecture == "joint":
        model = load_ranker(folder, new_head=True).eval()
    else:
        model = from_encoder(load_encoder(folder), folder, context_positions=32).eval()
    layers = target_names(model, None)
    assert len(layers) == 2 * 6
    assert sorted(target_names(model, ["query", "ffn_out"])) == sorted(
        name for name in layers if any(name.endswith(end) for end in QUERIES_AND_OUTPUTS[architecture, family])
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = adapted(model, FinetuneSettings(adapter="lora", adapter_rank=4))
    assert {name.split(".lora_A")[0].removeprefix("base_model.model.") for name, _ in trained.named_parameters()
            if "lora_A" in name} == set(layers)  # fmt: skip
    heads = {name for name, weight in trained.named_parameters() if weight.requires_grad and "lora_" not in name}
    assert heads
    assert not [name for name in heads if ".layer." in name or ".layers." in name or "embeddings" in name]
    merge(trained)
    assert {name: weight.shape for name, weight in model.state_dict().items()} == {
        n: w.shape for n, w in before.items()
    }
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())  # B starts at 0
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(isinstance(module, nn.Module) and "lora" in type(module).__module__ for module in model.modules())


QUERIES_AND_OUTPUTS = {
    ("joint", "distilbert"): (".q_lin", ".lin2"),
    **{
        ("joint", family): (".query", "0.output.dense", "1.output.dense")
        for family in FAMILIES
        if family != "distilbert"
    },
    **{("shared-context", family): (".query", ".ffn_out") for family in FAMILIES},
}


def test_layers_that_are_not_there_are_refused_with_those_that_are(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"finetune\.adapter_targets: q_proj, up: .*attention_out, .*query"):
        run.again(tmp_path, *LORA, "finetune.adapter_targets=[query, q_proj, up]")
    assert not (tmp_path / "teacher").exists()


def test_an_adapter_learns_faster_unless_told_otherwise(run: Run) -> None:
    assert FinetuneSettings().learning_rate == 8e-5
    assert FinetuneSettings(adapter="lora").learning_rate == 5e-4
    assert FinetuneSettings(adapter="lora", learning_rate=1e-4).learning_rate == 1e-4


def test_who_asks_for_nothing_new_trains_nothing_anew(run: Run) -> None:
    """Settings that came later are part of the key only where they do something."""
    workspace = Workspace(run.folder.parent)
    known = stage(run.recipe, workspace).settings()["finetune"]
    assert set(known) == {"loss", "epochs", "examples_per_step", "learning_rate", "evaluations", "teacher"}
    changed = stage(load_recipe(run.recipe_path, LORA), workspace).settings()["finetune"]
    assert (changed["adapter"], changed["adapter_rank"]) == ("lora", 2)
