"""Repositories for GPUs: they are whole, and what does not fit is refused before a server starts. No GPU is needed."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from planted_plans import A100, VERSION, identify
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank import cli
from tritonrank.artifacts import sha256_file, verify_artifact, write_artifact
from tritonrank.artifacts.workspace import Target, Workspace
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.pipeline import gpu_targets
from tritonrank.pipeline.gpu_targets import GOLDEN_SHARES, assemble_target, assembling_stage, build_target
from tritonrank.recipe import Recipe
from tritonrank.serve.serving import assemble_command, golden_requests, serving
from tritonrank.tensorrt import plans as plans_module
from tritonrank.tensorrt.compile_ranks import one_profile, rank_plan_file
from tritonrank.tensorrt.plans import IDENTITY_FILE, PLAN_FILE
from tritonrank.tensorrt.profiles import profiles_of
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.text import RequestTokenizer, copy_text_files

RANKS = 2
Plant = Callable[..., Path]


def for_plan(recipe: Recipe, **tensorrt: Any) -> Recipe:
    """A recipe whose plan is FP32: the graph of a joint ranker is there already."""
    settings = {"precisions": ["fp32"], "candidate_buckets": [16, 1_000]} | tensorrt
    return recipe.model_copy(update={"tensorrt": recipe.tensorrt.model_copy(update=settings)})


def for_ranks(recipe: Recipe, ranks: int = RANKS) -> Recipe:
    return for_plan(recipe).model_copy(update={"tensor_parallel": ranks})


RECIPES = {Target.TENSORRT: for_plan, Target.TENSORRT_TP: for_ranks}
"""What makes the recipe of a target with plans."""


@pytest.fixture
def own(joint_workspace: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the joint ranker's artifacts, to which plans may be added."""
    workspace = Workspace(tmp_path / "artifacts" / "tiny")
    for folder in (joint_workspace.dataset, joint_workspace.teacher, joint_workspace.onnx):
        shutil.copytree(folder, workspace.root / folder.name)
    return workspace


@pytest.fixture
def plant(own: Workspace) -> Plant:
    """What `compile` writes, with plans that are none; TensorRT-RTX makes real ones in test_engines.py."""

    def make(recipe: Recipe, **changes: Any) -> Path:
        ranks = recipe.tensor_parallel
        folder = own.plans / "fp32" if ranks == 1 else own.rank_plans(recipe, "fp32")
        folder.parent.mkdir(exist_ok=True)
        graph = own.onnx / "model.onnx"
        inputs = [tensor.name for tensor in onnx.load(graph).graph.input]
        profiles = profiles_of(recipe, RequestTokenizer.from_folder(own.onnx), inputs)
        if ranks > 1:
            profiles = [one_profile(profiles)]
        with write_artifact(folder, "compile", {}, {}) as draft:
            copy_text_files(own.onnx, draft.folder)
            for name in (PLAN_FILE, *(map(rank_plan_file, range(ranks)) if ranks > 1 else ())):
                (draft.folder / name).write_bytes(name.encode())
            said = [{name: asdict(one) for name, one in profile.items()} for profile in profiles]
            identify(draft.folder, **{"precision": "fp32", "profiles": said, "graph": sha256_file(graph)} | changes)
        return folder

    return make


def read_config(repository: Path, model: str) -> pb.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), pb.ModelConfig())


def files_of_score(repository: Path) -> set[str]:
    score = repository / "score"
    return {str(path.relative_to(score)) for path in score.rglob("*") if path.is_file()}


# What is written


