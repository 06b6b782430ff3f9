"""The gate, and the graphs that it judges: ONNX, INT8, TensorRT."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tritonrank.recipe.applicability import SPLIT, Used
from tritonrank.recipe.base import Settings


class GateSettings(Settings):
    """When a step may stand; see docs/gate.md."""

    budget: float = Field(
        0.01, gt=0, lt=1, description="relative drop of NDCG@10, against the teacher, that all steps together may cost"
    )
    prune_budget: float = Field(
        0.7,
        gt=0,
        le=1,
        description="for prune, which distill repairs (a ranking by chance would cost about 0.8); without "
        "a distill section `budget` counts",
    )
    distill_budget: float | None = Field(None, gt=0, lt=1, description="against the pruned ranker; default: `budget`")
    quantize_budget: float | None = Field(None, gt=0, lt=1, description="against the FP32 graph; default: `budget`")
    training: Literal["warn", "stop", "ignore"] = Field(
        "warn",
        description="when popularity, item kNN or zero-shot cosine ranks better than the ranker beyond doubt: warn "
        "ends the build with exit code 3, stop ends it after fine-tuning with 1, ignore only says so",
    )


class QuantizeSettings(Settings):
    method: Literal["static-int8", "int8-weights", "int4-weights", "none"] = Field(
        "static-int8",
        description="static-int8: u8s8 Q/DQ for CPUs, one scale per tensor, fixed at calibration (decoders: one per "
        "row); int8-weights, int4-weights: weights alone, a scale per 32 of them, activations rounded as they come: "
        "less noise where a decoder's activations have outliers, twice the time of static-int8 with VNNI "
        "(docs/decoders.md)",
    )
    calibration_examples: int = Field(
        96, ge=8, description="training requests, true padding; a quarter of them measures the noise of the result"
    )
    embeddings: bool = Field(
        False,
        description="word embeddings in eight bits too, a scale per token: a quarter of their bytes. Rounded after "
        "quantize.noise was measured; two gates closed on it",
    )
    noise: float = Field(
        0.03,
        gt=0,
        description="largest change of the logits (root mean square over their spread) on calibration requests; the "
        "linear layers that disturb most stay in FP32 until it holds. On MovieLens 0.06 cost 3% of NDCG, 0.0225 0.9%",
    )
    exclude: list[str] = Field([], description="regular expressions of MatMul node names kept in FP32 in any case")

    @field_validator("exclude")
    @classmethod
    def _are_regular_expressions(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns


class TensorRTSettings(Settings):
    """Graphs and plans for TensorRT; see docs/tensorrt.md. Without precisions nothing of this is made."""

    precisions: list[Literal["fp32", "fp16", "int8", "int8-fp16"]] = Field(
        [], description="what `compile` builds plans of; fp16 suits most GPUs, int8-fp16 has to prove that it is faster"
    )
    noise: float = Field(
        0.03, gt=0, description="like quantize.noise, for INT8 as TensorRT takes it: symmetric, signed activations"
    )
    half_noise: float = Field(
        0.01,
        gt=0,
        description="largest change of the logits by FP16, as quantize.noise; kinds of operators go back to FP32 until "
        "it holds",
    )
    requests: Annotated[
        int, Used("the rows of a joint ranker's plan are those of candidate_buckets", architecture=SPLIT)
    ] = Field(
        4,
        ge=1,
        le=64,
        description="padded requests in one run of a shared-context plan, whatever their bucket: an instance has "
        "memory for so many of the largest",
    )
    candidate_buckets: list[int] = Field(
        [16, 128, 1_000],
        min_length=1,
        description="candidates to pad to, ascending; one optimization profile each; the last holds "
        "serve.max_candidates",
    )
    token_buckets: list[int] = Field(
        [],
        description="tokens of a candidate (joint: of a row) to pad to, ascending; the longest that the text settings "
        "allow is always one",
    )
    version_compatible: bool = Field(
        False, description="plans that later TensorRT versions load, at some cost in speed; the server has to allow it"
    )
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = Field(
        "none", description="GPUs beside the one that built a plan; costs speed"
    )

    @field_validator("candidate_buckets", "token_buckets")
    @classmethod
    def _ascends(cls, buckets: list[int]) -> list[int]:
        if any(bucket < 1 for bucket in buckets) or buckets != sorted(set(buckets)):
            raise ValueError("expected numbers above 0 in ascending order")
        return buckets
