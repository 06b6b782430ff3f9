"""The ranker, and what makes it: fine-tuning, pruning, distillation."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from tritonrank.recipe.applicability import Used
from tritonrank.recipe.base import OffIsFalse, Settings

PACKAGED_MINILM = "packaged:minilm-l6"
PACKAGED_SMOLLM2 = "packaged:smollm2-135m"
_IN_PROMPTS = Used("other rankers read their texts without a prompt", architecture="decoder")


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 - what pydantic makes a fault of
            "write it in quotes: a bare yes or no is true or false in YAML"
        )
    return value


_Answer = Annotated[str, StringConstraints(min_length=1), BeforeValidator(_no_truth)]


class ModelSettings(Settings):
    architecture: Literal["shared-context", "joint", "decoder"] = Field(
        "shared-context",
        description="shared-context: the user is encoded once for all candidates, about 8 times cheaper; joint: "
        "context and one candidate in one sequence, the default with model.checkpoint: others are trained that way; "
        "decoder: a causal language model, which reads the user once as well",
    )
    base: str = Field(
        PACKAGED_MINILM,
        min_length=1,
        description="pretrained encoder to fine-tune, or a decoder's language model: a hub id, a folder, a GGUF file, "
        "the packaged MiniLM-L6, or packaged:smollm2-135m",
    )
    checkpoint: str | None = Field(
        None,
        min_length=1,
        description="an already fine-tuned ranker (hub id or folder, one label, or with architecture decoder a "
        "language model that answers yes or no); skips fine-tuning",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="branch, tag or commit of the hub's checkpoint or base; a commit pins it. Without it the main "
        "branch: a build starts anew when that has moved",
    )
    template: Annotated[str | None, _IN_PROMPTS] = Field(
        None,
        min_length=1,
        description="prompt of a decoder: qwen3-reranker, mxbai-rerank-v2, bge-reranker-v2-gemma, plain, or a text "
        "with {query}, {history} and {document} where they go. Default: what the checkpoint says; for a base plain",
    )
    instruction: Annotated[str | None, _IN_PROMPTS] = Field(
        None,
        min_length=1,
        description="stands at the template's {instruction}: what makes a document the right one; default: as it was "
        "published",
    )
    answers: Annotated[list[_Answer] | None, _IN_PROMPTS] = Field(
        None,
        min_length=1,
        max_length=2,
        description="words of one token whose logits are a decoder's score, or before training its first one: of two, "
        "such as [good, bad], the difference, of one its logit; yes and no want quotes. Default: those of the template",
    )

    @model_validator(mode="before")
    @classmethod
    def _checkpoints_are_joint(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("checkpoint") and "architecture" not in values:
            return values | {"architecture": "joint"}
        return values

    def chosen(self) -> dict[str, Any]:
        """The settings as what is made of the model depends on them: those of prompts only where they are named, so
        that what was made before they were there is still up to date."""
        prompts = {name for name in ("template", "instruction", "answers") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=prompts)

    @property
    def source(self) -> str:
        """What the ranker is made of, and what ``revision`` is a revision of."""
        return self.checkpoint or self.base

    @property
    def untrained(self) -> "ModelSettings":
        """The same with the base alone, as if there were no checkpoint."""
        revision = None if self.checkpoint else self.revision
        return self.model_copy(update={"checkpoint": None, "revision": revision})


FIRST = {"loss", "epochs", "examples_per_step", "learning_rate", "evaluations", "teacher"}
"""The settings of a training that its key names whatever their values are; the others came later."""
ADAPTER_LEARNING_RATE = 5e-4
"""Of LoRA: its matrices start at a sum of 0 and have to go further than weights that were pretrained."""


class FinetuneSettings(Settings):
    """How a ranker is trained; distillation takes from here what its own section does not have."""

    loss: Literal["listwise", "pairwise", "binary"] = Field(
        "listwise", description="softmax cross-entropy over the list, RankNet, or binary cross-entropy"
    )
    epochs: float = Field(1.0, gt=0, description="passes over the training examples")
    examples_per_step: int = Field(8, ge=1, description="examples (lists) per optimizer step and process")
    learning_rate: float = Field(
        8e-5,
        gt=0,
        lt=1,
        description="peak, after warm-up; 8e-5 suits small encoders. Where it is not named, adapter lora takes 5e-4",
    )
    evaluations: int = Field(
        4, ge=1, description="how often NDCG@10 is judged on the validation users; the best weights count"
    )
    teacher: str | None = Field(
        None,
        min_length=1,
        description="folder of a fine-tuned ranker whose scores are learnt beside the labels: distillation",
    )
    adapter: Literal["none", "lora"] = Field(
        "none",
        description="lora: the base is left as it is, and beside each linear layer two thin matrices are learnt, which "
        "are merged into it before export; the head is trained whole. For bases too large to train, and for small data",
    )
    adapter_rank: int = Field(
        16, ge=1, le=1_024, description="inner width of the matrices of adapter lora; what they add is scaled by 2"
    )
    adapter_targets: list[Annotated[str, StringConstraints(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="linear layers that adapter lora adapts, by the end of their names, such as [query, value]; "
        "default: all of attention and FFN",
    )

    optimizer: Literal["adamw", "sgd", "adafactor", "adamw-8bit"] = Field(
        "adamw",
        description="what takes the steps. sgd (momentum 0.9) keeps half as much state as adamw and wants a learning "
        "rate some 1,000 times as high; adafactor keeps next to none; adamw-8bit a quarter (bitsandbytes, GPUs)",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear",
        description="of the learning rate after its rise over the first tenth of the steps: down to 0 in a line or "
        "along a cosine, or level",
    )
    token_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the tokens of each text that are left out, drawn anew in every pass"
    )
    field_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance with which the query, each item of the history and each field of a candidate but its last "
        "are left out, drawn anew in every pass",
    )
    r_drop: float = Field(
        0.0,
        ge=0,
        description="weight of how far two readings of a list differ, each under a dropout of its own: R-Drop. Twice "
        "the work per step; 1 is a usual weight",
    )
    adversarial: float = Field(
        0.0,
        ge=0,
        description="length by which a sequence's word embeddings are moved to where the loss rises most, to be learnt "
        "from as well: FGM. Twice the work per step; 1 is a usual length",
    )
    averaging: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is what is judged and kept: 0.99 is about the "
        "last 100 steps; 0: the weights themselves",
    )
    accumulation: int = Field(
        1,
        ge=1,
        description="parts in which the examples of a step are computed one after another: the same step in less "
        "memory. Has to divide examples_per_step",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute layers again in the backward pass and not keep them: a third more work, less memory"
    )
    mixed_precision: Annotated[Literal["auto", "bf16", "fp16", "off"], OffIsFalse] = Field(
        "auto",
        description="of products while training; weights stay FP32. auto: bf16 where the hardware multiplies in it; "
        "fp16 only on GPUs",
    )
    sharding: Annotated[Literal["auto", "off", "fsdp"], OffIsFalse] = Field(
        "auto",
        description="with several processes of torchrun: fsdp splits weights, gradients and optimizer state among "
        "them, off copies them (DDP); auto: fsdp where they would take more than 60% of a GPU's memory",
    )

    @model_validator(mode="after")
    def _parts_are_equal(self) -> "FinetuneSettings":
        if self.examples_per_step % self.accumulation:
            raise ValueError(
                f"accumulation is {self.accumulation}, which does not divide examples_per_step {self.examples_per_step}"
            )
        return self

    @model_validator(mode="after")
    def _scaling_knows_no_shards(self) -> "FinetuneSettings":
        if (self.sharding, self.mixed_precision) == ("fsdp", "fp16"):
            raise ValueError("sharding is fsdp and mixed_precision is fp16, which are not trained together. Use bf16")
        return self

    @model_validator(mode="before")
    @classmethod
    def _adapters_learn_faster(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("adapter") == "lora" and "learning_rate" not in values:
            return values | {"learning_rate": ADAPTER_LEARNING_RATE}
        return values

    def chosen(self) -> dict[str, Any]:
        """The settings as what is trained depends on them: those that are not among ``FIRST`` only
        where they ask for something, so that what was trained before they were there is still up to date."""
        fields = type(self).model_fields
        idle = {name for name in fields if name not in FIRST and getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=idle)


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
    reserve_tokens: int = Field(
        1_000,
        ge=0,
        description="most frequent tokens of the base vocabulary kept beside those of the data, for texts to come",
    )


class DistillSettings(Settings):
    """The pruned ranker learns from the unpruned one; needs a prune section. The rest is as in `finetune`."""

    epochs: float = Field(2.0, gt=0, description="passes over the examples; the teacher's scores are computed once")
    learning_rate: float = Field(1e-4, gt=0, lt=1, description="peak, after warm-up; higher than for fine-tuning, "
                                 "because a cut model has further to go")  # fmt: skip
    examples: int = Field(4_000, ge=8, description="training contexts, drawn by seed; all of them if there are fewer")
    pool: int = Field(
        32,
        ge=2,
        le=999,
        description="unseen items per context that the teacher scores, drawn by popularity. The 6 that it scores "
        "highest are learnt from, and 5 of the rest by lot; of a pool of 11 or fewer all are",
    )

    @property
    def hard_negatives(self) -> int:
        """Of the pool, those that the teacher scores highest: 6, at most half of a small pool."""
        return min(6, (self.pool + 1) // 2)

    @property
    def random_negatives(self) -> int:
        """Of the rest of the pool, drawn by lot: 5, or all that are left."""
        return min(5, self.pool - self.hard_negatives)

    def training(self, finetune: FinetuneSettings) -> FinetuneSettings:
        """How the student is trained: all of its weights, as a cut model has to change everywhere."""
        update = {"epochs": self.epochs, "learning_rate": self.learning_rate, "adapter": "none"}
        return finetune.model_copy(update=update)
