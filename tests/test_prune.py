"""Pruning: sizes follow from a budget, a bad cut closes the gate, and an interrupted stage leaves nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from conftest import Build, optimizer_steps
from transformers import BertConfig, DistilBertConfig, PreTrainedModel
from tritonrank import cli
from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import GateError, RecipeError
from tritonrank.judge.gatekeeper import step_budget, total_budget
from tritonrank.judge.metrics import ndcg
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.anatomy import Sizes, parts_of, resized, sizes_of
from tritonrank.rankers.cost import gflop_of
from tritonrank.rankers.modeling import SharedContextConfig
from tritonrank.recipe import DistillSettings, PruneSettings, Recipe, load_recipe
from tritonrank.shrink import distill, prune
from tritonrank.shrink.candidate_lists import choose_negatives, scored_lists
from tritonrank.shrink.cut import Kept, cut
from tritonrank.shrink.sizes import target_sizes
from tritonrank_runtime.text import TextRules

MINILM = SharedContextConfig()
FULL = sizes_of(MINILM)
REQUEST = {
    "context_ids": np.ones(60, dtype=np.int32),
    "candidate_ids": np.ones((100, 12), dtype=np.int32),
    "attention_mask": np.ones((4, 80), dtype=np.int32),
}


def gflop(sizes: Sizes) -> float:
    return gflop_of(resized(MINILM, sizes), [REQUEST])


def target(tensor_parallel: int = 1, **settings: Any) -> Sizes:
    return target_sizes(FULL, 32, PruneSettings(**settings), tensor_parallel, gflop)


def test_without_a_target_nothing_is_cut() -> None:
    assert target() == FULL


def test_named_sizes_are_taken_as_they_are() -> None:
    assert target(layers=3, heads=6, ffn_neurons=512) == replace(FULL, layers=3, heads=6, ffn_neurons=512)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3, 0.15])
@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
def test_a_budget_is_met_and_nearly_used_up(share: float, tensor_parallel: int) -> None:
    found = target(tensor_parallel, gflop=share)
    assert gflop(found) <= share * gflop(FULL)
    assert found.layers == round(6 * share**0.5)
    assert found.heads % tensor_parallel == 0
    assert found.ffn_neurons % (8 * tensor_parallel) == 0
    if found.ffn_neurons < FULL.ffn_neurons:
        assert gflop(replace(found, ffn_neurons=found.ffn_neurons + 8 * tensor_parallel)) > share * gflop(FULL)


def test_named_sizes_leave_the_others_to_the_budget() -> None:
    found = target(gflop=0.5, layers=5, heads=12)
    assert (found.layers, found.heads) == (5, 12)
    assert gflop(found) <= 0.5 * gflop(FULL) < gflop(replace(found, ffn_neurons=found.ffn_neurons + 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 7}, "prune.layers: 7 must be at most 6"),
        ({"heads": 13}, "prune.heads: 13 must be at most 12"),
        ({"heads": 3, "tensor_parallel": 2}, "prune.heads: 3 must be at most 12, .*divide by 2"),
        ({"ffn_neurons": 100}, "prune.ffn_neurons: 100 must be .*divide by 8"),
        ({"gflop": 0.01, "layers": 6}, "prune.gflop: 6 layers of .* the budget is 0.01"),
        ({"tensor_parallel": 24}, "tensor_parallel: the teacher has 12 heads; 24 devices need 24"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        target(**settings)


@pytest.mark.parametrize("kind", [BertConfig, DistilBertConfig])
def test_a_joint_rankers_pruned_heads_cost_less(kind: type) -> None:
    """By hand: the share of the attention that is left, the FFN whole."""
    config = kind()
    sizes = sizes_of(config)
    half = resized(config, replace(sizes, heads=6))
    assert sizes_of(half).heads == 6
    assert sizes_of(resized(half, replace(sizes, heads=3))).heads == 3  # what is pruned can be pruned again
    tokens, layers = 4 * 80, sizes.layers
    attention = layers * (2 * 4 * 768 * 768 * tokens + 4 * 768 * 4 * 80**2)
    saved = gflop_of(config, [REQUEST]) - gflop_of(half, [REQUEST])
    assert saved * 1e9 == pytest.approx(attention / 2)


def test_distillation_needs_a_prune_section(tiny_recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="distill needs a prune section"):
        Recipe.model_validate(tiny_recipe.model_dump(mode="json") | {"distill": {}})


# What follows runs the real stages.

SMALLER = {
    "prune": {"layers": 1, "heads": 2, "ffn_neurons": 64},
    "distill": {
        "examples": 40,
        "pool": 5,
        "epochs": 2,
        "learning_rate": 0.001,
    },
}


def smaller(recipe: Recipe, **changes: dict[str, Any]) -> Recipe:
    """The tiny recipe with both sections, some settings changed."""
    values = recipe.model_dump(mode="json") | SMALLER
    return Recipe.model_validate(values | {name: values[name] | change for name, change in changes.items()})


def test_a_bad_cut_closes_the_gate_and_what_is_served_stays(
    certain: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All attention heads zeroed: the same recipe passes without that fault, because it cuts nothing that matters."""
    build = certain.copied(tmp_path)
    workspace = build.workspace
    run_stages(build.recipe, workspace, until="assemble")
    published = (workspace.teacher, workspace.onnx, workspace.int8, workspace.repository)
    before = {folder: verify_artifact(folder).artifact for folder in published}
    recipe_path = tmp_path / "pruned.yaml"
    values = yaml.safe_load(build.recipe_path.read_text())
    values |= {"prune": {"reserve_tokens": 0}, "distill": {}}
    recipe_path.write_text(yaml.safe_dump(values | {"gate": {"budget": 0.05, "prune_budget": 0.3}}))

    def spoilt(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
        made = cut(model, kept)
        with torch.no_grad():
            for name, part in parts_of(made).items():
                if name.endswith(".attention_out"):
                    part.weight.zero_()
        return made

    with monkeypatch.context() as patched:
        patched.setattr(prune, "cut", spoilt)
        patched.setattr("sys.argv", ["tritonrank", "build", str(recipe_path), "--artifacts", str(tmp_path)])
        with pytest.raises(SystemExit) as raised:
            cli.main()
    assert raised.value.code == GateError.exit_code == 1
    message = capsys.readouterr().err
    assert "GateError: gate closed: pruned against checkpoint: NDCG@10 fell by" in message
    record = (workspace.root / "closed-gate-prune.txt").read_text(encoding="utf-8")
    for words in ("    user ", "went on to like: ", "top before: ", "top after:  "):
        assert record.count(words) == 10
        assert words not in message
    assert not workspace.pruned.exists()
    assert not workspace.pruned.with_name("pruned.tmp").exists()
    assert {folder: verify_artifact(folder).artifact for folder in published} == before

    run_stages(load_recipe(recipe_path), workspace, until="prune")
    assert not (workspace.root / "closed-gate-prune.txt").exists()
    found = read_manifest(workspace.pruned).metrics["gate against checkpoint"]
    assert (found["drop"], found["budget"]) == (0, 0.3)
    assert found["kendall_tau"] == pytest.approx(1, abs=1e-3)


@pytest.fixture(scope="module")
def pruned(workspace: Workspace, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny build, pruned with every criterion compared; tests must not change it."""
    root = tmp_path_factory.mktemp("pruned") / "tiny"
    for name in ("dataset", "teacher", "judgements"):
        shutil.copytree(workspace.root / name, root / name)
    made = Workspace(root)
    run_stages(smaller(tiny_recipe, gate={"prune_budget": 1.0, "budget": 0.99}), made, until="prune")
    return made


def test_criteria_are_compared_on_the_validation_users(pruned: Workspace) -> None:
    found = read_manifest(pruned.pruned).metrics["validation ndcg@10 by criteria"]
    assert set(found) == {"ablation + taylor", "ablation + magnitude", "influence + taylor", "taylor + taylor"}
    # Tokens and positions that are cut besides change no score of the catalogue.
    dataset, rules = Dataset.read(pruned.dataset), TextRules.load(pruned.pruned)
    requests, scorer = requests_of(dataset, dataset.validation, rules), open_scorer(pruned.pruned)
    values = [ndcg(scorer.score(r), e.labels) for r, e in zip(requests, dataset.validation, strict=True)]
    assert found["ablation + taylor"] == pytest.approx(np.mean(values), abs=1e-6)
    assert len(set(found.values())) > 1


def test_pruning_is_the_same_every_time(pruned: Workspace, tiny_recipe: Recipe, tmp_path: Path) -> None:
    again = Workspace(tmp_path / "tiny")
    shutil.copytree(pruned.root, again.root)
    recipe = smaller(tiny_recipe, gate={"prune_budget": 1.0, "budget": 0.99})
    run_stages(recipe, again, until="prune", force="prune")
    assert read_manifest(again.pruned).files == read_manifest(pruned.pruned).files


def test_only_what_distillation_repairs_may_cost_more(tiny_recipe: Recipe) -> None:
    recipe = smaller(tiny_recipe, gate={"budget": 0.01, "prune_budget": 0.4, "quantize_budget": 0.005})
    steps = ("prune", "distill", "quantize")
    assert [total_budget(recipe, step) for step in steps] == [0.4, 0.01, 0.01]
    assert [step_budget(recipe, step) for step in steps] == [0.4, 0.01, 0.005]
    alone = recipe.model_copy(update={"distill": None})
    assert total_budget(alone, "prune") == 0.01


class KilledError(Exception):
    """Stands for a killed process."""


def test_interrupted_distillation_goes_on_and_asks_the_teacher_once(
    pruned: Workspace, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = smaller(tiny_recipe, gate={"prune_budget": 1.0, "budget": 0.99})
    straight, broken = (Workspace(tmp_path / name / "tiny") for name in ("straight", "broken"))
    for workspace in (straight, broken):
        shutil.copytree(pruned.root, workspace.root)
    run_stages(recipe, straight, until="distill")

    monkeypatch.setattr("tritonrank.shrink.candidate_lists.EXAMPLES_PER_FILE", 10)
    asked: list[int] = []

    def asking(folder: Path) -> Any:
        scorer = open_scorer(folder)
        score = scorer.score

        def counted(request: Any) -> Any:
            asked.append(1)
            if len(asked) == 25:
                raise KilledError
            return score(request)

        scorer.score = counted
        return scorer

    monkeypatch.setattr(distill, "open_scorer", asking)
    with pytest.raises(KilledError):
        run_stages(recipe, broken, until="distill")
    assert not broken.student.exists()
    with optimizer_steps(last=7), pytest.raises(KeyboardInterrupt):
        run_stages(recipe, broken, until="distill")
    assert len(asked) == 25 + (40 - 20)  # two files of ten were whole
    assert not broken.student.exists()
    run_stages(recipe, broken, until="distill")
    assert "resuming from checkpoint-5" in capsys.readouterr().out
    assert len(asked) == 45
    assert not broken.student.with_name("student.work").exists()
    files = [read_manifest(workspace.student).files for workspace in (straight, broken)]
    assert files[0] == files[1]
    metrics = read_manifest(broken.student).metrics
    assert metrics["steps"] == 10
    assert {name for name in metrics if name.startswith("gate")} == {"gate against pruned", "gate against fine-tuned"}


def test_lists_hold_the_hardest_of_the_pool_and_nothing_the_user_met(
    pruned: Workspace, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = smaller(tiny_recipe)
    teacher = open_scorer(pruned.teacher)
    made = scored_lists(recipe, pruned.dataset, teacher, TextRules.load(pruned.teacher), tmp_path / "lists")
    again = scored_lists(recipe, pruned.dataset, teacher, TextRules.load(pruned.teacher), tmp_path / "lists")
    assert made == again
    events = pl.read_parquet(pruned.dataset / "events.parquet")
    met = {user: set(items) for user, items in events.group_by("user_id").agg("item_id").iter_rows()}
    assert len(made) == 40
    for example, scores in made:
        negatives = [item for item, label in zip(example.candidates, example.labels, strict=True) if not label]
        assert (len(example.candidates), sum(example.labels), len(scores)) == (6, 1, 6)
        assert len(set(example.candidates)) == 6
        assert not met[example.user_id] & set(negatives)


@pytest.mark.parametrize(("pool", "hardest", "others"), [(2, 1, 1), (8, 4, 4), (11, 6, 5), (20, 6, 5), (32, 6, 5)])
def test_the_hardest_of_the_pool_are_learnt_from_and_some_of_the_rest(pool: int, hardest: int, others: int) -> None:
    settings = DistillSettings(pool=pool)
    assert (settings.hard_negatives, settings.random_negatives) == (hardest, others)
    scores = np.random.default_rng(pool).normal(size=pool).astype(np.float32)
    chosen = choose_negatives(np.random.default_rng(1), scores, hardest, others)
    assert chosen[:hardest] == np.argsort(-scores)[:hardest].tolist()
    assert len(set(chosen)) == hardest + others


def test_a_pool_larger_than_the_catalogue_is_refused(pruned: Workspace, tiny_recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(pruned.root, root)
    recipe = smaller(tiny_recipe, gate={"prune_budget": 1.0, "budget": 0.99}, distill={"pool": 150})
    with pytest.raises(RecipeError, match=r"distill\.pool: 150 unseen items are asked for"):
        run_stages(recipe, Workspace(root), until="distill")


def test_the_whole_ladder_is_in_the_summary(pruned: Workspace, tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Pruned, distilled, quantized, assembled: every rung judged, with its own size."""
    root = tmp_path / "tiny"
    shutil.copytree(pruned.root, root)
    recipe = smaller(tiny_recipe, gate={"prune_budget": 1.0, "budget": 0.99})
    run_stages(recipe, Workspace(root))
    rows = {row["name"]: row for row in json.loads((root / "summary" / "summary.json").read_text())["rows"]}
    names = ["fine-tuned", "pruned", "student", "ONNX FP32", "INT8"]
    assert list(rows)[-5:] == names
    for smaller_rung in names[1:]:
        assert rows[smaller_rung]["parameters"] == rows["student"]["parameters"] < rows["fine-tuned"]["parameters"]
        assert rows[smaller_rung]["gflop_per_request"] < 0.6 * rows["fine-tuned"]["gflop_per_request"]
    gates = [name for name in read_manifest(root / "int8").metrics if name.startswith("gate")]
    assert gates == ["gate against ONNX FP32", "gate against fine-tuned"]
