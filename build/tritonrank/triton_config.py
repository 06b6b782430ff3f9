"""The config.pbtxt files of the ensemble, written through Triton's own protobuf.

    rank      = tokenize -> score -> select
    tokenize    texts -> rows of token ids
    score       rows -> logits; the dynamic batcher merges the rows of concurrent requests
    select      logits -> ranking

Nothing is left to auto-completion, and the text depends on the recipe and the number of cores alone, so that the copy
in git can be compared. There is no queue policy, because any of them makes the batcher stall: ``admission.py`` bounds
the scorer's queue and keeps deadlines.
"""

from collections.abc import Sequence

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tritonrank.recipe import ServeSettings

CORES_PER_INSTANCE = 4
"""A scorer's matrix products keep about four cores busy; beyond that copies side by side do more."""
WARMUP_SHAPES = ((1, 16), (16, 64), (64, 96))
"""(rows, tokens) that each scorer runs before it reports ready, so that memory is allocated and pages are touched."""


def model_configs(settings: ServeSettings, row_tensors: Sequence[str], cores: int) -> dict[str, pb.ModelConfig]:
    """All models of the repository by name.

    Args:
        settings: the recipe's serve section.
        row_tensors: input names of the engine, such as input_ids and attention_mask.
        cores: what ``instances: auto`` is divided by.
    """
    return {
        "rank": _rank(row_tensors),
        "tokenize": _tokenize(settings, row_tensors),
        "score": _score(settings, row_tensors, cores),
        "select": _select(),
    }


def as_text(config: pb.ModelConfig) -> str:
    return "# Written by `tritonrank assemble` from the recipe; edit the recipe, not this file.\n" + str(
        text_format.MessageToString(config)
    )


def score_instances(settings: ServeSettings, cores: int) -> int:
    return max(1, cores // CORES_PER_INSTANCE) if settings.instances == "auto" else settings.instances


def warmup_mask_file(tokens: int) -> str:
    """Name, in the scorer's warmup folder, of the mask of a row of so many real tokens (raw int32 ones)."""
    return f"attention_mask_{tokens}"


def _rank(row_tensors: Sequence[str]) -> pb.ModelConfig:
    config = pb.ModelConfig(name="rank", platform="ensemble", max_batch_size=0, input=_request_inputs())
    config.output.extend(_outputs())
    steps = config.ensemble_scheduling.step
    request = {tensor.name: tensor.name for tensor in _request_inputs()}
    rows = {name: name for name in row_tensors}
    shared = {"item_ids": "item_ids", "top_k": "top_k", "row_of_candidate": "row_of_candidate"}
    steps.add(
        model_name="tokenize",
        model_version=-1,
        input_map=request,
        output_map=rows | {"row_of_candidate": "row_of_candidate", "deadline": "deadline"},
    )
    score_inputs = rows | {"deadline": "deadline"}
    steps.add(model_name="score", model_version=-1, input_map=score_inputs, output_map={"logits": "logits"})
    steps.add(
        model_name="select",
        model_version=-1,
        input_map=shared | {"logits": "logits"},
        output_map={tensor.name: tensor.name for tensor in _outputs()},
    )
    return config


def _tokenize(settings: ServeSettings, row_tensors: Sequence[str]) -> pb.ModelConfig:
    config = _python_model("tokenize")
    config.input.extend(_request_inputs())
    config.output.extend(pb.ModelOutput(name=name, data_type=pb.TYPE_INT32, dims=[-1, -1]) for name in row_tensors)
    config.output.append(pb.ModelOutput(name="row_of_candidate", data_type=pb.TYPE_INT32, dims=[-1]))
    config.output.append(pb.ModelOutput(name="deadline", data_type=pb.TYPE_INT64, dims=[-1, 1]))
    _set_parameters(
        config,
        max_candidates=settings.max_candidates,
        max_history=settings.max_history,
        max_text_bytes=settings.max_text_bytes,
        item_cache_entries=settings.item_cache_entries,
        queue_requests=settings.queue_requests,
        deadline_us=settings.deadline_ms * 1_000,
    )
    return config


def _score(settings: ServeSettings, row_tensors: Sequence[str], cores: int) -> pb.ModelConfig:
    config = _python_model("score")
    config.max_batch_size = max(settings.max_candidates, settings.rows_per_batch)
    config.instance_group[0].count = score_instances(settings, cores)
    config.dynamic_batching.max_queue_delay_microseconds = settings.queue_delay_us
    for name in row_tensors:
        config.input.add(name=name, data_type=pb.TYPE_INT32, dims=[-1], allow_ragged_batch=True)
    config.input.add(name="deadline", data_type=pb.TYPE_INT64, dims=[1], optional=True)
    config.output.add(name="logits", data_type=pb.TYPE_FP32, dims=[1])
    _set_parameters(config, rows_per_batch=settings.rows_per_batch, threads=0)
    for most_rows, tokens in WARMUP_SHAPES:
        rows = min(most_rows, config.max_batch_size)  # the bundled server dies (SIGSEGV) of a larger warm-up batch
        warmup = config.model_warmup.add(name=f"{rows} rows of {tokens} tokens", batch_size=rows)
        for name in row_tensors:
            tensor = warmup.inputs[name]
            tensor.data_type = pb.TYPE_INT32
            tensor.dims.append(tokens)
            if name == "attention_mask":
                tensor.input_data_file = warmup_mask_file(tokens)
            else:
                tensor.zero_data = True
    return config


def _select() -> pb.ModelConfig:
    config = _python_model("select")
    config.input.add(name="logits", data_type=pb.TYPE_FP32, dims=[-1, 1])
    config.input.add(name="row_of_candidate", data_type=pb.TYPE_INT32, dims=[-1])
    config.input.extend(tensor for tensor in _request_inputs() if tensor.name in {"item_ids", "top_k"})
    config.output.extend(_outputs())
    return config


def _python_model(name: str) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=0)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    return config


def _request_inputs() -> list[pb.ModelInput]:
    return [
        pb.ModelInput(name="query", data_type=pb.TYPE_STRING, dims=[1]),
        pb.ModelInput(name="history", data_type=pb.TYPE_STRING, dims=[-1]),
        pb.ModelInput(name="items", data_type=pb.TYPE_STRING, dims=[-1]),
        pb.ModelInput(name="item_ids", data_type=pb.TYPE_STRING, dims=[-1], optional=True),
        pb.ModelInput(name="top_k", data_type=pb.TYPE_INT32, dims=[1], optional=True),
    ]


def _outputs() -> list[pb.ModelOutput]:
    return [
        pb.ModelOutput(name="indices", data_type=pb.TYPE_INT32, dims=[-1]),
        pb.ModelOutput(name="scores", data_type=pb.TYPE_FP32, dims=[-1]),
        pb.ModelOutput(name="artifact", data_type=pb.TYPE_STRING, dims=[1]),
    ]


def _set_parameters(config: pb.ModelConfig, **values: int) -> None:
    for name, value in values.items():
        config.parameters[name].string_value = str(value)
