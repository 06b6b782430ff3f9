"""The recipe as a whole, and what its sections ask of one another."""

from typing import Annotated

from pydantic import Field, model_validator

from tritonrank.artifacts.workspace import Target
from tritonrank.recipe.applicability import GPU_TARGETS, Used
from tritonrank.recipe.base import Settings
from tritonrank.recipe.blend import BlendSettings
from tritonrank.recipe.data import DataSettings, ExampleSettings
from tritonrank.recipe.graphs import GateSettings, QuantizeSettings, TensorRTSettings
from tritonrank.recipe.images import ImageSettings
from tritonrank.recipe.learning import LearnSettings
from tritonrank.recipe.retrieval import RetrievalSettings
from tritonrank.recipe.serving import ServeSettings
from tritonrank.recipe.text import TextSettings
from tritonrank.recipe.training import DistillSettings, FinetuneSettings, ModelSettings, PruneSettings

TRACKING = r"^(none|mlflow(:[^\s@]+)?|wandb(:[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?)?|tensorboard(:[^\s@]+)?)$"
"""No user or password in a URI: recipes are logged, and copied into manifests."""


class Recipe(Settings):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="names artifacts/<name>/")
    seed: int = Field(17, ge=0, lt=2**32, description="fixes data, sampling, training order and initial weights")
    tensor_parallel: Annotated[
        int,
        Used(
            "every GPU has the whole ranker",
            (Target.CPU, Target.TENSORRT, Target.TENSORRT_TP),  # tensorrt says itself what does not fit it
            idle=1,
        ),
    ] = Field(
        1,
        ge=1,
        le=64,
        description="processes (CPU) or GPUs that compute each layer together; 1 = the whole ranker in each instance. "
        "Has to divide heads and neurons; see docs/tensor-parallel.md for when it pays",
    )
    tracking: str = Field(
        "none",
        pattern=TRACKING,
        description="where trainings are logged step by step, and finished builds with settings, metrics and report: "
        "mlflow (MLFLOW_TRACKING_URI, else files in ./mlruns), mlflow:URI, wandb (files in ./wandb, for wandb sync), "
        "wandb:ENTITY/PROJECT, tensorboard (files in ./runs), tensorboard:FOLDER; or none. Passwords and keys come "
        "from the environment, as MLflow and W&B have it",
    )
    data: DataSettings
    text: TextSettings = TextSettings()
    images: Annotated[
        ImageSettings | None,
        Used(
            "images are read by shared-context rankers that ONNX Runtime computes on CPUs",
            (Target.CPU,),
            architecture="shared-context",
            device="cpu",
        ),
    ] = None
    examples: ExampleSettings = ExampleSettings()
    model: ModelSettings = ModelSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    prune: PruneSettings | None = None
    distill: DistillSettings | None = None
    gate: GateSettings = GateSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    tensorrt: Annotated[
        TensorRTSettings,
        Used("graphs and plans of this section are made for GPUs", GPU_TARGETS, or_device="cuda"),
    ] = TensorRTSettings()
    retrieval: RetrievalSettings | None = None
    blend: BlendSettings = BlendSettings()
    learn: LearnSettings = LearnSettings()
    serve: ServeSettings = ServeSettings()

    @model_validator(mode="after")
    def _distillation_needs_a_smaller_model(self) -> "Recipe":
        if self.distill and not self.prune:
            raise ValueError("distill needs a prune section: the student is the pruned ranker")
        return self

    @model_validator(mode="after")
    def _images_are_read(self) -> "Recipe":
        if self.images is None:
            return self
        if self.images.field not in self.text.template_fields:
            raise ValueError(
                f"images.field is {self.images.field}, which text.item_template {self.text.item_template!r} does not "
                f"name: no item would show its image. Write {{{self.images.field}}} into it, such as "
                f'"{{{self.images.field}}} {self.text.item_template}"'
            )
        if self.model.architecture != "shared-context":
            raise ValueError(
                f"images with model.architecture {self.model.architecture}: only shared-context rankers read images. "
                "Set it to shared-context, or remove the images section"
            )
        if self.serve.executor not in ("auto", "onnxruntime") or self.serve.device != "cpu" or self.tensor_parallel > 1:
            raise ValueError(
                f"images with serve.executor {self.serve.executor} on {self.serve.device} and tensor_parallel "
                f"{self.tensor_parallel}: rankers of images are computed by ONNX Runtime, on the CPU, in one process. "
                "Set serve.executor to auto, serve.device to cpu and tensor_parallel to 1"
            )
        return self

    @model_validator(mode="after")
    def _something_computes_in_ranks(self) -> "Recipe":
        on_cpu = self.serve.executor in ("auto", "onnxruntime") and self.serve.device == "cpu"
        by_torch = self.serve.executor == "torch" and self.model.architecture == "decoder"
        if self.tensor_parallel > 1 and not (on_cpu or by_torch):
            raise ValueError(
                f"tensor_parallel is {self.tensor_parallel}, but serve.executor is {self.serve.executor} on "
                f"{self.serve.device}: in the Python backend ranks are processes of ONNX Runtime on the CPU, or of "
                "PyTorch for a decoder. Set tensor_parallel to 1, or assemble --target tensorrt-tp"
            )
        return self

    @model_validator(mode="after")
    def _the_native_engine_computes_on_the_cpu(self) -> "Recipe":
        if (self.serve.executor, self.serve.device) == ("native", "cuda"):
            raise ValueError("serve.executor is native on serve.device cuda: it computes on CPUs. Set executor to auto")
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
