"""The recipe: one YAML file that says what to build.

Every setting is declared here once, with its default, its unit and the reason for the default. A recipe names
only what it wants different. ``load_recipe`` reports all faults of a file together, each with line and key.
"""

import datetime
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tritonrank.errors import RecipeError
from tritonrank.system.dates import iso_seconds

PACKAGED_MINILM = "packaged:minilm-l6"


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise ValueError(f"{path}: {error}") from None


SourcePath = Annotated[Path, AfterValidator(_expand_home)]
"""A file or folder of the user's; ``~`` is the home folder."""


class SampleData(Settings):
    """A generated storefront: deterministic, no third-party data, no download."""

    source: Literal["sample"] = "sample"
    items: int = Field(400, ge=50, le=20_000, description="items in the catalogue")
    users: int = Field(600, ge=20, le=100_000, description="users with a taste of their own")


class MovieLensData(Settings):
    """A folder with movies.csv, ratings.csv and tags.csv (ml-latest-small and its relatives)."""

    source: Literal["movielens"]
    path: SourcePath = Field(description="the folder; a relative path is relative to the working directory")
    positive_rating: float = Field(4.0, ge=0.5, le=5, description="stars from which a rating is a positive")


class TablesData(Settings):
    """The user's own Parquet or CSV tables. Relative paths begin at the working directory."""

    source: Literal["tables"]
    items: SourcePath = Field(
        description="items table: a .parquet or .csv file, a folder of them, or a pattern such as items-*.parquet"
    )
    events: SourcePath = Field(
        description="events table, in one file or many as items; folders called day=2020-01-01 add a column day"
    )
    item_id: str = Field("item_id", description="column of both tables that identifies an item")
    text_fields: list[str] = Field(min_length=1, description="columns of the items table that the template may use")
    user_id: str = Field("user_id", description="column of the events table")
    timestamp: str = Field("timestamp", description="column of the events table: ISO dates, 20200913, or unix seconds")
    query: str | None = Field(None, description="column of the events table with the search query, if there is one")
    label: str | None = Field(
        None, description="numeric column of the events table; without it all events are positive"
    )
    positive_label: float = Field(1.0, description="label values from here on are positives")


DataSettings = Annotated[SampleData | MovieLensData | TablesData, Field(discriminator="source")]


DEFAULT_BUDGETS = {"query_tokens": 24, "history_items": 8, "history_tokens": 72, "candidate_tokens": 32}
"""What ``auto`` is in the text section of a ranker that is trained here; a ready checkpoint decides for itself."""


class TextSettings(Settings):
    """How a request becomes token ids; shared by training and the server.

    ``auto`` is a number of its own for a ranker that is trained here. With model.checkpoint it comes from that model:
    queries and candidates as long as the data have them, as far as its positions go, and no history, because an
    ordinary cross-encoder never saw one. ``text_budgets.py`` resolves it; `prepare` shows what came out.
    """

    item_template: str = Field("{title}", min_length=1, description="renders an item's fields; {name} is a field")
    query_tokens: Annotated[int, Field(ge=0, le=32_768)] | Literal["auto"] = Field(
        "auto",
        description="tokens; longer queries are cut at the end; auto: 24, with model.checkpoint the longest query "
        "of the data",
    )
    history_items: Annotated[int, Field(ge=0, le=200)] | Literal["auto"] = Field(
        "auto", description="items; the newest are kept; auto: 8, with model.checkpoint none"
    )
    history_tokens: Annotated[int, Field(ge=0, le=32_768)] | Literal["auto"] = Field(
        "auto",
        description="tokens; the oldest item is dropped first; auto: 72, with model.checkpoint what history_items need",
    )
    candidate_tokens: Annotated[int, Field(ge=4, le=32_768)] | Literal["auto"] = Field(
        "auto",
        description="tokens of one item; never cut in favour of history; auto: 32, with model.checkpoint the longest "
        "item of the data, as far as its positions go. What rows cost grows with the texts, not with the budget",
    )

    @field_validator("item_template")
    @classmethod
    def _has_a_field(cls, template: str) -> str:
        if not re.search(r"\{\w+\}", template):
            raise ValueError("must contain at least one field in braces, such as {title}")
        return template

    @property
    def template_fields(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.item_template)


