"""The repository for several GPUs: its configs, and what is refused before a server starts. No GPU is needed."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank.artifacts import verify_artifact, write_artifact
from tritonrank.compile_ranks import one_profile, plan_profile, rank_plan_file, ranks_folder
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.export import copy_text_files
from tritonrank.pipeline import Workspace
from tritonrank.plans import IDENTITY_FILE, PLAN_FILE, check_plans
from tritonrank.profiles import Profile, Range
from tritonrank.recipe import Recipe, ServeSettings
from tritonrank.tensorrt_tp import assemble_ranks, assemble_tensorrt_tp, tensorrt_tp_configs
from tritonrank.triton_config import as_text

SHARED: Profile = {
    "context_ids": Range((1, 1), (1, 90), (1, 90)),
    "candidate_ids": Range((1, 1, 1), (1, 100, 24), (1, 1_000, 24)),
}
JOINT: Profile = dict.fromkeys(["input_ids", "attention_mask"], Range((1, 1), (100, 112), (1_000, 112)))
RANKS = 2


@pytest.fixture
def plans(workspace: Workspace, tmp_path: Path) -> Path:
    """What `compile` writes, with plans that are not; TensorRT-RTX makes real ones in test_shard_engines.py."""
    folder = tmp_path / "plans" / "fp16-tp2"
    folder.parent.mkdir()
    with write_artifact(folder, "compile", {}, {}) as draft:
        copy_text_files(workspace.onnx, draft.folder)
        for name in (PLAN_FILE, *map(rank_plan_file, range(RANKS))):
            (draft.folder / name).write_bytes(name.encode())
        profile = {name: asdict(shapes) for name, shapes in SHARED.items()}
        (draft.folder / IDENTITY_FILE).write_text(json.dumps({"profiles": [profile]}))
    return folder


@pytest.fixture
def assemble(tiny_recipe: Recipe, workspace: Workspace, tmp_path: Path) -> Callable[[Path, int], Path]:
    def run(plans: Path, ranks: int) -> Path:
        recipe = tiny_recipe.model_copy(update={"tensor_parallel": ranks})
        assemble_tensorrt_tp(recipe, workspace.dataset, workspace.onnx, plans, tmp_path / "repository")
        return tmp_path / "repository"

    return run


def read_config(repository: Path, model: str) -> pb.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), pb.ModelConfig())


def test_the_repository_is_whole(plans: Path, assemble: Callable[[Path, int], Path]) -> None:
    repository = assemble(plans, RANKS)
    verify_artifact(repository)
    held = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    score = {f"score/1/{name}" for name in (PLAN_FILE, "model.plan.rank0", "model.plan.rank1", IDENTITY_FILE)}
    assert {name for name in held if name.startswith("score/")} == score | {"score/config.pbtxt"}
    assert {"golden.json", "tokenize/1/tokenizer.json", "select/1/artifact.json", "rank/config.pbtxt"} <= held
    assert len(json.loads((repository / "golden.json").read_text())["cases"]) == 4


def test_the_scorer_is_one_instance_over_all_gpus(plans: Path, assemble: Callable[[Path, int], Path]) -> None:
    config = read_config(assemble(plans, RANKS), "score")
    assert config.backend == "tensorrt"
    assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_MODEL, 1)]
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "enable_multi_device": "true",
        "multi_device_gpus": "0,1",
        "multi_device_per_rank_engines": "true",
    }
    assert not config.optimization.cuda.graphs
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0
    assert policy.default_timeout_microseconds > 0
    assert policy.allow_timeout_override  # or a request's own deadline would not count
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT


@pytest.mark.parametrize("profile", [SHARED, JOINT], ids=["shared-context", "joint"])
def test_the_ensemble_fits_the_scorer(profile: Profile) -> None:
    configs = tensorrt_tp_configs(ServeSettings(), profile, ranks=4)
    rank, score = configs["rank"], configs["score"]
    assert as_text(score) == as_text(text_format.Parse(as_text(score), pb.ModelConfig()))
    steps = {step.model_name: step for step in rank.ensemble_scheduling.step}
    assert set(steps["score"].input_map) == {tensor.name for tensor in score.input} == set(profile)
    assert "deadline" not in str(rank)
    made = {name for step in steps.values() for name in step.output_map.values()} | {one.name for one in rank.input}
    assert {name for step in steps.values() for name in step.input_map.values()} <= made
    for tensor in score.input:
        assert len(tensor.dims) == len(profile[tensor.name].best) - 1
        assert not tensor.allow_ragged_batch
    assert score.max_batch_size == next(iter(profile.values())).largest[0]
    for warmup in score.model_warmup:
        assert warmup.batch_size <= score.max_batch_size
        for name, tensor in warmup.inputs.items():
            size = (warmup.batch_size, *tensor.dims)
            bounds = zip(profile[name].smallest, size, profile[name].largest, strict=True)
            assert all(low <= found <= high for low, found, high in bounds)
    assert configs["score"].parameters["multi_device_gpus"].string_value == "0,1,2,3"


def test_one_profile_holds_what_all_hold() -> None:
    buckets = [
        {"context_ids": Range((1, 1), (4, 90), (4, 90)), "candidate_ids": Range((1, 1, 1), (4, 16, 24), (4, 16, 24))},
        {
            "context_ids": Range((1, 1), (1, 90), (1, 90)),
            "candidate_ids": Range((1, 17, 1), (1, 1_000, 24), (1, 1_000, 24)),
        },
    ]
    assert one_profile(buckets) == SHARED
    rows = [
        dict.fromkeys(JOINT, Range((1, 1), (16, 112), (16, 112))),
        dict.fromkeys(JOINT, Range((17, 1), (1_000, 112), (1_000, 112))),
    ]
    assert one_profile(rows) == JOINT
    assert one_profile(rows[:1]) == rows[0]


def test_the_profile_comes_from_the_plan(plans: Path) -> None:
    assert plan_profile(plans) == SHARED


@pytest.mark.parametrize("ranks", [3, 4])
def test_plans_for_fewer_gpus_are_refused(plans: Path, assemble: Callable[[Path, int], Path], ranks: int) -> None:
    with pytest.raises(
        ArtifactError, match=rf"plans of 2 ranks; tensor_parallel is {ranks}.*tritonrank compile RECIPE"
    ):
        assemble(plans, ranks)


def test_damaged_and_missing_plans_are_refused(
    plans: Path, assemble: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"no plans are here.*tritonrank compile RECIPE"):
        assemble(tmp_path / "nothing", RANKS)
    (plans / "model.plan.rank1").write_bytes(b"truncated")
    with pytest.raises(ArtifactError, match=r"model\.plan\.rank1: changed since it was built"):
        assemble(plans, RANKS)
    assert not (tmp_path / "repository").exists()


def test_a_recipe_without_ranks_or_precision_is_refused(tiny_recipe: Recipe, workspace: Workspace) -> None:
    for changes in ({"tensor_parallel": 1}, {"tensor_parallel": 2}):
        with pytest.raises(RecipeError, match=r"needs tensor_parallel above 1 and one of tensorrt\.precisions"):
            assemble_ranks(tiny_recipe.model_copy(update=changes), workspace)


def test_plans_lie_apart_by_precision_and_number(tiny_recipe: Recipe, workspace: Workspace) -> None:
    recipe = tiny_recipe.model_copy(update={"tensor_parallel": 4})
    assert ranks_folder(recipe, workspace, "int8").relative_to(workspace.root) == Path("plans/int8-tp4")


def test_a_foreign_plan_is_refused_before_triton_starts(plans: Path, assemble: Callable[[Path, int], Path]) -> None:
    with pytest.raises(ArtifactError, match=r"plan\.json: cannot be read"):
        check_plans(assemble(plans, RANKS))