@pytest.mark.parametrize("target", RECIPES)
def test_a_repository_of_plans_is_whole(target: Target, joint_recipe: Recipe, own: Workspace, plant: Plant) -> None:
    recipe = RECIPES[target](joint_recipe)
    plant(recipe)
    repository = assemble_target(recipe, own, target)
    assert repository == own.root / f"repository-{target}" == own.repository_for(target)
    manifest = verify_artifact(repository)
    assert (manifest.settings["target"], manifest.settings["precision"]) == (target, "fp32")
    ranks = "" if target is Target.TENSORRT else f" --set tensor_parallel={RANKS}"
    again = f"tritonrank assemble RECIPE --target {target} --set 'tensorrt.precisions=[fp32]'{ranks}"
    assert assemble_command(repository) == again
    plan_files = {"1/model.plan", "1/plan.json"}
    if target is Target.TENSORRT_TP:
        plan_files |= {"1/model.plan.rank0", "1/model.plan.rank1"}
    masks = {
        f"warmup/{sample.inputs['attention_mask'].input_data_file}"
        for sample in read_config(repository, "score").model_warmup
    }
    assert masks
    assert files_of_score(repository) == plan_files | masks | {"config.pbtxt"}
    for mask in masks:
        ones = np.frombuffer((repository / "score" / mask).read_bytes(), dtype="<i4")
        assert ones.tolist() == [1] * int(mask.rsplit("_", 1)[1])
    for name in ("golden.json", "tokenize/1/tokenizer.json", "select/1/artifact.json", "rank/config.pbtxt"):
        assert (repository / name).is_file()
    assert json.loads((repository / "reference.json").read_text())["artifact"] == manifest.metrics["artifact"]
    assert json.loads((repository / "select" / "1" / "artifact.json").read_text())["artifact"]


def test_golden_scores_are_the_graphs_and_leave_room_for_rounding(
    joint_recipe: Recipe, own: Workspace, plant: Plant, joint_workspace: Workspace
) -> None:
    recipe = for_plan(joint_recipe)
    plant(recipe)
    repository = assemble_target(recipe, own, Target.TENSORRT)
    golden = golden_requests(repository)
    scores = [score for _, expected in golden for score in expected if score != NO_TEXT_SCORE]
    tolerance = json.loads((repository / "golden.json").read_text())["tolerance"]
    assert tolerance == pytest.approx(GOLDEN_SHARES["fp32"] * np.std(scores))
    assert json.loads((joint_workspace.repository / "golden.json").read_text())["tolerance"] == 1e-4
    assert max(GOLDEN_SHARES.values()) < 0.5  # wrong tokens move scores by about their spread


def test_onnxruntime_serves_the_first_precision_that_gains_from_it(
    joint_recipe: Recipe, own: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[list[str]] = []
    monkeypatch.setattr(gpu_targets, "build_graphs", lambda recipe, _: built.append(recipe.tensorrt.precisions))
    shutil.copytree(own.onnx, own.fp16)  # which graph it is does not matter here
    for precisions, chosen in (([], "fp32"), (["int8"], "fp32"), (["int8-fp16", "fp16", "fp32"], "fp16")):
        repository = assemble_target(for_plan(joint_recipe, precisions=precisions), own, Target.ONNXRUNTIME)
        assert verify_artifact(repository).settings["precision"] == chosen
        assert built.pop() == [chosen]
        assert {"1/model.onnx", "config.pbtxt"} <= files_of_score(repository)


def test_build_compiles_first(
    joint_recipe: Recipe, own: Workspace, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = for_plan(joint_recipe)
    monkeypatch.setattr(gpu_targets, "compile_recipe", lambda wanted, _: plant(wanted))
    assert build_target(recipe, own, Target.TENSORRT) == own.repository_for(Target.TENSORRT)
    with pytest.raises(RecipeError, match=r"tensorrt\.precisions"):
        build_target(for_plan(joint_recipe, precisions=[]), own, Target.TENSORRT)


# What is refused when it is assembled


def test_a_recipe_that_does_not_fit_the_target_is_refused(joint_recipe: Recipe, own: Workspace) -> None:
    for recipe in (joint_recipe, joint_recipe.model_copy(update={"tensor_parallel": 2})):
        with pytest.raises(RecipeError, match=r"tensor_parallel.*tensorrt\.precisions"):
            assemble_target(recipe, own, Target.TENSORRT_TP)
    with pytest.raises(RecipeError, match=r"tensorrt\.precisions.*--set \S*precisions=\[fp16\]"):
        assemble_target(joint_recipe, own, Target.TENSORRT)
    with pytest.raises(RecipeError, match=r"tensor_parallel.*--target tensorrt-tp"):
        assemble_target(for_ranks(joint_recipe), own, Target.TENSORRT)


@pytest.mark.parametrize("target", RECIPES)
def test_missing_and_damaged_plans_are_refused(
    target: Target, joint_recipe: Recipe, own: Workspace, plant: Plant
) -> None:
    recipe = RECIPES[target](joint_recipe)
    ranks = "" if target is Target.TENSORRT else f" --set tensor_parallel={RANKS}"
    again = rf"tritonrank compile RECIPE --set 'tensorrt\.precisions=\[fp32\]'{ranks}$"
    with pytest.raises(ArtifactError, match=again):
        assemble_target(recipe, own, target)
    last = PLAN_FILE if target is Target.TENSORRT else rank_plan_file(1)
    (plant(recipe) / last).write_bytes(b"truncated")
    with pytest.raises(ArtifactError, match=rf"(?s){last}.*tritonrank compile RECIPE"):
        assemble_target(recipe, own, target)
    assert not own.repository_for(target).exists()


@pytest.mark.parametrize("ranks", [3, 4])
def test_plans_for_fewer_gpus_are_refused(ranks: int, joint_recipe: Recipe, own: Workspace, plant: Plant) -> None:
    plans = plant(for_ranks(joint_recipe))
    with pytest.raises(ArtifactError, match=rf"tritonrank compile.*tensor_parallel={ranks}"):
        assembling_stage(for_ranks(joint_recipe, ranks), own, Target.TENSORRT_TP, "fp32", plans)


def test_plans_lie_apart_by_precision_and_number(joint_recipe: Recipe, own: Workspace) -> None:
    assert own.rank_plans(for_ranks(joint_recipe, 4), "int8").relative_to(own.root) == Path("plans/int8-tp4")


def test_a_plan_that_cannot_hold_a_request_is_refused(joint_recipe: Recipe, own: Workspace, plant: Plant) -> None:
    small = for_plan(joint_recipe, candidate_buckets=[16, 100])
    for ranks, target in ((1, Target.TENSORRT), (RANKS, Target.TENSORRT_TP)):
        plant(small.model_copy(update={"tensor_parallel": ranks}))
        recipe = for_plan(joint_recipe).model_copy(update={"tensor_parallel": ranks})
        with pytest.raises(RecipeError, match=r"serve\.max_candidates.*tensorrt\.candidate_buckets"):
            assemble_target(recipe, own, target)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target.TENSORRT, r"16x\d+, 1000x\d+.*64x\d+, 800x\d+.*tritonrank compile"),
        (Target.TENSORRT_TP, r"1000x\d+.*800x\d+.*tritonrank compile"),
    ],
)
def test_a_plan_for_other_buckets_is_refused(
    target: Target, said: str, joint_recipe: Recipe, own: Workspace, plant: Plant
) -> None:
    """Requests would be padded to shapes that no profile is tuned for."""
    recipe = RECIPES[target](joint_recipe)
    plant(recipe)
    fewer = recipe.model_copy(update={"serve": recipe.serve.model_copy(update={"max_candidates": 800})})
    with pytest.raises(ArtifactError, match=said):
        assemble_target(for_plan(fewer, candidate_buckets=[64, 800]), own, target)


