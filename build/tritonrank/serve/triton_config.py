"""The config.pbtxt files of the ensemble, written through Triton's own protobuf.

Where a process of ours computes, it does all of it:

    rank      = ranker
    ranker      texts -> ranking; tokenizes one request while lanes of it compute others (docs/log.md says why)

Where Triton's own backends compute, or a scorer is several processes, each step is a model:

    rank      = tokenize -> score -> select
    tokenize    texts -> token ids
    score       token ids -> logits; the dynamic batcher hands over concurrent requests together
    select      logits -> ranking

The scorer's batch dimension is the request or a row of one, as the ranker's architecture says.

Nothing is left to auto-completion, and the text depends on the recipe and the number of cores alone, so that the copy
in git can be compared. There is no queue policy, because any of them makes the batcher stall: ``admission.py`` bounds
the scorer's queue and keeps deadlines.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank_runtime.engines import TORCH

from tritonrank.rankers.architecture import Warmup
from tritonrank.rankers.architectures import architecture_of_inputs
from tritonrank.rankers.serving import QUEUE_DELAY_US, AnyServing
from tritonrank.serve.model_names import ENSEMBLE

CORES_PER_LANE = 4
FEWEST_LANES = 2
"""With one, every small request waits for the large one before it: its p99 beside 1,000-candidate requests was 21 times
the unloaded one, with two twice (measured; docs/log.md). They share out the cores: one alone takes all."""
RANKER = "ranker"
"""The model that does every step."""
BATCH_TOKENS = {"cpu": 16_384, "cuda": 65_536}
"""Tokens of the requests that wait which are computed together at the most, by device: enough for the largest runs."""
MOST_HISTORY = 1_000
"""History items accepted in one request; ``text.history_items`` of them are read."""
MOST_TEXT_BYTES = 65_536
"""Of one query, history item or candidate: hundreds of times what the token budgets keep of it."""
ITEM_CACHE_ENTRIES = 100_000
"""Item texts whose token ids the server remembers; ``text.py`` bounds their tokens, too."""
BLOCK_PARAMETER = "block_candidates"
"""Of ``rank`` and ``tokenize``; see ``tritonrank_runtime/candidate_rows.py``."""
HISTORY_PARAMETER = "history_items"
"""Of ``rank`` and ``recommend``: newest items of a history that the ranker reads."""
ADMISSION_TENSORS = ("deadline", "ticket")
"""What ``tokenize`` tells the scorer of an admitted request (``admission.py``)."""


def model_configs(
    settings: AnyServing,
    engine_inputs: Sequence[str],
    cores: int,
    ranks: int = 1,
    longest_rows: Mapping[str, int] | None = None,
    ids: Mapping[str, int] | None = None,
    told: Mapping[str, str] | None = None,
    in_one: bool | None = None,
) -> dict[str, pb.ModelConfig]:
    """All models of the repository by name.

    Args:
        settings: the recipe's serve section.
        engine_inputs: what the engine takes: context_ids and candidate_ids, or a joint ranker's input_ids and so on.
        cores: what ``instances: auto`` is divided by.
        ranks: processes of one instance of the scorer (tensor_parallel).
        longest_rows: tokens in a row of each of ``engine_inputs`` at the most, which the warm-up must not exceed: a
            pruned ranker has positions for no more, and the scorer refuses them.
        ids: how many different ids the tokenizer has for each of ``engine_inputs``; the scorer refuses others.
        told: what clients are told of the model, by parameter (``serve/models.py``).
        in_one: whether one model does every step; by default unless the scorer is several processes.
    """
    if ranks == 1 if in_one is None else in_one:
        return {
            ENSEMBLE: _rank(settings, engine_inputs, told or {}, [_whole_step()]),
            RANKER: _ranker(settings, engine_inputs, cores),
        }
    longest = longest_rows or dict.fromkeys(engine_inputs, sys.maxsize)
    return {
        ENSEMBLE: _rank(settings, engine_inputs, told or {}, _steps(engine_inputs)),
        "tokenize": _tokenize(settings, engine_inputs),
        "score": _score(settings, engine_inputs, score_instances(settings, cores, ranks), ranks, longest, ids or {}),
        "select": _select(engine_inputs),
    }


def as_text(config: pb.ModelConfig) -> str:
    return "# Written by `tritonrank assemble` from the recipe; edit the recipe, not this file.\n" + str(
        text_format.MessageToString(config)
    )


def lanes(settings: AnyServing, cores: int) -> int:
    """Requests that ``ranker`` computes side by side, each as a thread of its one process."""
    if settings.instances != "auto":
        return settings.instances
    if settings.device == "cuda":  # one launch after the other, of as many requests as wait
        return 1
    return max(FEWEST_LANES, cores // CORES_PER_LANE)


def score_instances(settings: AnyServing, cores: int, ranks: int = 1) -> int:
    """Instances of a scorer that is apart from the tokenizer; each is so many processes of one thread each."""
    if ranks > 1 and settings.instances == "auto":
        return max(1, cores // ranks) if settings.device == "cpu" else 1
    return lanes(settings, cores)


def warmup_mask_file(tokens: int) -> str:
    """Name, in the scorer's warmup folder, of the mask of a row of so many real tokens (raw int32 ones)."""
    return f"attention_mask_{tokens}"


