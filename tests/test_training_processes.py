"""Several processes train one ranker: FSDP takes the steps of DDP, and what was killed goes on bit for bit.

Real torchrun, two processes over gloo. Three starts of it serve all tests, as most of their time is importing torch.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from stage_runs import run_verb
from tiny_decoders import SIZES
from tiny_models import save_ranker
from tiny_prompts import smol
from training_runs import SETTINGS, weights_of
from transformers import LlamaConfig, LlamaForCausalLM
from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.long]

RANKS = Path(__file__).with_name("training_ranks.py")
STEPS, EVALUATIONS, CUT = 12, 3, 7
REST = ("finetune.token_dropout=0.1", "finetune.averaging=0.9", "finetune.accumulation=2", "finetune.r_drop=0.5")
DECODER = (
    "model.architecture=decoder",
    "model.base={root}/decoder",
    'model.answers=["1", "0"]',
    "finetune.adapter=lora",
)
JOBS: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "fsdp": ("finetune.sharding=fsdp",),
    "ddp-lora": ("finetune.adapter=lora", "finetune.learning_rate=0.01"),
    "fsdp-lora": ("finetune.adapter=lora", "finetune.learning_rate=0.01", "finetune.sharding=fsdp"),
    "fsdp-joint": ("model.architecture=joint", "finetune.sharding=fsdp", "finetune.gradient_checkpointing=true"),
    "ddp-joint": ("model.architecture=joint",),
    "fsdp-decoder": (*DECODER, "finetune.sharding=fsdp", "finetune.gradient_checkpointing=true"),
    "ddp-decoder": DECODER,
    "fsdp-rest": (*REST, "finetune.sharding=fsdp"),
    "ddp-rest": REST,
}
INTERRUPTED = {"ddp-rest": "killed", "fsdp-rest": "raised", "fsdp-lora": "raised"}


@dataclass(frozen=True)
class Runs:
    """Where the jobs' folders are."""

    root: Path

    def teacher(self, name: str) -> Path:
        return Workspace(self.root / name).teacher

    def losses(self, name: str, rank: int) -> list[tuple[int, float]]:
        """Step and loss, of every part of a step that a rank computed."""
        lines = (self.root / name / f"losses.{rank}").read_text().splitlines()
        return [(int(step), float.fromhex(loss)) for step, loss in map(str.split, lines)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("processes")
    dropout = {"hidden_dropout_prob": 0.05, "attention_probs_dropout_prob": 0.05}
    base = save_ranker("bert", root / "base", head=False, initializer_range=0.05, **dropout)
    tokenizer = smol()
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(root / "decoder")
    tokenizer.save_pretrained(root / "decoder")
    recipe_path = root / "small.yaml"
    settings: dict[str, Any] = {"epochs": 6, "learning_rate": 0.003, "evaluations": EVALUATIONS}
    recipe_path.write_text(yaml.safe_dump(SETTINGS | {"model": {"base": str(base)}, "finetune": settings}))
    run_verb("prepare", load_recipe(recipe_path), Workspace(root))

    def job(name: str, folder: str, **further: Any) -> dict[str, Any]:
        if not (root / folder / "dataset").exists():
            shutil.copytree(root / "dataset", root / folder / "dataset")
        return {
            "folder": str(root / folder),
            "settings": [one.replace("{root}", str(root)) for one in JOBS[name]],
        } | further

    interrupted = [job(name, f"{name}-cut", last=CUT, ends=ends) for name, ends in INTERRUPTED.items()]
    interrupted.sort(key=lambda one: one["ends"] == "killed")  # it takes the processes with it
    started = torchrun(recipe_path, [job(name, name) for name in JOBS] + interrupted, root)
    assert started.returncode != 0, "a killed process ends the run"
    assert "Signal 9" in started.stderr or "SIGKILL" in started.stderr, started.stderr[-3_000:]
    for name in INTERRUPTED:
        assert not Workspace(root / f"{name}-cut").teacher.exists()
    resumed = torchrun(recipe_path, [job(name, f"{name}-cut") for name in INTERRUPTED], root)
    assert resumed.returncode == 0, resumed.stderr[-3_000:]
    assert resumed.stdout.count(f"resuming from checkpoint-{STEPS // EVALUATIONS}") == len(INTERRUPTED)
    return Runs(root)


def torchrun(recipe_path: Path, jobs: list[dict[str, Any]], root: Path) -> subprocess.CompletedProcess[str]:
    (root / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(RANKS), str(recipe_path), str(root / "jobs.json")],
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("kind", ["", "-lora", "-joint", "-decoder", "-rest"])
def test_shards_take_the_steps_of_copies(kind: str, runs: Runs) -> None:
    copies, shards = (read_manifest(runs.teacher(f"{way}{kind}")).metrics for way in ("ddp", "fsdp"))
    assert (copies["processes"], shards["processes"]) == (2, 2)
    assert (copies.get("sharding"), shards["sharding"]) == (None, "fsdp")
    assert copies["steps"] == shards["steps"] == STEPS
    for rank in (0, 1):
        found, expected = (runs.losses(f"{way}{kind}", rank) for way in ("fsdp", "ddp"))
        assert [step for step, _ in found] == [step for step, _ in expected]
        np.testing.assert_allclose([loss for _, loss in found], [loss for _, loss in expected], atol=1e-5)
    assert runs.losses(f"fsdp{kind}", 0) != runs.losses(f"fsdp{kind}", 1)  # each learns from examples of its own


@pytest.mark.parametrize("kind", ["", "-lora", "-joint", "-decoder"])
def test_the_checkpoint_is_whole(kind: str, runs: Runs) -> None:
    for way in ("ddp", "fsdp"):
        verify_artifact(runs.teacher(f"{way}{kind}"))
    found, expected = (load_file(runs.teacher(f"{way}{kind}") / "model.safetensors") for way in ("fsdp", "ddp"))
    assert {name: weight.shape for name, weight in found.items()} == {n: w.shape for n, w in expected.items()}
    config, reference = (
        json.loads((runs.teacher(f"{way}{kind}") / "config.json").read_text()) for way in ("fsdp", "ddp")
    )
    assert config == reference
    judged = [read_manifest(runs.teacher(f"{way}{kind}")).metrics["validation_ndcg@10"] for way in ("fsdp", "ddp")]
    np.testing.assert_allclose(*judged, atol=0.02)  # near ties
    for name, weight in expected.items():
        if name != "head.bias":  # no list's loss depends on it, so that AdamW makes whole steps of rounding
            np.testing.assert_allclose(found[name], weight, atol=1e-3, err_msg=name)
    request = Request("warm light", ["oak desk lamp"], ["Ceramic teapot", "blue shoe", "wool"])
    scores = [open_scorer(runs.teacher(f"{way}{kind}")).score(request) for way in ("fsdp", "ddp")]
    assert scores[1].std() > 1e-4
    np.testing.assert_allclose(*(one - one.mean() for one in scores), atol=1e-4)
    if kind == "-lora":
        assert (runs.teacher("fsdp-lora") / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", INTERRUPTED)
def test_what_was_ended_in_the_middle_goes_on_bit_for_bit(name: str, runs: Runs) -> None:
    whole, cut = runs.teacher(name), runs.teacher(f"{name}-cut")
    assert read_manifest(cut).metrics["loss"] == read_manifest(whole).metrics["loss"]
    assert read_manifest(cut).metrics["validation_ndcg@10"] == read_manifest(whole).metrics["validation_ndcg@10"]
    assert weights_of(cut) == weights_of(whole)
    for rank in (0, 1):
        expected, found = runs.losses(name, rank), runs.losses(f"{name}-cut", rank)
        before = [line for line in expected if line[0] <= CUT]
        after = [line for line in expected if line[0] > STEPS // EVALUATIONS]
        assert found == before + after  # to the last bit, on every rank
