"""How the ranker is served."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, model_validator

from tritonrank.artifacts.workspace import Target
from tritonrank.recipe.applicability import SPLIT, Used, for_target
from tritonrank.recipe.base import Settings

OWN_SCORER = (Target.CPU,)
"""The target whose scorer is our Python backend; the others' are Triton's own backends."""


def _with_targets(schema: dict[str, Any]) -> None:
    for target in Target:
        schema["properties"][str(target)] = {"type": "object", "description": f"settings of serve for target {target}"}


class ServeSettings(Settings):
    """What all targets have in common; a section ``serve.<target>`` holds what is different for one of them."""

    model_config = ConfigDict(json_schema_extra=_with_targets)

    max_candidates: int = Field(1_000, ge=1, le=1_000, description="candidates in one request")
    deadline_ms: int = Field(2_000, ge=10, description="longest that a request may take; it may ask for less")
    queue_share: Annotated[
        float, Used("Triton's own policy bounds its queue, by serve.queue_requests and serve.deadline_ms", OWN_SCORER)
    ] = Field(
        0.75,
        ge=0,
        le=1,
        description="share of its deadline that a request may have to wait for the scorer, estimated from the tokens "
        "before it and the scorer's measured speed; beyond it is rejected at once. 0 looks at queue_requests only",
    )
    queue_requests: int = Field(
        64, ge=1, description="requests that may wait for the scorer, however small; more are rejected"
    )
    rows_per_batch: Annotated[
        int,
        Used(
            "it spreads a joint ranker's rows over the cores of a CPU",
            OWN_SCORER,
            architecture="joint",
            device="cpu",
        ),
    ] = Field(16, ge=1, le=1024, description="rows in one run of a joint ranker; runs go side by side, one core each")
    context_cache_mb: Annotated[
        int,
        Used("only our own scorer keeps them, of rankers whose candidates share them", OWN_SCORER, SPLIT),
    ] = Field(
        256,
        ge=0,
        description="megabytes of keys and values of returning users' contexts that each scorer keeps, 18 kB per token "
        "with MiniLM-L6; a hit saves half of a 10-candidate request and a fifth of a 100-candidate one; 0 = none",
    )
    context_cache_dtype: Annotated[
        Literal["float32", "float16", "int8"],
        Used(
            "only our own scorer keeps keys and values of contexts, and on a GPU as they are computed",
            OWN_SCORER,
            SPLIT,
            device="cpu",
            idle="float32",
        ),
    ] = Field(
        "float32",
        description="number format of the kept keys and values: float16 halves their bytes, int8 takes a quarter and "
        "changes scores; whether kept or just computed, a context gives the same scores",
    )
    instances: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Used("all GPUs together are one instance", (Target.CPU, Target.ONNXRUNTIME, Target.TENSORRT), idle=1),
    ] = Field(
        "auto",
        description="copies of the scorer; auto: one per 4 cores, at least 2, so that a large request leaves "
        "one free. Busy ones share out the cores. With tensor_parallel one per so many cores. On GPUs two on each",
    )
    threads: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Used("a GPU does not share out cores", OWN_SCORER, device="cpu"),
    ] = Field(
        "auto",
        description="cores that one copy of the scorer uses at once; auto: all, divided by the copies that are busy",
    )
    executor: Annotated[
        Literal["auto", "native", "onnxruntime", "torch"], Used("the target itself says what computes", OWN_SCORER)
    ] = Field(
        "auto",
        description="what computes in the Python backend (target cpu): onnxruntime runs the graphs; native is our "
        "engine in C++ for CPUs; auto takes the faster of the two, measured on the machine that builds, if the gate "
        "lets it stand (on cuda onnxruntime). torch runs the checkpoint itself, for GPU machines that have PyTorch and "
        "nothing else: FP16 on cuda, FP32 on cpu",
    )
    device: Annotated[Literal["cpu", "cuda"], Used("the target itself says where", OWN_SCORER)] = Field(
        "cpu",
        description="where the executor computes. On cuda onnxruntime needs onnxruntime-gpu and serves FP16 where "
        "tensorrt.precisions has fp16, else FP32: INT8 as CPUs take it is slow there",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_one_target(cls, values: Any, info: ValidationInfo) -> Any:
        target = (info.context or {}).get("target", Target.CPU)
        return for_target(values, target) if isinstance(values, dict) else values
