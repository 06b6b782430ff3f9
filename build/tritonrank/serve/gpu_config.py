"""The config.pbtxt files of the targets for GPUs: the ensemble of every target around another ``score``.

    onnxruntime   one ONNX graph, by Triton's ONNX Runtime backend and its CUDA execution provider
    tensorrt      a plan with an optimization profile per bucket, CUDA graphs of the shapes that come
    tensorrt-tp   a plan per GPU, all of them one instance (KIND_MODEL): one profile, no CUDA graphs

Triton puts requests of equal shapes into one execution, and no others. So for the first two ``tokenize`` pads requests
to buckets, and each bucket has a profile, a warm-up and CUDA graphs of exactly its shape. For tensorrt-tp nothing is
padded: its one profile takes any shape, and a shared-context plan one request at a time.

No process of ours stands behind the queue, so Triton's own policy bounds it and keeps deadlines (REJECT), and
``tokenize`` lets everything through. On the bundled 2.51 such a policy makes the batcher stall (docs/log.md); whether
it does on current containers is not known yet.

Sources: model_config.proto of tritonclient; the READMEs and sources of Triton's tensorrt and onnxruntime backends.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tritonclient.grpc import model_config_pb2 as pb
from tritonrank_runtime.engine import MODEL_FILE

from tritonrank.artifacts.workspace import Target
from tritonrank.errors import RecipeError
from tritonrank.rankers.architecture import Warmup
from tritonrank.rankers.architectures import architecture_of_inputs
from tritonrank.rankers.serving import QUEUE_DELAY_US
from tritonrank.recipe import Recipe, ServeSettings
from tritonrank.serve.triton_config import (
    ADMISSION_TENSORS,
    BLOCK_PARAMETER,
    add_warmup,
    logits_dims,
    model_configs,
    set_parameters,
)
from tritonrank.tensorrt.plans import PLAN_FILE, rebuild_command
from tritonrank.tensorrt.profiles import Profile, Shape, buckets_of

NO_LIMIT = 1_000_000
"""Requests that ``tokenize`` may let through: the scorer's own queue refuses what is too much."""
INSTANCES_PER_GPU = 2
"""With ``serve.instances: auto``: one computes while the tensors of the other's requests are copied, and a large
request keeps no small one waiting. Not measured."""
CORES_PER_TOKENIZER = 2
"""A tokenizer computes on one core; the server, select and what feeds the GPU want the others."""
GRAPH_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Requests for which a CUDA graph is captured: every small number, where launching kernels takes the largest share."""

Shapes = Mapping[str, Shape]
"""By input name, the batch dimension first."""


def gpu_configs(
    recipe: Recipe, target: Target, profiles: Sequence[Profile], cores: int, told: Mapping[str, str] | None = None
) -> dict[str, pb.ModelConfig]:
    """All models of the repository by name.

    Args:
        recipe: its serve section, and on how many GPUs a tensor-parallel plan runs.
        target: any but the CPU.
        profiles: those of the plan; for onnxruntime, which has none, those that a plan would have.
        cores: of the machine that serves; tokenizers get half of them.
        told: what clients are told of the model, by parameter.

    Raises:
        RecipeError: no profile holds as many candidates as the recipe allows.
    """
    check_room(recipe, profiles)
    configs = model_configs(recipe.serve, list(profiles[0]), cores, told=told, in_one=False)
    _drop_deadline(configs["rank"], configs["tokenize"])
    for name in ("tokenize", "select"):  # a scorer on a GPU takes more requests than one copy of them can prepare
        configs[name].instance_group[0].count = max(1, cores // CORES_PER_TOKENIZER)
    for name in ("rank", "tokenize"):  # requests are padded to buckets, or their kernels chosen by size
        configs[name].parameters.pop(BLOCK_PARAMETER, None)
    set_parameters(configs["tokenize"], queue_requests=NO_LIMIT)
    if target is not Target.TENSORRT_TP:
        buckets = buckets_of(profiles)
        set_parameters(
            configs["tokenize"], candidate_buckets=_listed(buckets.candidates), token_buckets=_listed(buckets.tokens)
        )
    configs["score"] = _score(recipe, target, profiles)
    return configs


def check_room(recipe: Recipe, profiles: Sequence[Profile]) -> None:
    """Raise RecipeError unless a profile holds as many candidates as a request may have."""
    largest = buckets_of(profiles).candidates[-1]
    wanted = recipe.serve.max_candidates
    if largest < wanted:
        again = rebuild_command(next(iter(recipe.tensorrt.precisions), None), recipe.tensor_parallel)
        raise RecipeError(
            f"serve.max_candidates is {wanted}, but the largest optimization profile holds {largest}: end "
            f"tensorrt.candidate_buckets at {wanted} or more and compile again ({again}), or set "
            f"serve.max_candidates={largest}"
        )


def _score(recipe: Recipe, target: Target, profiles: Sequence[Profile]) -> pb.ModelConfig:
    most = max(_batch(profile) for profile in profiles)
    config = pb.ModelConfig(name="score", max_batch_size=most)
    for name, one in profiles[0].items():
        config.input.add(name=name, data_type=pb.TYPE_INT32, dims=[-1] * (len(one.best) - 1))
    config.output.add(name="logits", data_type=pb.TYPE_FP32, dims=logits_dims(profiles[0]))
    _bound_queue(config, recipe.serve)
    if target is Target.ONNXRUNTIME:
        _run_onnx(config, recipe.serve)
    elif target is Target.TENSORRT:
        _run_plan(config, recipe.serve, profiles)
    else:
        _run_plans_on_all(config, recipe.tensor_parallel)
    for shapes in _warmups(target, profiles):
        _warm_up(config, shapes)
    return config


def _bound_queue(config: pb.ModelConfig, settings: ServeSettings) -> None:
    """Refuse what does not fit the queue, and what waited until its deadline."""
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = QUEUE_DELAY_US
    policy = batching.default_queue_policy
    policy.max_queue_size = settings.queue_requests
    policy.default_timeout_microseconds = settings.deadline_ms * 1_000
    policy.allow_timeout_override = True  # or the deadline of the request itself would not count
    policy.timeout_action = pb.ModelQueuePolicy.REJECT


def _run_onnx(config: pb.ModelConfig, settings: ServeSettings) -> None:
    config.backend, config.platform, config.default_model_filename = "onnxruntime", "onnxruntime_onnx", MODEL_FILE
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=_instances(settings))
    cuda = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
    # FP32 that the gate has judged stays FP32; TF32 rounds like FP16. Who wants speed names fp16.
    cuda.parameters["use_tf32"] = "0"


def _run_plan(config: pb.ModelConfig, settings: ServeSettings, profiles: Sequence[Profile]) -> None:
    config.backend, config.platform, config.default_model_filename = "tensorrt", "tensorrt_plan", PLAN_FILE
    numbers = map(str, range(len(profiles)))  # without them an instance uses the first profile alone
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=_instances(settings), profile=numbers)
    config.optimization.cuda.graphs = True
    for profile in profiles:
        for shapes in _batches(profile, GRAPH_BATCHES):
            spec = config.optimization.cuda.graph_spec.add(batch_size=_rows(shapes))
            for name, shape in shapes.items():
                spec.input[name].dim.extend(shape[1:])


def _run_plans_on_all(config: pb.ModelConfig, gpus: int) -> None:
    config.backend, config.platform, config.default_model_filename = "tensorrt", "tensorrt_plan", PLAN_FILE
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_MODEL, count=1)
    set_parameters(
        config,
        enable_multi_device="true",
        multi_device_gpus=_listed(range(gpus)),
        multi_device_per_rank_engines="true",
    )


def _warmups(target: Target, profiles: Sequence[Profile]) -> Iterator[Shapes]:
    """Each bucket with one request and with as many as may run together; of one profile for all its ends."""
    for profile in profiles:
        if target is Target.TENSORRT_TP:
            for end in ("smallest", "best", "largest"):
                yield {name: getattr(shapes, end) for name, shapes in profile.items()}
        else:
            yield from _batches(profile, (1,))


def _warm_up(config: pb.ModelConfig, shapes: Shapes) -> None:
    described = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    add_warmup(config, Warmup(described, _rows(shapes), {name: shape[1:] for name, shape in shapes.items()}))


def _batches(profile: Profile, some: Sequence[int]) -> Iterator[Shapes]:
    """Executions of a bucket: so many requests, and the most; where rows are the batch, those of one request."""
    full = {name: shapes.best for name, shapes in profile.items()}
    most = _batch(profile)
    is_request = architecture_of_inputs(profile).served.batch_is_request
    for requests in sorted({*(one for one in some if one < most), most}) if is_request else [most]:
        yield {name: (requests, *shape[1:]) for name, shape in full.items()}


def _batch(profile: Profile) -> int:
    return next(iter(profile.values())).largest[0]


def _rows(shapes: Shapes) -> int:
    return next(iter(shapes.values()))[0]


def _instances(settings: ServeSettings) -> int:
    return INSTANCES_PER_GPU if settings.instances == "auto" else settings.instances


def _drop_deadline(rank: pb.ModelConfig, tokenize: pb.ModelConfig) -> None:
    """The queue policy keeps deadlines, and no backend of Triton's would take such tensors."""
    for step in rank.ensemble_scheduling.step:
        for tensors in (step.input_map, step.output_map):
            for name in ADMISSION_TENSORS:
                if name in tensors:
                    del tensors[name]
    kept = [tensor for tensor in tokenize.output if tensor.name not in ADMISSION_TENSORS]
    del tokenize.output[:]
    tokenize.output.extend(kept)


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