class ExampleSettings(Settings):
    """How events become examples for training and judging."""

    split: Literal["user", "date"] = Field(
        "user", description="per user (last positive = test, second-last = validation) or at one global cut-off"
    )
    cutoff: str | None = Field(None, description="ISO date of the global cut-off; only with split: date")
    training_examples: int = Field(2_400, ge=1, description="examples at the most; one per positive, newest first")
    training_negatives: int = Field(7, ge=1, le=200, description="sampled unseen items per training example")
    judged_negatives: int = Field(99, ge=9, le=999, description="sampled unseen items per judged example")
    validation_users: int = Field(100, ge=1, description="users for early stopping, fixed before training")
    test_users: int = Field(400, ge=1, description="users for the gates and the tables, fixed before training")
    popularity_exponent: float = Field(0.75, ge=0, le=2, description="negatives are drawn by popularity^this")

    @field_validator("cutoff", mode="before")
    @classmethod
    def _cutoff_is_a_date(cls, value: object) -> object:
        if isinstance(value, datetime.date):  # YAML reads an unquoted 2015-06-30 as a date
            return value.isoformat()
        if isinstance(value, int) and not isinstance(value, bool):  # and 20150630 as a number
            value = str(value)
        if isinstance(value, str) and iso_seconds(value) is None:
            raise ValueError("expected an ISO date such as 2015-06-30")
        return value

    @model_validator(mode="after")
    def _cutoff_belongs_to_date(self) -> "ExampleSettings":
        if (self.split == "date") != (self.cutoff is not None):
            raise ValueError("split: date needs a cutoff, and cutoff needs split: date")
        return self