@pytest.mark.parametrize("target", RECIPES)
def test_a_plan_of_another_graph_is_refused(target: Target, joint_recipe: Recipe, own: Workspace, plant: Plant) -> None:
    recipe = RECIPES[target](joint_recipe)
    plant(recipe, graph="0" * 64)
    with pytest.raises(ArtifactError, match=r"model\.onnx.*tritonrank compile"):
        assemble_target(recipe, own, target)


@pytest.mark.parametrize("target", RECIPES)
@pytest.mark.parametrize(
    ("section", "change", "stage"),
    [("finetune", {"epochs": 7.0}, "teacher"), ("", {"seed": 3}, "dataset")],
)
def test_plans_that_the_recipe_would_not_make_any_more_are_refused(
    section: str,
    change: dict[str, Any],
    stage: str,
    target: Target,
    joint_recipe: Recipe,
    own: Workspace,
    plant: Plant,
) -> None:
    """They would be served without a word: the graph on disk is still theirs."""
    recipe = RECIPES[target](joint_recipe)
    plant(recipe)
    changed = {section: getattr(recipe, section).model_copy(update=change)} if section else change
    with pytest.raises(ArtifactError, match=rf"{stage}.*tritonrank compile"):
        assemble_target(recipe.model_copy(update=changed), own, target)
    assert not own.repository_for(target).exists()


# What is refused when it is served


def start(repository: Path) -> None:
    with serving(repository):
        raise AssertionError("a server started on plans that are none")