def _rank(
    settings: AnyServing,
    engine_inputs: Sequence[str],
    told: Mapping[str, str],
    steps: Iterable[pb.ModelEnsembling.Step],
) -> pb.ModelConfig:
    config = pb.ModelConfig(name=ENSEMBLE, platform="ensemble", max_batch_size=0, input=_request_inputs())
    config.output.extend([*_outputs(), *_told_outputs()])
    config.ensemble_scheduling.step.extend(steps)
    # Triton reads none of these: they are for clients, who get them with the model's configuration.
    set_parameters(
        config,
        **told,
        max_candidates=settings.max_candidates,
        max_text_bytes=MOST_TEXT_BYTES,
        deadline_ms=settings.deadline_ms,
        **_blocks(settings, engine_inputs),
    )
    return config


def _whole_step() -> pb.ModelEnsembling.Step:
    return pb.ModelEnsembling.Step(
        model_name=RANKER,
        model_version=-1,
        input_map={tensor.name: tensor.name for tensor in _request_inputs()},
        output_map={tensor.name: tensor.name for tensor in (*_outputs(), *_told_outputs())},
    )


def _steps(engine_inputs: Sequence[str]) -> list[pb.ModelEnsembling.Step]:
    request = {tensor.name: tensor.name for tensor in _request_inputs()}
    rows = {name: name for name in engine_inputs}
    admission = {name: name for name in ADMISSION_TENSORS}
    shared = {"item_ids": "item_ids", "top_k": "top_k", "row_of_candidate": "row_of_candidate"}
    told = {tensor.name: tensor.name for tensor in _told_outputs()}
    outputs = {tensor.name: tensor.name for tensor in _outputs()}
    of_rows, logits = {"row_of_candidate": "row_of_candidate"}, {"logits": "logits"}
    return [
        pb.ModelEnsembling.Step(model_name=name, model_version=-1, input_map=inputs, output_map=made)
        for name, inputs, made in (
            ("tokenize", request, rows | of_rows | admission | told),
            ("score", rows | admission, logits),
            ("select", shared | logits, outputs),
        )
    ]


def _ranker(settings: AnyServing, engine_inputs: Sequence[str], cores: int) -> pb.ModelConfig:
    config = _python_model(RANKER)
    config.input.extend(_request_inputs())
    config.output.extend([*_outputs(), *_told_outputs()])
    architecture = architecture_of_inputs(engine_inputs)
    is_gpu = settings.device == "cuda"
    if is_gpu:
        config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_GPU  # one process on each GPU
    # Requests of a shared-context ranker are computed one after the other on a CPU: more would only delay the first.
    takes_one = architecture.served.batch_is_request and not is_gpu
    set_parameters(config, **architecture.score_parameters(settings))
    set_parameters(
        config,
        **_text_limits(settings, engine_inputs),
        **_queue(settings),
        lanes=lanes(settings, cores),
        batch_tokens=0 if takes_one else BATCH_TOKENS[settings.device],
    )
    _set_executor(config, settings)
    return config


