"""Configs of the targets for GPUs: Triton's own protobuf takes them, and every bucket has all it needs.

Of each target's ``score`` a copy is kept in golden/configs, so that a change of one is seen; write them anew with

    .venv/bin/python tests/test_gpu_config.py
"""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank.artifacts.workspace import Target
from tritonrank.errors import RecipeError
from tritonrank.recipe import Recipe
from tritonrank.serve.gpu_config import GRAPH_BATCHES, INSTANCES_PER_GPU, gpu_configs
from tritonrank.serve.triton_config import as_text, model_configs
from tritonrank.tensorrt.compile_ranks import one_profile
from tritonrank.tensorrt.profiles import Profile, Range, profiles_of
from tritonrank_runtime.architectures import architecture_named
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.request_reading import RequestLimits
from tritonrank_runtime.shared_context import SHARED_CONTEXT
from tritonrank_runtime.text import RequestTokenizer

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden" / "configs"
INPUTS = {
    SHARED_CONTEXT: ["context_ids", "candidate_ids"],
    JOINT: ["input_ids", "attention_mask", "token_type_ids"],
}
GPU_TARGETS = [Target.ONNXRUNTIME, Target.TENSORRT, Target.TENSORRT_TP]
PADDED_TARGETS = [Target.ONNXRUNTIME, Target.TENSORRT]
CONTEXT, CANDIDATE, ROW = 78, 25, 104
GPUS = 2
CORES = 8

Configs = dict[str, pb.ModelConfig]


def recipe_with(**sections: Any) -> Recipe:
    tensorrt = {"token_buckets": [16]} | sections.pop("tensorrt", {})
    return Recipe(name="golden", data={"source": "sample"}, tensor_parallel=GPUS, tensorrt=tensorrt, **sections)


def profiles_for(recipe: Recipe, architecture: str) -> list[Profile]:
    names = INPUTS[architecture]
    longest = [CONTEXT, CANDIDATE] if architecture == SHARED_CONTEXT else [ROW - 3] * len(names)
    tokenizer = SimpleNamespace(
        rules=SimpleNamespace(architecture=architecture),
        architecture=architecture_named(architecture),
        longest_rows=dict(zip(names, longest, strict=True)),
    )
    return profiles_of(recipe, cast(RequestTokenizer, tokenizer), names)


def configs_of(target: Target, architecture: str, recipe: Recipe | None = None) -> Configs:
    recipe = recipe or recipe_with()
    if target is Target.CPU:
        return model_configs(recipe.serve, INPUTS[architecture], CORES, in_one=False)
    profiles = profiles_for(recipe, architecture)
    return gpu_configs(recipe, target, [one_profile(profiles)] if target is Target.TENSORRT_TP else profiles, CORES)


@pytest.fixture(params=list(itertools.product(GPU_TARGETS, INPUTS)), ids="-".join)
def made(request: pytest.FixtureRequest) -> tuple[Target, str, Configs]:
    target, architecture = request.param
    return target, architecture, configs_of(target, architecture)


@pytest.fixture(params=list(itertools.product(PADDED_TARGETS, INPUTS)), ids="-".join)
def padded(request: pytest.FixtureRequest) -> tuple[str, list[Profile], Configs]:
    target, architecture = request.param
    return architecture, profiles_for(recipe_with(), architecture), configs_of(target, architecture)


def golden_texts() -> dict[str, str]:
    """Name of the golden file -> config of ``score``; few buckets, so that one can read it."""
    few = recipe_with(tensorrt={"candidate_buckets": [16, 1_000], "token_buckets": [], "requests": 2})
    return {
        f"{target}-{architecture}.pbtxt": as_text(configs_of(target, architecture, few)["score"])
        for target, architecture in itertools.product(Target, INPUTS)
    }


@pytest.mark.parametrize("name", [f"{target}-{architecture}.pbtxt" for target in Target for architecture in INPUTS])
def test_the_scorers_config_is_the_golden_one(name: str) -> None:
    text, golden = golden_texts()[name], (GOLDEN / name).read_text(encoding="utf-8")
    # Compared as protobufs first: that says which field differs, and holds for any release's text format.
    assert text_format.Parse(text, pb.ModelConfig()) == text_format.Parse(golden, pb.ModelConfig()), __doc__
    assert text == golden, __doc__