def test_plans_are_refused_where_no_gpu_is(joint_recipe: Recipe, own: Workspace, plant: Plant) -> None:
    plant(for_plan(joint_recipe))
    with pytest.raises(ArtifactError, match=r"no GPU.*tritonrank compile"):
        start(assemble_target(for_plan(joint_recipe), own, Target.TENSORRT))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "10.16.1.11"}, r"built with TensorRT 10\.16\.1\.11, here is 11\.4\.0"),
        ({"gpu": "NVIDIA L4", "compute_capabilities": ["8.9"]}, r"built on NVIDIA L4 .*here is NVIDIA A100"),
        ({"module": "tensorrt_rtx"}, "TensorRT-RTX engine"),
        ({"sha256": "0" * 64}, r"model\.plan: truncated or changed since it was built"),
    ],
)
def test_foreign_plans_are_refused_before_triton_starts(
    changes: dict[str, Any],
    said: str,
    joint_recipe: Recipe,
    own: Workspace,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plans_module, "runtime_version", lambda: VERSION)
    monkeypatch.setattr(plans_module, "find_gpu", lambda: A100)
    plant(for_plan(joint_recipe), **changes)
    repository = assemble_target(for_plan(joint_recipe), own, Target.TENSORRT)
    with pytest.raises(ArtifactError, match=said) as refused:
        start(repository)
    assert "tritonrank compile RECIPE --set 'tensorrt.precisions=[fp32]'" in str(refused.value)


def test_a_truncated_plan_in_a_repository_is_refused(joint_recipe: Recipe, own: Workspace, plant: Plant) -> None:
    plant(for_plan(joint_recipe))
    repository = assemble_target(for_plan(joint_recipe), own, Target.TENSORRT)
    (repository / "score" / "1" / PLAN_FILE).write_bytes(b"mod")
    with pytest.raises(ArtifactError, match=r"score/1/model\.plan: changed since it was built"):
        start(repository)
    (repository / "score" / "1" / IDENTITY_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"score/1/plan\.json: missing"):
        start(repository)


# The command


def without_executor(folder: Path) -> Path:
    """tiny.yaml as a file that leaves it to the target what computes."""
    recipe = folder / "tiny.yaml"
    text = (Path(__file__).parent / "tiny.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("  executor: onnxruntime\n", ""), encoding="utf-8")
    return recipe


@pytest.mark.parametrize("target", [Target.ONNXRUNTIME, Target.TENSORRT, Target.TENSORRT_TP])
@pytest.mark.parametrize("command", ["assemble", "build"])
def test_the_command_passes_the_target_on(
    command: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, Target]] = []

    def make(recipe: Recipe, workspace: Workspace, wanted: Target, **_: bool) -> Path:
        asked.append((recipe.name, wanted))
        return workspace.repository_for(wanted)

    monkeypatch.setattr(gpu_targets, f"{command}_target", make)
    monkeypatch.setattr(gpu_targets, "check_target", lambda *_: None)
    monkeypatch.setattr("tritonrank.pipeline.stages.run_stages", lambda *_, **__: None)
    monkeypatch.setattr("tritonrank.report.summary_table.show_summary", lambda _: None)
    monkeypatch.setattr("tritonrank.report.answer.exit_code", lambda *_: 0)
    recipe = without_executor(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["tritonrank", command, str(recipe), "--artifacts", str(tmp_path), "--target", target]
    )
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code
    assert asked == [("tiny", target)]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "tiny" / f"repository-{target}")


@pytest.mark.parametrize(
    ("target", "settings", "error", "said"),
    [
        (Target.TENSORRT, [], RecipeError, r"target tensorrt needs one of tensorrt\.precisions"),
        (Target.TENSORRT_TP, ["tensorrt.precisions=[fp16]"], RecipeError, "needs tensor_parallel above 1"),
        (Target.TENSORRT, ["tensorrt.precisions=[fp16]"], ArtifactError, r"TensorRT 9\.0 is too old"),
        (
            Target.TENSORRT_TP,
            ["tensorrt.precisions=[fp16]", "tensor_parallel=2"],
            ArtifactError,
            r"TensorRT 9\.0 is too old",
        ),
    ],
)
def test_what_is_missing_for_plans_shows_before_the_build(
    target: Target,
    settings: list[str],
    error: type[Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[object] = []
    monkeypatch.setattr("tritonrank.pipeline.stages.run_stages", lambda *arguments, **_: ran.append(arguments))
    monkeypatch.setitem(sys.modules, "tensorrt", cast(ModuleType, SimpleNamespace(__version__="9.0")))
    with pytest.raises(error, match=said):
        cli.building.build(without_executor(tmp_path), settings, tmp_path, target)
    assert not ran
