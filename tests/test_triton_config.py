"""The generated configs hold together: every tensor has one maker, every queue has an end.

Of a ranker in three steps; ``test_one_process.py`` has the other shape.
"""

import re
from functools import partial
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank.recipe import ServeSettings
from tritonrank.serve.triton_config import (
    ADMISSION_TENSORS,
    ITEM_CACHE_ENTRIES,
    MOST_HISTORY,
    MOST_TEXT_BYTES,
    as_text,
    model_configs,
    score_instances,
)
from tritonrank_runtime.architectures import architecture_of_inputs
from tritonrank_runtime.engines import ENGINE_PARAMETERS
from tritonrank_runtime.request_reading import RequestLimits
from tritonrank_runtime.split import BLOCK_CANDIDATES

step_configs = partial(model_configs, in_one=False)
ROOT = Path(__file__).parents[1]
BERT = ("input_ids", "attention_mask", "token_type_ids")
ROBERTA = ("input_ids", "attention_mask")
SHARED = ("context_ids", "candidate_ids")
SETTINGS = {
    "default": ServeSettings(),
    "small": ServeSettings(
        max_candidates=5,
        rows_per_batch=3,
        deadline_ms=50,
        queue_requests=2,
        queue_share=0.25,
        context_cache_mb=3,
        threads=2,
        executor="torch",
    ),
    "wide batches": ServeSettings(max_candidates=10, rows_per_batch=1_000, instances=3),
}

Configs = dict[str, pb.ModelConfig]


@pytest.fixture(params=[(name, tensors) for name in SETTINGS for tensors in (BERT, ROBERTA, SHARED)], ids=str)
def made(request: pytest.FixtureRequest) -> tuple[ServeSettings, tuple[str, ...], Configs]:
    name, tensors = request.param
    return SETTINGS[name], tensors, step_configs(SETTINGS[name], tensors, cores=8)


def signature(tensor: pb.ModelInput | pb.ModelOutput, batched: bool) -> tuple[int, tuple[int, ...]]:
    """Type and dimensions as the tensor looks from outside, where a batch is one more dimension."""
    return tensor.data_type, ((-1,) if batched else ()) + tuple(tensor.dims)