@pytest.mark.parametrize(("target", "architecture"), list(itertools.product(Target, INPUTS)), ids="-".join)
def test_every_text_is_its_config(target: Target, architecture: str) -> None:
    for name, config in configs_of(target, architecture).items():
        assert text_format.Parse(as_text(config), pb.ModelConfig()) == config
        assert config.name == name
        assert bool(config.backend) != (config.platform == "ensemble")


def test_clients_see_no_difference(made: tuple[Target, str, Configs]) -> None:
    _, architecture, configs = made
    cpu = configs_of(Target.CPU, architecture)
    assert (configs["rank"].input, configs["rank"].output) == (cpu["rank"].input, cpu["rank"].output)
    assert (configs["select"].input, configs["select"].output) == (cpu["select"].input, cpu["select"].output)
    assert configs["tokenize"].input == cpu["tokenize"].input


@pytest.mark.parametrize(("cores", "count"), [(8, 4), (1, 1)])
def test_a_gpu_is_fed_by_several_tokenizers(cores: int, count: int) -> None:
    recipe = recipe_with()
    configs = gpu_configs(recipe, Target.TENSORRT, profiles_for(recipe, JOINT), cores)
    for name in ("tokenize", "select"):
        assert [(group.kind, group.count) for group in configs[name].instance_group] == [
            (pb.ModelInstanceGroup.KIND_CPU, count)
        ]