def _tokenize(settings: AnyServing, engine_inputs: Sequence[str]) -> pb.ModelConfig:
    config = _python_model("tokenize")
    config.input.extend(_request_inputs())
    batch = _batch_dims(engine_inputs)
    for name, dims in _entry_dims(engine_inputs).items():
        config.output.add(name=name, data_type=pb.TYPE_INT32, dims=[*batch, *dims])
    config.output.append(pb.ModelOutput(name="row_of_candidate", data_type=pb.TYPE_INT32, dims=[-1]))
    for name in ADMISSION_TENSORS:
        config.output.append(pb.ModelOutput(name=name, data_type=pb.TYPE_INT64, dims=[*batch, 1]))
    config.output.extend(_told_outputs())
    set_parameters(
        config,
        **_text_limits(settings, engine_inputs),
        **_queue(settings),
        queue=ENSEMBLE,
        queue_delay_us=QUEUE_DELAY_US,
    )
    return config


def _text_limits(settings: AnyServing, engine_inputs: Sequence[str]) -> dict[str, int]:
    """What a request may be, and what is remembered of its texts."""
    return {
        "max_candidates": settings.max_candidates,
        "max_history": MOST_HISTORY,
        "max_text_bytes": MOST_TEXT_BYTES,
        "item_cache_entries": ITEM_CACHE_ENTRIES,
        **_blocks(settings, engine_inputs),
    }


def _queue(settings: AnyServing) -> dict[str, float]:
    return {
        "queue_requests": settings.queue_requests,
        "queue_share": settings.queue_share,
        "deadline_us": settings.deadline_ms * 1_000,
    }


def _blocks(settings: AnyServing, engine_inputs: Sequence[str]) -> dict[str, int]:
    """The parameter that says where a request may be cut without another bit in its scores. On a GPU a run costs more
    to start, and its kernels depend on its size."""
    block = architecture_of_inputs(engine_inputs).served.block_candidates
    return {BLOCK_PARAMETER: block} if block and settings.device == "cpu" else {}


def _score(
    settings: AnyServing,
    engine_inputs: Sequence[str],
    instances: int,
    ranks: int,
    longest_rows: Mapping[str, int],
    ids: Mapping[str, int],
) -> pb.ModelConfig:
    config = _python_model("score")
    architecture = architecture_of_inputs(engine_inputs)
    config.max_batch_size = architecture.max_batch_size(settings)
    config.instance_group[0].count = instances
    if settings.device == "cuda" and ranks == 1:  # several ranks take a GPU each by themselves
        config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_GPU  # so many on each GPU; each is told its own
    config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US
    for name, dims in _entry_dims(engine_inputs).items():
        config.input.add(name=name, data_type=pb.TYPE_INT32, dims=dims, allow_ragged_batch=True)
    for name in ADMISSION_TENSORS:
        config.input.add(name=name, data_type=pb.TYPE_INT64, dims=[1], optional=True)
    config.output.add(name="logits", data_type=pb.TYPE_FP32, dims=logits_dims(engine_inputs))
    set_parameters(config, **architecture.score_parameters(settings))
    set_parameters(config, queue=ENSEMBLE, deadline_us=settings.deadline_ms * 1_000)
    for one in architecture.served.inputs:
        for parameter, limits in ((one.longest, longest_rows), (one.ids, ids)):
            if parameter and limits.get(one.name, sys.maxsize) < sys.maxsize:
                set_parameters(config, **{parameter: limits[one.name]})
    _set_executor(config, settings)
    for warmup in architecture.warmups(settings, longest_rows):
        add_warmup(config, warmup)
    return config


def _set_executor(config: pb.ModelConfig, settings: AnyServing) -> None:
    if settings.threads != "auto":
        set_parameters(config, threads=settings.threads)
    if settings.executor == TORCH:  # the native engine is named by who adds its weights (``models.py``)
        config.parameters["executor"].string_value = settings.executor


def add_warmup(config: pb.ModelConfig, warmup: Warmup) -> None:
    """Zeros, which every ranker takes for ids; what has to hold ones lies in a file (``write_warmup_masks``)."""
    added = config.model_warmup.add(name=warmup.what, batch_size=warmup.batch_size)
    examples = {one.name: one.example for one in architecture_of_inputs(warmup.shapes).served.inputs}
    for name, shape in warmup.shapes.items():
        tensor = added.inputs[name]
        tensor.data_type = pb.TYPE_INT32
        tensor.dims.extend(shape)
        if examples[name]:
            tensor.input_data_file = warmup_mask_file(*shape)
        else:
            tensor.zero_data = True


