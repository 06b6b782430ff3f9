"""The target ``tensorrt-tp``: a Triton repository whose scorer is one plan per GPU (``compile_ranks.py``).

The ensemble is that of every target; only ``score`` is Triton's TensorRT backend in its multi-device form: one instance
(KIND_MODEL) that runs all ranks, each on its GPU, with NCCL between them. It allows one optimization profile and no
CUDA graphs. No process of ours stands behind the queue, so Triton's own policy bounds it, and ``tokenize`` lets
everything through. Parameters: the multi-device section of the TensorRT backend's README (Triton 2.70 and later).
"""

import shutil
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from tritonrank.artifacts import Manifest, verify_artifact, write_artifact
from tritonrank.assemble import assemble_settings, python_sources, write_ensemble, write_identity_and_golden_cases
from tritonrank.compile_ranks import plan_profile, rank_plan_file, ranks_folder
from tritonrank.engine import SHARED_CONTEXT_INPUTS
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.pipeline import Workspace
from tritonrank.plans import IDENTITY_FILE, PLAN_FILE, REBUILD
from tritonrank.profiles import Profile
from tritonrank.recipe import Recipe, ServeSettings
from tritonrank.triton_config import model_configs

NO_LIMIT = 1_000_000
"""Requests that ``tokenize`` may let through: the scorer's own queue refuses what is too much."""


def assemble_ranks(recipe: Recipe, workspace: Workspace) -> Path:
    """Assemble the plans of a workspace's first precision; the folder of the repository.

    Raises:
        ArtifactError: the plans are missing, damaged, or for another number of GPUs.
        RecipeError: the recipe has one rank, or names no precision.
    """
    if recipe.tensor_parallel == 1 or not recipe.tensorrt.precisions:
        raise RecipeError(
            f"{recipe.name}: target tensorrt-tp needs tensor_parallel above 1 and one of tensorrt.precisions; try "
            "--set tensor_parallel=2 --set 'tensorrt.precisions=[fp16]'"
        )
    precision = recipe.tensorrt.precisions[0]
    folder = workspace.root / "repository-tensorrt-tp"
    source, plans = workspace.tensorrt_graph(recipe, precision), ranks_folder(recipe, workspace, precision)
    assemble_tensorrt_tp(recipe, workspace.dataset, source, plans, folder)
    return folder


def assemble_tensorrt_tp(
    recipe: Recipe, dataset_folder: Path, model_folder: Path, plans_folder: Path, folder: Path
) -> None:
    """Write the complete repository.

    Args:
        recipe: its serve section says how to serve, its tensor_parallel on how many GPUs.
        dataset_folder: where golden requests come from.
        model_folder: the ONNX artifact that the plans were made of; its scores are the golden ones.
        plans_folder: ``plans/<precision>-tp<N>``.
        folder: the repository.

    Raises:
        ArtifactError: the plans are missing, damaged, or for another number of GPUs.
    """
    plans = _checked_plans(plans_folder, recipe.tensor_parallel)
    settings = assemble_settings(recipe) | {"target": "tensorrt-tp"}
    with write_artifact(folder, "assemble", settings, {"plans": plans}) as draft:
        configs = tensorrt_tp_configs(recipe.serve, plan_profile(plans_folder), recipe.tensor_parallel)
        sources = [(model, source) for model, source in python_sources() if model != "score"]
        write_ensemble(configs, sources, plans_folder, draft.folder)
        for name in (PLAN_FILE, IDENTITY_FILE, *map(rank_plan_file, range(recipe.tensor_parallel))):
            shutil.copyfile(plans_folder / name, draft.folder / "score" / "1" / name)
        identity = {"artifact": plans.artifact[:16], "recipe": recipe.name, "stage": plans.stage}
        cases = write_identity_and_golden_cases(identity, dataset_folder, model_folder, draft.folder)
        draft.metrics |= {"artifact": identity["artifact"], "golden_cases": cases}


def tensorrt_tp_configs(settings: ServeSettings, profile: Profile, ranks: int) -> dict[str, pb.ModelConfig]:
    """All models of the repository by name.

    Args:
        settings: the recipe's serve section.
        profile: the one that the plans have.
        ranks: GPUs, numbered from 0.
    """
    inputs = list(profile)
    configs = model_configs(settings, inputs, cores=1)
    tokenize, score = (step for step in configs["rank"].ensemble_scheduling.step if step.model_name != "select")
    del tokenize.output_map["deadline"], score.input_map["deadline"]  # the queue policy keeps deadlines
    configs["tokenize"].parameters["queue_requests"].string_value = str(NO_LIMIT)
    configs["score"] = _score(settings, profile, ranks)
    return configs


def _score(settings: ServeSettings, profile: Profile, ranks: int) -> pb.ModelConfig:
    is_shared = SHARED_CONTEXT_INPUTS[0] in profile
    first = next(iter(profile.values()))
    config = pb.ModelConfig(
        name="score",
        backend="tensorrt",
        platform="tensorrt_plan",
        default_model_filename=PLAN_FILE,
        max_batch_size=first.largest[0],
    )
    for name, shapes in profile.items():
        config.input.add(name=name, data_type=pb.TYPE_INT32, dims=[-1] * (len(shapes.best) - 1))
    config.output.add(name="logits", data_type=pb.TYPE_FP32, dims=[-1] if is_shared else [1])
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_MODEL, count=1)
    for parameter, value in (
        ("enable_multi_device", "true"),
        ("multi_device_gpus", ",".join(map(str, range(ranks)))),
        ("multi_device_per_rank_engines", "true"),
    ):
        config.parameters[parameter].string_value = value
    policy = config.dynamic_batching.default_queue_policy
    policy.max_queue_size = settings.queue_requests
    policy.default_timeout_microseconds = settings.deadline_ms * 1_000
    policy.allow_timeout_override = True
    policy.timeout_action = pb.ModelQueuePolicy.REJECT
    config.dynamic_batching.max_queue_delay_microseconds = settings.queue_delay_us
    for size, shape_of in (("smallest", "smallest"), ("typical", "best"), ("largest", "largest")):
        shapes_of_size = {name: getattr(shapes, shape_of) for name, shapes in profile.items()}
        rows = next(iter(shapes_of_size.values()))[0]
        warmup = config.model_warmup.add(name=f"the {size} request", batch_size=rows)
        for name, shape in shapes_of_size.items():
            warmup.inputs[name].data_type = pb.TYPE_INT32
            warmup.inputs[name].dims.extend(shape[1:])
            warmup.inputs[name].zero_data = True
    return config


def _checked_plans(folder: Path, ranks: int) -> Manifest:
    again = f"Compile them: {REBUILD} --set tensor_parallel={ranks}"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no plans are here. {again}")
    manifest = verify_artifact(folder)
    missing = [name for name in (PLAN_FILE, *map(rank_plan_file, range(ranks))) if name not in manifest.files]
    if missing or rank_plan_file(ranks) in manifest.files:
        held = sum(name.startswith(f"{PLAN_FILE}.rank") for name in manifest.files)
        raise ArtifactError(f"{folder}: plans of {held} ranks; tensor_parallel is {ranks}. {again}")
    return manifest