def test_the_ensemble_is_wired(made: tuple[Target, str, Configs]) -> None:
    *_, configs = made
    rank = configs["rank"]
    known = {tensor.name for tensor in rank.input}
    for step in rank.ensemble_scheduling.step:
        model = configs[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        assert set(step.output_map) == {tensor.name for tensor in model.output}
        assert set(step.input_map.values()) <= known
        known |= set(step.output_map.values())
    assert {tensor.name for tensor in rank.output} <= known
    assert not any('"deadline"' in as_text(config) for name, config in configs.items() if name != "tokenize")
    assert "deadline" not in {tensor.name for tensor in configs["tokenize"].output}
    types = {tensor.name: tensor.data_type for tensor in configs["tokenize"].output}
    assert all(types[tensor.name] == tensor.data_type for tensor in configs["score"].input)
    assert not any(tensor.allow_ragged_batch for tensor in configs["score"].input)


def test_the_queue_is_bounded_and_keeps_deadlines(made: tuple[Target, str, Configs]) -> None:
    target, architecture, _ = made
    serve = {"queue_requests": 9, "deadline_ms": 50}
    configs = configs_of(target, architecture, recipe_with(serve=serve))
    batching = configs["score"].dynamic_batching
    policy = batching.default_queue_policy
    assert policy.max_queue_size == 9
    assert policy.default_timeout_microseconds == 50_000
    assert policy.allow_timeout_override  # or a request's own deadline would not count
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert batching.max_queue_delay_microseconds == 0
    assert int(configs["tokenize"].parameters["queue_requests"].string_value) > 100_000  # the scorer's queue refuses
    assert not configs["rank"].HasField("dynamic_batching")


def test_requests_are_padded_to_the_profiles(padded: tuple[str, list[Profile], Configs]) -> None:
    architecture, profiles, configs = padded
    parameters = configs["tokenize"].parameters
    candidates, tokens = (
        [int(size) for size in parameters[name].string_value.split(",")]
        for name in ("candidate_buckets", "token_buckets")
    )
    assert (candidates, tokens) == ([16, 128, 1_000], [16, CANDIDATE if architecture == SHARED_CONTEXT else ROW])
    last = INPUTS[architecture][-1]
    exact = [profile[last].best[-2:] for profile in profiles]
    assert exact == [(many, long) for many in candidates for long in tokens]


def test_nothing_is_padded_for_a_plan_over_all_gpus() -> None:
    for architecture in INPUTS:
        assert "candidate_buckets" not in configs_of(Target.TENSORRT_TP, architecture)["tokenize"].parameters


def test_any_batch_that_triton_forms_fits_a_profile(padded: tuple[str, list[Profile], Configs]) -> None:
    """It puts together whatever has one shape, up to max_batch_size."""
    architecture, profiles, configs = padded
    most = configs["score"].max_batch_size
    last = INPUTS[architecture][-1]
    for profile in profiles:
        for batch in range(1, most + 1) if architecture == SHARED_CONTEXT else (profile[last].best[0], most):
            shapes = {name: (batch, *one.best[1:]) for name, one in profile.items()}
            assert any(holds(other, shapes) for other in profiles), shapes


def holds(profile: Profile, shapes: dict[str, tuple[int, ...]]) -> bool:
    return all(
        len(shapes[name]) == len(one.largest)
        and all(low <= size <= high for low, size, high in zip(one.smallest, shapes[name], one.largest, strict=True))
        for name, one in profile.items()
    )


def test_warm_up_runs_shapes_that_come(made: tuple[Target, str, Configs]) -> None:
    target, architecture, configs = made
    score = configs["score"]
    profiles = profiles_for(recipe_with(), architecture)
    if target is Target.TENSORRT_TP:
        profiles = [one_profile(profiles)]
    warmed: dict[int, set[int]] = {}
    assert len({sample.name for sample in score.model_warmup}) == len(score.model_warmup)
    for sample in score.model_warmup:
        assert 1 <= sample.batch_size <= score.max_batch_size  # the bundled server dies of a larger one
        shapes = {name: (sample.batch_size, *tensor.dims) for name, tensor in sample.inputs.items()}
        assert set(shapes) == set(INPUTS[architecture])
        (number,) = [place for place, profile in enumerate(profiles) if holds(profile, shapes)]
        warmed.setdefault(number, set()).add(sample.batch_size)
        for name, tensor in sample.inputs.items():
            is_mask = name == "attention_mask"
            assert tensor.WhichOneof("input_data_type") == ("input_data_file" if is_mask else "zero_data")
    assert sorted(warmed) == list(range(len(profiles))), "every profile"
    for number, batches in warmed.items():
        assert max(batches) == next(iter(profiles[number].values())).largest[0]
        if target in PADDED_TARGETS and architecture == SHARED_CONTEXT:
            assert min(batches) == 1


@pytest.mark.parametrize("architecture", INPUTS)
def test_a_plan_has_every_profile_and_graphs_of_exact_shapes(architecture: str) -> None:
    score = configs_of(Target.TENSORRT, architecture)["score"]
    profiles = profiles_for(recipe_with(), architecture)
    assert (score.backend, score.platform, score.default_model_filename) == (
        "tensorrt",
        "tensorrt_plan",
        "model.plan",
    )
    (group,) = score.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, INSTANCES_PER_GPU, [])
    assert list(group.profile) == [str(number) for number in range(len(profiles))]
    cuda = score.optimization.cuda
    assert cuda.graphs
    seen = set()
    for spec in cuda.graph_spec:
        assert not spec.HasField("graph_lower_bound")  # what lies behind a smaller request would be left-overs
        shapes = {name: (spec.batch_size, *shape.dim) for name, shape in spec.input.items()}
        assert any(
            shapes == {name: (spec.batch_size, *one.best[1:]) for name, one in profile.items()} for profile in profiles
        )
        seen.add((spec.batch_size, *shapes[INPUTS[architecture][-1]][1:]))
    assert len(seen) == len(cuda.graph_spec)
    if architecture == SHARED_CONTEXT:
        assert {batch for batch, *_ in seen} == {1, 2, 3, 4}
        assert len(seen) == 4 * len(profiles)
    else:
        assert seen == {profile["input_ids"].best for profile in profiles}


def test_many_requests_have_graphs_for_some_numbers_of_them() -> None:
    recipe = recipe_with(tensorrt={"requests": 30, "candidate_buckets": [1_000]})
    score = configs_of(Target.TENSORRT, SHARED_CONTEXT, recipe)["score"]
    batches = {spec.batch_size for spec in score.optimization.cuda.graph_spec}
    assert batches == {batch for batch in GRAPH_BATCHES if batch < 30} | {30}