def _select(engine_inputs: Sequence[str]) -> pb.ModelConfig:
    config = _python_model("select")
    dims = [*_batch_dims(engine_inputs), *logits_dims(engine_inputs)]
    config.input.add(name="logits", data_type=pb.TYPE_FP32, dims=dims)
    config.input.add(name="row_of_candidate", data_type=pb.TYPE_INT32, dims=[-1])
    config.input.extend(tensor for tensor in _request_inputs() if tensor.name in {"item_ids", "top_k"})
    config.output.extend(_outputs())
    return config


def _batch_dims(engine_inputs: Sequence[str]) -> list[int]:
    """What a request's tensors have before the dimensions of an entry of the scorer's batch: a number of entries, or
    nothing where the request is the entry."""
    return [] if architecture_of_inputs(engine_inputs).served.batch_is_request else [-1]


def _entry_dims(engine_inputs: Sequence[str]) -> dict[str, list[int]]:
    """The dimensions of one entry of the scorer's batch."""
    known = {one.name: one for one in architecture_of_inputs(engine_inputs).served.inputs}
    return {name: [-1] * known[name].axes for name in engine_inputs}


def logits_dims(engine_inputs: Iterable[str]) -> list[int]:
    """The dimensions of the logits of one entry of the scorer's batch: all of a request, or one of a row."""
    return [-1] if architecture_of_inputs(engine_inputs).served.batch_is_request else [1]


def _python_model(name: str) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=0)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    return config


def _request_inputs() -> list[pb.ModelInput]:
    """What a request may hold. It has to hold items; to Triton they are optional too, because ``tokenize`` says what is
    missing, and an ensemble whose first step never runs speaks of a deadlock."""
    return [
        pb.ModelInput(name="query", data_type=pb.TYPE_STRING, dims=[1], optional=True),
        pb.ModelInput(name="history", data_type=pb.TYPE_STRING, dims=[-1], optional=True),
        pb.ModelInput(name="items", data_type=pb.TYPE_STRING, dims=[-1], optional=True),
        pb.ModelInput(name="item_ids", data_type=pb.TYPE_STRING, dims=[-1], optional=True),
        pb.ModelInput(name="top_k", data_type=pb.TYPE_INT32, dims=[1], optional=True),
        pb.ModelInput(name="max_item_tokens", data_type=pb.TYPE_INT32, dims=[1], optional=True),
        pb.ModelInput(name="truncate_left", data_type=pb.TYPE_BOOL, dims=[1], optional=True),
        pb.ModelInput(name="strict", data_type=pb.TYPE_BOOL, dims=[1], optional=True),
    ]


def _outputs() -> list[pb.ModelOutput]:
    return [
        pb.ModelOutput(name="indices", data_type=pb.TYPE_INT32, dims=[-1]),
        pb.ModelOutput(name="scores", data_type=pb.TYPE_FP32, dims=[-1]),
        pb.ModelOutput(name="artifact", data_type=pb.TYPE_STRING, dims=[1]),
    ]


def _told_outputs() -> list[pb.ModelOutput]:
    """What ``tokenize`` tells callers who ask: tokens of each item and whether it was cut, tokens of the context, how
    many of the context and of the items the vocabulary does not have, why an item could not be scored ("" where it
    was), and as JSON which fields do not fit the template."""
    return [
        pb.ModelOutput(name="item_tokens", data_type=pb.TYPE_INT32, dims=[-1]),
        pb.ModelOutput(name="truncated", data_type=pb.TYPE_BOOL, dims=[-1]),
        pb.ModelOutput(name="context_tokens", data_type=pb.TYPE_INT32, dims=[1]),
        pb.ModelOutput(name="unknown_tokens", data_type=pb.TYPE_INT32, dims=[2]),
        pb.ModelOutput(name="unscored", data_type=pb.TYPE_STRING, dims=[-1]),
        pb.ModelOutput(name="fields", data_type=pb.TYPE_STRING, dims=[1]),
    ]


def set_parameters(config: pb.ModelConfig, **values: float | str) -> None:
    for name, value in values.items():
        config.parameters[name].string_value = str(value)