def test_the_text_is_the_config(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    *_, configs = made
    assert sorted(configs) == ["rank", "score", "select", "tokenize"]
    for name, config in configs.items():
        text = as_text(config)
        assert text_format.Parse(text, pb.ModelConfig()) == config
        assert config.name == name
        assert text.startswith("# Written by `tritonrank assemble`")


def test_the_same_input_gives_the_same_text() -> None:
    first, again = (step_configs(ServeSettings(), BERT, cores=4) for _ in range(2))
    assert [as_text(config) for config in first.values()] == [as_text(config) for config in again.values()]
    other = step_configs(ServeSettings(queue_requests=3), BERT, cores=4)
    assert as_text(other["tokenize"]) != as_text(first["tokenize"])
    assert as_text(other["rank"]) == as_text(first["rank"])


def test_every_tensor_of_the_ensemble_is_made_once_and_used(
    made: tuple[ServeSettings, tuple[str, ...], Configs],
) -> None:
    *_, configs = made
    rank = configs["rank"]
    steps = rank.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["tokenize", "score", "select"]
    made_by = [tensor.name for tensor in rank.input] + [name for step in steps for name in step.output_map.values()]
    assert len(made_by) == len(set(made_by))
    used = {name for step in steps for name in step.input_map.values()} | {tensor.name for tensor in rank.output}
    assert used == set(made_by)
    known = {tensor.name for tensor in rank.input}
    for step in steps:  # nobody waits for what comes later
        assert set(step.input_map.values()) <= known
        known |= set(step.output_map.values())


def test_every_step_is_wired_to_its_whole_model(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    *_, configs = made
    for step in configs["rank"].ensemble_scheduling.step:
        model = configs[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        assert set(step.output_map) == {tensor.name for tensor in model.output}


def test_both_ends_of_a_wire_agree_on_type_and_shape(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    _, tensors, configs = made
    rank = configs["rank"]
    wires = {tensor.name: signature(tensor, False) for tensor in rank.input}
    optional = {tensor.name for tensor in rank.input if tensor.optional}
    assert optional == {"query", "history", "items", "item_ids", "top_k", "max_item_tokens", "truncate_left", "strict"}
    for step in rank.ensemble_scheduling.step:
        model = configs[step.model_name]
        # A joint ranker's rows are the batch. A shared-context request is a batch of one, whose dimension Triton's
        # ensembles add before the scorer and take away behind it.
        batched = model.max_batch_size > 0 and tensors != SHARED
        for tensor in model.input:
            assert signature(tensor, batched) == wires[step.input_map[tensor.name]], (step.model_name, tensor.name)
            # Deadline and ticket come with every request of the ensemble; warm-up does without.
            assert tensor.optional == (step.input_map[tensor.name] in optional | {*ADMISSION_TENSORS})
        wires |= {step.output_map[tensor.name]: signature(tensor, batched) for tensor in model.output}
    for tensor in rank.output:
        assert signature(tensor, False) == wires[tensor.name]


def test_what_clients_see_does_not_depend_on_the_model() -> None:
    small = step_configs(SETTINGS["small"], ROBERTA, cores=1)
    large = step_configs(SETTINGS["wide batches"], BERT, cores=8)
    assert small["rank"].input == large["rank"].input
    assert small["rank"].output == large["rank"].output
    shapes = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in small["rank"].output}
    assert shapes == {
        "indices": (pb.TYPE_INT32, [-1]),
        "scores": (pb.TYPE_FP32, [-1]),
        "artifact": (pb.TYPE_STRING, [1]),
        "item_tokens": (pb.TYPE_INT32, [-1]),
        "truncated": (pb.TYPE_BOOL, [-1]),
        "context_tokens": (pb.TYPE_INT32, [1]),
        "unknown_tokens": (pb.TYPE_INT32, [2]),
        "unscored": (pb.TYPE_STRING, [-1]),
        "fields": (pb.TYPE_STRING, [1]),
    }


def test_a_shared_context_ranker_has_the_same_face_and_other_tensors_inside() -> None:
    shared, joint = (step_configs(ServeSettings(), tensors, cores=4) for tensors in (SHARED, BERT))
    assert (shared["rank"].input, shared["rank"].output) == (joint["rank"].input, joint["rank"].output)
    assert shared["tokenize"].input == joint["tokenize"].input
    for name in ("rank", "tokenize"):  # a joint ranker's rows run with those of other requests
        assert shared[name].parameters.pop("block_candidates").string_value == "256"
    assert shared["tokenize"].parameters == joint["tokenize"].parameters
    dims = {tensor.name: list(tensor.dims) for tensor in shared["tokenize"].output}
    ours = {"row_of_candidate": [-1], "deadline": [1], "ticket": [1]}
    ours |= {"item_tokens": [-1], "truncated": [-1], "context_tokens": [1], "unknown_tokens": [2]}
    ours |= {"unscored": [-1], "fields": [1]}
    assert dims == {"context_ids": [-1], "candidate_ids": [-1, -1]} | ours
    assert {tensor.name: list(tensor.dims) for tensor in shared["score"].output} == {"logits": [-1]}
    assert {tensor.name: list(tensor.dims) for tensor in joint["score"].output} == {"logits": [1]}
    for config in shared.values():
        assert not any(name in as_text(config) for name in BERT)


def test_a_family_without_segments_has_none_anywhere() -> None:
    for config in step_configs(ServeSettings(), ROBERTA, cores=8).values():
        assert "token_type_ids" not in as_text(config)
    assert "token_type_ids" in as_text(step_configs(ServeSettings(), BERT, cores=8)["score"])


def test_no_queue_policy_stalls_the_batcher(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    *_, configs = made
    for config in configs.values():
        assert not config.dynamic_batching.HasField("default_queue_policy")


def test_the_limits_of_the_queue_reach_the_gate(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    settings, _, configs = made
    parameters = configs["tokenize"].parameters
    assert parameters["queue_requests"].string_value == str(settings.queue_requests)
    assert parameters["deadline_us"].string_value == str(settings.deadline_ms * 1_000)
    assert parameters["queue_delay_us"].string_value == "0"
    scorer = configs["score"].parameters
    for shared in ("queue", "deadline_us"):  # or the gate would not see the scorer, and direct calls could last longer
        assert scorer[shared] == parameters[shared]


@pytest.mark.parametrize(
    ("tensors", "longest", "ids", "told"),
    [
        (
            SHARED,
            {"context_ids": 79, "candidate_ids": 25},
            dict.fromkeys(SHARED, 300),
            {"context_row_tokens": "79", "candidate_row_tokens": "25", "vocabulary_size": "300"},
        ),
        (
            BERT,
            dict.fromkeys(BERT, 96),
            {"input_ids": 300, "token_type_ids": 2},
            {"row_tokens": "96", "vocabulary_size": "300", "segments": "2"},
        ),
        (ROBERTA, dict.fromkeys(ROBERTA, 96), {"input_ids": 300}, {"row_tokens": "96", "vocabulary_size": "300"}),
    ],
)
def test_the_scorer_is_told_what_rows_it_may_get(
    tensors: tuple[str, ...], longest: dict[str, int], ids: dict[str, int], told: dict[str, str]
) -> None:
    score = step_configs(ServeSettings(), tensors, cores=4, longest_rows=longest, ids=ids)["score"]
    architecture = architecture_of_inputs(tensors)
    limits = {parameter for one in architecture.inputs for parameter in (one.longest, one.ids)}
    assert {name: score.parameters[name].string_value for name in limits if name in score.parameters} == told
    found = architecture.limits(tensors, {name: parameter.string_value for name, parameter in score.parameters.items()})
    bounded = {one.name for one in architecture.inputs if one.longest}
    assert found.tokens == {name: limit for name, limit in longest.items() if name in bounded}
    assert set(found.ids) == set(tensors) - {"attention_mask"}


def test_the_scorer_batches_ragged_requests(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    settings, tensors, configs = made
    score = configs["score"]
    assert score.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert [tensor.name for tensor in score.input] == [*tensors, *ADMISSION_TENSORS]
    assert all(tensor.allow_ragged_batch for tensor in score.input if tensor.name not in ADMISSION_TENSORS)
    if tensors == SHARED:  # one after the other, so that the first is not kept for the second
        assert score.max_batch_size == 1
    else:
        # A request may have this many rows, and a run this many: neither may be refused for its batch dimension.
        assert score.max_batch_size >= settings.max_candidates
        assert score.max_batch_size >= settings.rows_per_batch
    assert score.dynamic_batching.max_queue_delay_microseconds == 0


def test_the_other_models_take_requests_one_by_one(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    *_, configs = made
    for name in ("rank", "tokenize", "select"):
        assert configs[name].max_batch_size == 0


@pytest.mark.parametrize(
    ("instances", "cores", "count"),
    [("auto", 1, 2), ("auto", 3, 2), ("auto", 8, 2), ("auto", 12, 3), ("auto", 64, 16), (1, 64, 1), (5, 2, 5)],
)
def test_instances_follow_the_cores_unless_told(instances: str | int, cores: int, count: int) -> None:
    settings = ServeSettings.model_validate({"instances": instances})
    assert score_instances(settings, cores) == count
    group = step_configs(settings, BERT, cores)["score"].instance_group
    assert [(each.kind, each.count) for each in group] == [(pb.ModelInstanceGroup.KIND_CPU, count)]


def test_everything_runs_on_the_cpu(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    *_, configs = made
    for name in ("tokenize", "score", "select"):
        assert configs[name].backend == "python"
        assert [group.kind for group in configs[name].instance_group] == [pb.ModelInstanceGroup.KIND_CPU]


@pytest.mark.parametrize("name", ["tokenize", "score", "select"])
def test_models_find_the_parameters_they_read(name: str) -> None:
    source = (ROOT / "model_repository" / name / "1" / "model.py").read_text()
    if name == "tokenize":  # the limits of texts are read by their names
        source += " ".join(f'"{limit}"' for limit in RequestLimits.__dataclass_fields__)
    else:  # those of the engine alike
        source += " ".join(f'"{parameter}"' for parameter in ENGINE_PARAMETERS)
    written: dict[str, str] = {}
    padding = {"candidate_buckets", "token_buckets"}  # of targets for GPUs: tests/test_gpu_config.py
    for tensors in (BERT, SHARED):
        parameters = step_configs(SETTINGS["small"], tensors, cores=8)[name].parameters
        assert set(re.findall(r'settings\["(\w+)"\]', source)) - padding <= set(parameters)  # none is missing
        written |= {key: parameter.string_value for key, parameter in parameters.items()}
    assert set(written) <= set(re.findall(r'"(\w+)"', source))  # none is for show
    assert set(re.findall(r'settings\.get\("(\w+)"', source)) - padding <= set(
        written
    )  # nor is a default all there ever is
    derived = {
        "block_candidates": BLOCK_CANDIDATES,
        "queue": "rank",
        "max_history": MOST_HISTORY,
        "max_text_bytes": MOST_TEXT_BYTES,
        "item_cache_entries": ITEM_CACHE_ENTRIES,
        "queue_delay_us": 0,
        "deadline_us": SETTINGS["small"].deadline_ms * 1_000,
        "context_cache_bytes": SETTINGS["small"].context_cache_mb * 1_000_000,
    }
    for key, value in written.items():
        expected = derived[key] if key in derived else getattr(SETTINGS["small"], key)
        assert type(expected)(value) == expected


def test_warm_up_uses_rows_that_have_tokens(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    """A mask of zeros leaves nothing to run: no memory is touched, and a graph may fail on it."""
    settings, tensors, configs = made
    samples = configs["score"].model_warmup
    assert len(samples) > 0
    assert len({sample.name for sample in samples}) == len(samples)
    for sample in samples:
        assert set(sample.inputs) == set(tensors)
        if tensors == SHARED:  # zeros are a token, and -1 would be padding
            assert all(tensor.zero_data for tensor in sample.inputs.values())
            assert all(size > 0 for tensor in sample.inputs.values() for size in tensor.dims)
            assert [len(sample.inputs[name].dims) for name in SHARED] == [1, 2]
            assert sample.inputs["candidate_ids"].dims[0] <= settings.max_candidates, "more are refused"
            continue
        assert len({tuple(tensor.dims) for tensor in sample.inputs.values()}) == 1
        mask = sample.inputs["attention_mask"]
        assert mask.WhichOneof("input_data_type") == "input_data_file"
        assert mask.input_data_file.endswith(f"_{mask.dims[0]}")


@pytest.mark.parametrize(
    ("tensors", "longest"), [(SHARED, {"context_ids": 21, "candidate_ids": 9}), (BERT, {}), (ROBERTA, {})]
)
def test_warm_up_keeps_to_the_positions_that_a_pruned_ranker_has(
    tensors: tuple[str, ...], longest: dict[str, int]
) -> None:
    rows = longest or dict.fromkeys(tensors, 40)
    samples = step_configs(ServeSettings(max_candidates=5), tensors, cores=4, longest_rows=rows)["score"].model_warmup
    assert len({sample.name for sample in samples}) == len(samples) > 1
    for name, most in rows.items():
        assert max(sample.inputs[name].dims[-1] for sample in samples) == most


def test_warm_up_batches_are_batches_that_may_come(made: tuple[ServeSettings, tuple[str, ...], Configs]) -> None:
    *_, configs = made
    assert all(0 < sample.batch_size <= configs["score"].max_batch_size for sample in configs["score"].model_warmup)


@pytest.mark.parametrize("tensors", [BERT, SHARED], ids=["joint", "shared-context"])
def test_batching_and_threads_are_as_told(tensors: tuple[str, ...]) -> None:
    plain = step_configs(ServeSettings(), tensors, cores=4)["score"]
    assert "threads" not in plain.parameters
    told = step_configs(ServeSettings(threads=2), tensors, cores=4)["score"]
    assert told.parameters["threads"].string_value == "2"