@pytest.mark.parametrize("architecture", INPUTS)
def test_onnx_runtime_computes_on_gpus_what_was_judged(architecture: str) -> None:
    score = configs_of(Target.ONNXRUNTIME, architecture)["score"]
    assert (score.backend, score.platform, score.default_model_filename) == (
        "onnxruntime",
        "onnxruntime_onnx",
        "model.onnx",
    )
    (group,) = score.instance_group
    assert (group.kind, group.count, list(group.profile)) == (pb.ModelInstanceGroup.KIND_GPU, INSTANCES_PER_GPU, [])
    (accelerator,) = score.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})
    assert not score.optimization.HasField("cuda")


@pytest.mark.parametrize("target", PADDED_TARGETS)
def test_instances_are_per_gpu_and_as_told(target: Target) -> None:
    score = configs_of(target, JOINT, recipe_with(serve={"instances": 3}))["score"]
    assert [group.count for group in score.instance_group] == [3]


@pytest.mark.parametrize("architecture", INPUTS)
def test_a_plan_over_all_gpus_is_one_instance(architecture: str) -> None:
    score = configs_of(Target.TENSORRT_TP, architecture)["score"]
    assert [(group.kind, group.count) for group in score.instance_group] == [(pb.ModelInstanceGroup.KIND_MODEL, 1)]
    assert {name: value.string_value for name, value in score.parameters.items()} == {
        "enable_multi_device": "true",
        "multi_device_gpus": "0,1",
        "multi_device_per_rank_engines": "true",
    }
    assert not score.optimization.cuda.graphs
    assert (score.backend, score.platform) == ("tensorrt", "tensorrt_plan")


def test_one_profile_holds_what_all_hold() -> None:
    for architecture in INPUTS:
        profiles = profiles_for(recipe_with(), architecture)
        merged = one_profile(profiles)
        for profile in profiles:
            one_request = 1 if architecture == SHARED_CONTEXT else profile["input_ids"].largest[0]
            for end in ("smallest", "largest"):
                assert holds(merged, {name: (one_request, *getattr(one, end)[1:]) for name, one in profile.items()})
        for one in merged.values():
            assert all(low <= best <= high for low, best, high in zip(one.smallest, one.best, one.largest, strict=True))
    shared = one_profile(profiles_for(recipe_with(), SHARED_CONTEXT))
    assert shared["candidate_ids"] == Range((1, 1, 1), (1, 100, CANDIDATE), (1, 1_000, CANDIDATE))


@pytest.mark.parametrize("target", GPU_TARGETS)
def test_profiles_that_cannot_hold_a_request_are_refused(target: Target) -> None:
    small = recipe_with(tensorrt={"candidate_buckets": [16, 100]}, serve={"max_candidates": 100})
    profiles = profiles_for(small, SHARED_CONTEXT)
    if target is Target.TENSORRT_TP:
        profiles = [one_profile(profiles)]
    with pytest.raises(
        RecipeError,
        match=r"serve\.max_candidates is 1000, but the largest optimization profile holds 100: end "
        r"tensorrt\.candidate_buckets at 1000 or more.*set serve\.max_candidates=100",
    ):
        gpu_configs(recipe_with(), target, profiles, CORES)


def test_tokenize_reads_the_buckets_that_it_is_given() -> None:
    source = (TESTS.parent / "model_repository" / "tokenize" / "1" / "model.py").read_text(encoding="utf-8")
    cpu, gpu = (configs_of(target, JOINT)["tokenize"].parameters for target in (Target.CPU, Target.TENSORRT))
    assert set(gpu) - set(cpu) == {"candidate_buckets", "token_buckets"}
    limits = set(RequestLimits.__dataclass_fields__)
    assert set(gpu) <= limits | set(re.findall(r'settings(?:\.get\(|\[)"(\w+)"', source))


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, text in golden_texts().items():
        (GOLDEN / name).write_text(text, encoding="utf-8")