class ModelSettings(Settings):
    architecture: Literal["shared-context", "joint"] = Field(
        "shared-context",
        description="shared-context: the user is encoded once for all candidates, about 8 times cheaper; joint: "
        "context and one candidate in one sequence, the default with model.checkpoint: others are trained that way",
    )
    base: str = Field(
        PACKAGED_MINILM,
        min_length=1,
        description="pretrained encoder to fine-tune: a hub id, a folder, or the packaged MiniLM-L6",
    )
    checkpoint: str | None = Field(
        None,
        min_length=1,
        description="an already fine-tuned ranker (hub id or folder, one label); skips fine-tuning",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="branch, tag or commit of the hub's checkpoint or base; a commit pins it. Without it the main "
        "branch: a build starts anew when that has moved",
    )

    @model_validator(mode="before")
    @classmethod
    def _checkpoints_are_joint(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("checkpoint") and "architecture" not in values:
            return values | {"architecture": "joint"}
        return values

    @property
    def source(self) -> str:
        """What the ranker is made of, and what ``revision`` is a revision of."""
        return self.checkpoint or self.base

    @property
    def untrained(self) -> "ModelSettings":
        """The same with the base alone, as if there were no checkpoint."""
        revision = None if self.checkpoint else self.revision
        return self.model_copy(update={"checkpoint": None, "revision": revision})


class TrainingSettings(Settings):
    """What every training of a ranker has: fine-tuning and distillation."""

    loss: Literal["listwise", "pairwise", "binary"] = Field(
        "listwise", description="softmax cross-entropy over the list, RankNet, or binary cross-entropy"
    )
    distillation: float = Field(0.5, ge=0, le=1, description="share of the loss that the teacher's scores have")
    temperature: float = Field(1.0, gt=0, description="divides the scores of both in the distillation loss")
    epochs: float = Field(1.0, gt=0, description="passes over the training examples")
    examples_per_step: int = Field(8, ge=1, description="examples (lists) per optimizer step and process")
    learning_rate: float = Field(8e-5, gt=0, lt=1, description="peak, after warm-up; 8e-5 suits small encoders")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases and LayerNorm")
    gradient_clip: float = Field(1.0, gt=0, description="largest global gradient norm")
    evaluations: int = Field(4, ge=1, description="how often NDCG@10 is judged on the validation users")
    patience: int = Field(2, ge=1, description="evaluations without a better NDCG@10 before training stops")
    mixed_precision: Literal["auto", "off", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the GPU or CPU computes it natively, else off"
    )


class FinetuneSettings(TrainingSettings):
    teacher: str | None = Field(
        None,
        min_length=1,
        description="folder of a fine-tuned ranker whose scores are learnt beside the labels: distillation",
    )


class PruneSettings(Settings):
    """Without this section nothing is pruned. See docs/prune.md."""

    gflop: float | None = Field(
        None, gt=0, le=1, description="share of the teacher's GFLOP per request; the sizes not named follow from it"
    )
    layers: int | None = Field(None, ge=1, description="layers to keep; default: all, or what gflop leaves")
    heads: int | None = Field(None, ge=1, description="attention heads per layer; default: all, or what gflop leaves")
    ffn_neurons: int | None = Field(
        None, ge=8, description="inner width of the FFN; default: all, or what gflop leaves"
    )
    layer_criterion: Literal["ablation", "influence", "taylor"] = Field(
        "ablation",
        description="ablation: drop the layer without which the loss stays lowest, one after the other; influence: "
        "1 - cosine of its input and output; taylor: |activation x gradient| of what it adds",
    )
    criterion: Literal["taylor", "magnitude"] = Field(
        "taylor", description="for heads and neurons: |activation x gradient| of the ranking loss, or the weights' norm"
    )
    calibration_examples: int = Field(
        64, ge=8, description="training requests on which importance is measured, never judged ones"
    )
    vocabulary: bool = Field(True, description="drop tokens that neither the data nor the reserve needs")
    reserve_tokens: int = Field(
        1_000, ge=0, description="most frequent tokens of the base vocabulary kept in any case, for texts to come"
    )
    positions: bool = Field(True, description="drop position embeddings that the token budgets of `text` never reach")
    compare: bool = Field(
        True, description="also judge what the other criteria would have kept, on the validation users"
    )


class DistillSettings(TrainingSettings):
    """The pruned ranker learns from the unpruned one; needs a prune section."""

    distillation: float = Field(
        0.7, ge=0, le=1, description="share of the loss that the teacher's scores have; the labels have the rest"
    )
    epochs: float = Field(2.0, gt=0, description="passes over the examples; the teacher's scores are computed once")
    learning_rate: float = Field(1e-4, gt=0, lt=1, description="peak, after warm-up; higher than for fine-tuning, "
                                 "because a cut model has further to go")  # fmt: skip
    examples: int = Field(4_000, ge=8, description="training contexts, drawn by seed; all of them if there are fewer")
    pool: int = Field(
        32, ge=2, le=999, description="unseen items per context that the teacher scores, drawn by popularity"
    )
    hard_negatives: int = Field(6, ge=0, description="of the pool, those that the teacher scores highest")
    random_negatives: int = Field(5, ge=0, description="of the rest of the pool, drawn by lot")
    hidden_states: float = Field(
        0.0,
        ge=0,
        description="weight of the hidden-state loss: kept layers imitate their originals; runs the teacher in each "
        "step, which about doubles its time",
    )

    @model_validator(mode="after")
    def _negatives_come_from_the_pool(self) -> "DistillSettings":
        if not 1 <= self.hard_negatives + self.random_negatives <= self.pool:
            raise ValueError("hard_negatives + random_negatives must be at least 1 and at most pool")
        return self


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
    bootstrap_samples: int = Field(2_000, ge=200, description="resamples behind every interval")


class ExportSettings(Settings):
    opset: int = Field(18, ge=17, le=23, description="ONNX operator set; 17 brought LayerNormalization")
    tolerance: float = Field(1e-4, gt=0, lt=0.1, description="largest |logit difference| between PyTorch and ONNX")


class QuantizeSettings(Settings):
    method: Literal["static-int8", "none"] = Field(
        "static-int8", description="u8s8 Q/DQ for CPUs; one scale per tensor, fixed at calibration"
    )
    calibration_examples: int = Field(
        96, ge=8, description="training requests, true padding; a quarter of them measures the noise of the result"
    )
    calibration_candidates: int = Field(8, ge=1, description="candidates taken from each calibration request")
    calibration: Literal["minmax", "percentile", "entropy"] = Field(
        "minmax", description="how activation ranges are chosen"
    )
    reduce_range: Literal["auto", "on", "off"] = Field(
        "auto", description="7-bit weights; auto: on without VNNI, where u8s8 products saturate"
    )
    smooth: bool = Field(
        True, description="SmoothQuant: outliers of activations move into the weights first; halves the noise of INT8"
    )
    rounding: Literal["compensated", "nearest"] = Field(
        "compensated",
        description="compensated: weights are rounded so that their errors cancel (GPTQ), 5 to 15 times less error in "
        "a layer's output for half a minute of work; nearest: each on its own",
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
    compare_dynamic: bool = Field(
        False, description="also judge dynamic INT8; for comparison only: its scores depend on the batch"
    )

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
    calibration: list[Literal["minmax", "percentile", "entropy", "mse"]] = Field(
        ["minmax", "percentile", "entropy", "mse"],
        min_length=1,
        description="methods to choose activation ranges; all are tried, the one with the least noise is taken",
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
    requests: int = Field(
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
    workspace_mb: int = Field(4_096, ge=16, description="megabytes that a kernel may use while it is chosen and run")
    optimization_level: int = Field(3, ge=0, le=5, description="builder effort; 3 is TensorRT's own default")
    version_compatible: bool = Field(
        False, description="plans that later TensorRT versions load, at some cost in speed; the server has to allow it"
    )
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = Field(
        "none", description="GPUs beside the one that built a plan; costs speed"
    )

    rtx_targets: list[Literal["7.5", "8.0", "8.6", "8.9", "12.0"]] = Field(
        ["8.0", "8.9"],
        min_length=1,
        description="compute capabilities that TensorRT-RTX compiles for ahead of time; TensorRT takes the GPU's own",
    )

    @field_validator("candidate_buckets", "token_buckets")
    @classmethod
    def _ascends(cls, buckets: list[int]) -> list[int]:
        if any(bucket < 1 for bucket in buckets) or buckets != sorted(set(buckets)):
            raise ValueError("expected numbers above 0 in ascending order")
        return buckets


class ServeSettings(Settings):
    max_candidates: int = Field(1_000, ge=1, le=1_000, description="candidates in one request")
    max_history: int = Field(1_000, ge=1, le=100_000, description="history items accepted in one request")
    max_text_bytes: int = Field(65_536, ge=256, description="bytes of one query, history item or candidate")
    item_cache_entries: int = Field(100_000, ge=0, description="item texts whose token ids the server remembers")
    deadline_ms: int = Field(2_000, ge=10, description="longest that a request may take; it may ask for less")
    queue_share: float = Field(
        0.75,
        ge=0,
        le=1,
        description="share of its deadline that a request may have to wait for the scorer, estimated from the tokens "
        "before it and the scorer's measured speed; beyond it is rejected at once. 0 looks at queue_requests only",
    )
    queue_requests: int = Field(
        64, ge=1, description="requests that may wait for the scorer, however small; more are rejected"
    )
    requests_per_execution: int = Field(
        1,
        ge=1,
        le=256,
        description="requests that a shared-context scorer takes at once, at the most. They are computed one after "
        "the other and answered together: more of them only delay the first, and leave another instance idle",
    )
    queue_delay_us: int = Field(0, ge=0, description="microseconds to wait for batch mates; 0: batch what waits")
    preferred_batch: int = Field(
        0,
        ge=0,
        le=1_024,
        description="requests (rows of a joint ranker) that are worth waiting for, up to queue_delay_us; cut to what "
        "one execution may hold; 0: none in particular",
    )
    rows_per_batch: int = Field(
        16, ge=1, le=1024, description="rows in one run of a joint ranker; runs go side by side, one core each"
    )
    context_cache_mb: int = Field(
        256,
        ge=0,
        description="megabytes of keys and values of returning users' contexts that each scorer keeps, 18 kB per token "
        "with MiniLM-L6; a hit saves half of a 10-candidate request and a fifth of a 100-candidate one; 0 = none",
    )
    instances: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="copies of the scorer; auto: one per 4 cores, at least 2, so that a large request leaves "
        "one free. Busy ones share out the cores. With tensor_parallel one per so many cores. On GPUs two on each",
    )
    tokenizers: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        "auto",
        description="copies of tokenize, and of select, beside a scorer on a GPU, which takes more requests than one "
        "copy can prepare; auto: one per two cores. Beside a scorer on the CPU there is one, which bounds its queue",
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="cores that one copy of the scorer uses at once; auto: all, divided by the copies that are busy",
    )
    executor: Literal["onnxruntime", "torch"] = Field(
        "onnxruntime",
        description="what computes in the Python backend (target cpu): onnxruntime runs the graphs; torch runs the "
        "checkpoint itself, for GPU machines that have PyTorch and nothing else: FP16 on cuda, FP32 on cpu",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where the executor computes. On cuda onnxruntime needs onnxruntime-gpu and serves FP16 where "
        "tensorrt.precisions has fp16, else FP32: INT8 as CPUs take it is slow there",
    )


class Recipe(Settings):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="names artifacts/<name>/")
    seed: int = Field(17, ge=0, lt=2**32, description="fixes data, sampling, training order and initial weights")
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="processes (CPU) or GPUs that compute each layer together; 1 = the whole ranker in each instance. "
        "Has to divide heads and neurons; see docs/tensor-parallel.md for when it pays",
    )
    data: DataSettings
    text: TextSettings = TextSettings()
    examples: ExampleSettings = ExampleSettings()
    model: ModelSettings = ModelSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    prune: PruneSettings | None = None
    distill: DistillSettings | None = None
    gate: GateSettings = GateSettings()
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    tensorrt: TensorRTSettings = TensorRTSettings()
    serve: ServeSettings = ServeSettings()

    @model_validator(mode="after")
    def _distillation_needs_a_smaller_model(self) -> "Recipe":
        if self.distill and not self.prune:
            raise ValueError("distill needs a prune section: the student is the pruned ranker")
        return self

    @model_validator(mode="after")
    def _ranks_are_onnxruntime_on_the_cpu(self) -> "Recipe":
        if self.tensor_parallel > 1 and (self.serve.executor, self.serve.device) != ("onnxruntime", "cpu"):
            raise ValueError(
                f"tensor_parallel is {self.tensor_parallel}, but serve.executor is {self.serve.executor} on "
                f"{self.serve.device}: in the Python backend ranks are processes of ONNX Runtime on the CPU. Set "
                "tensor_parallel to 1, or assemble --target tensorrt-tp"
            )
        return self

    @model_validator(mode="after")
    def _profiles_hold_the_largest_request(self) -> "Recipe":
        largest = self.tensorrt.candidate_buckets[-1]
        if largest < self.serve.max_candidates:
            raise ValueError(
                f"tensorrt.candidate_buckets end at {largest}, but serve.max_candidates is "
                f"{self.serve.max_candidates}: no optimization profile would hold such a request"
            )
        return self


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: ``section.key=value`` strings, the value in YAML, or ``@FILE`` with a YAML mapping of sections; they
            win over the file, and later ones over earlier ones.

    Raises:
        RecipeError: the file is missing, is not YAML, or has faults; all faults are in the one message.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe. The ones that come with tritonrank: build/recipes/*.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        values = yaml.safe_load(text)
        lines = dict(_key_lines(yaml.compose(text, Loader=yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2015-02-30 is a ValueError, *anchors may recurse
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a YAML mapping with at least `name` and `data`")
    for override in _read_override_files(overrides):
        _apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_describe_fault(fault, path, lines) for fault in error.errors()]
        raise RecipeError(f"{path} has {len(faults)} fault(s):\n" + "\n".join(faults)) from None


def setting_rows(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting as (key, default, description), in file order: the reference behind `tritonrank settings`."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        for nested in _nested_models(field.annotation):
            marker = f" ({nested.model_fields['source'].annotation.__args__[0]})" if name == "data" else ""  # type: ignore[union-attr]
            for nested_key, default, description in setting_rows(nested, f"{key}."):
                yield nested_key + marker, default, description
        if not _nested_models(field.annotation):
            default = "required" if field.is_required() else repr(field.default)
            yield key, default, field.description or ""


def _nested_models(annotation: Any) -> list[type[BaseModel]]:
    candidates = getattr(annotation, "__args__", (annotation,))
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]


def _read_override_files(overrides: Sequence[str]) -> Iterator[str]:
    """Each ``@FILE`` as the ``section.key=value`` strings that it holds; such a file is what tuning writes."""
    for override in overrides:
        if not override.startswith("@"):
            yield override
            continue
        path = Path(override[1:])
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RecipeError(f"--set {override}: {path} cannot be read: {error}") from None
        if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
            raise RecipeError(f"--set {override}: {path}: expected sections with their settings, such as serve:")
        for section, settings in values.items():
            yield from (f"{section}.{key}={yaml.safe_dump(value)}" for key, value in settings.items())


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise RecipeError(f"--set {override!r}: expected section.key=value, such as finetune.epochs=2")
    *sections, leaf = key.split(".")
    target = values
    for section in sections:
        child = target.setdefault(section, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override!r}: {section} is a single setting, not a section")
        target = child
    try:
        target[leaf] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--set {override!r}: the value is not valid YAML: {error}") from None


def _key_lines(node: yaml.Node | None, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            location = (*prefix, str(key_node.value))
            yield location, key_node.start_mark.line + 1
            yield from _key_lines(value_node, location)


def _describe_fault(fault: Any, path: Path, lines: dict[tuple[str, ...], int]) -> str:
    # pydantic puts the tag of a discriminated union (here the data source) into the location; a file has no such key.
    location = tuple(str(part) for part in fault["loc"])
    if location[:1] == ("data",) and len(location) > 1 and location[1] in {"sample", "movielens", "tables"}:
        location = ("data", *location[2:])
    known = location
    while known and known not in lines:
        known = known[:-1]
    place = f"{path}:{lines[known]}" if known else f"{path}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        names = [row[0].split(" ")[0].split(".")[-1] for row in setting_rows()] + list(Recipe.model_fields)
        near = difflib.get_close_matches(location[-1], names, n=1)
        message = "no such setting" + (f"; did you mean {near[0]}?" if near else "; see `tritonrank settings`")
    elif fault["type"] == "missing":
        message = "is required"
    elif fault["type"] == "string_type" and isinstance(fault["input"], dict):
        message += " (found a mapping, which is what braces mean in YAML: put the text into quotes)"
    else:
        message += f" (found {fault['input']!r})" if not isinstance(fault["input"], dict) else ""
    return f"  {place}: {'.'.join(location) or 'recipe'}: {message}"
