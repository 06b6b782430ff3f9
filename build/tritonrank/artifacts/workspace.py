"""Where the artifacts of a recipe lie, and what a repository can be assembled for."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritonrank.recipe import Recipe


class Target(StrEnum):
    """What a repository is assembled for."""

    CPU = "cpu"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TENSORRT_TP = "tensorrt-tp"


@dataclass(frozen=True)
class Workspace:
    """Where the artifacts of one recipe live: ``artifacts/<recipe>/``."""

    root: Path

    @classmethod
    def of(cls, recipe: "Recipe", artifacts: Path = Path("artifacts")) -> "Workspace":
        return cls(artifacts / recipe.name)

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def images(self) -> Path:
        """The vectors of the items' images, where a recipe has any."""
        return self.root / "images"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison"

    @property
    def pruned(self) -> Path:
        return self.root / "pruned"

    @property
    def student(self) -> Path:
        return self.root / "student"

    @property
    def onnx(self) -> Path:
        return self.root / "onnx"

    @property
    def int8(self) -> Path:
        return self.root / "int8"

    def quantized(self, recipe: "Recipe") -> Path:
        """The graphs that ``quantize.method`` makes for CPUs."""
        method = recipe.quantize.method
        return self.int8 if method == "static-int8" else self.root / method

    @property
    def onnx_batched(self) -> Path:
        return self.root / "onnx-batched"

    @property
    def fp16(self) -> Path:
        return self.root / "fp16"

    @property
    def int8_tensorrt(self) -> Path:
        return self.root / "int8-tensorrt"

    @property
    def int8_fp16(self) -> Path:
        return self.root / "int8-fp16"

    @property
    def plans(self) -> Path:
        return self.root / "plans"

    @property
    def engine(self) -> Path:
        """What computes fastest on this machine, with its weights where they are files of its own."""
        return self.root / "engine"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def shards_of(self, precision: str) -> Path:
        """The shards that plans of a precision are compiled from; ``shards`` are those that CPUs serve."""
        return self.root / f"shards-{precision}"

    def rank_plans(self, recipe: "Recipe", precision: str) -> Path:
        """The plans of all ranks of a precision."""
        return self.plans / f"{precision}-tp{recipe.tensor_parallel}"

    @property
    def retriever(self) -> Path:
        """The encoder that finds items by history and query (two towers)."""
        return self.root / "retriever"

    @property
    def catalogue(self) -> Path:
        """The items as retrieval sees them."""
        return self.root / "catalogue"

    @property
    def blend(self) -> Path:
        """The model that orders by the ranker's score and the signals of retrieval."""
        return self.root / "blend"

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    def repository_for(self, target: Target) -> Path:
        """The repository of a target; that of a CPU is the one that ``build`` makes."""
        return self.repository if target is Target.CPU else self.root / f"repository-{target}"

    @property
    def summary(self) -> Path:
        return self.root / "summary"

    @property
    def quick(self) -> Path:
        """What ``build --quick`` found; no model of it is kept."""
        return self.root / "quick"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration"

    @property
    def judgements(self) -> Path:
        return self.root / "judgements"

    def ranker(self, recipe: "Recipe") -> Path:
        """The checkpoint that is exported: the smallest that the recipe makes."""
        if recipe.distill:
            return self.student
        return self.pruned if recipe.prune else self.teacher

    def served_model(self, recipe: "Recipe") -> Path:
        """The model artifact that the repository serves."""
        if recipe.serve.executor == "torch":
            return self.ranker(recipe)
        if recipe.serve.device == "cuda":
            return self.fp16 if "fp16" in recipe.tensorrt.precisions else self.onnx
        return self.onnx if recipe.quantize.method == "none" else self.quantized(recipe)

    def chosen_engine(self, recipe: "Recipe") -> Path | None:
        """The folder of the stage that chooses what computes; None where nothing is to be chosen."""
        serve = recipe.serve
        has_choice = serve.executor in ("auto", "native") and serve.device == "cpu" and recipe.tensor_parallel == 1
        return self.engine if has_choice else None

    def loaded_model(self, recipe: "Recipe") -> Path:
        """What the repository for CPUs holds of it: the model itself, or the shards of it."""
        return self.shards if recipe.tensor_parallel > 1 else self.served_model(recipe)

    def batched_fp32(self, recipe: "Recipe") -> Path:
        """The FP32 graph with a batch of whole requests or rows, which TensorRT's precisions are made of."""
        return self.onnx if is_batched_already(recipe) else self.onnx_batched

    def tensorrt_graph(self, recipe: "Recipe", precision: str) -> Path:
        """The artifact whose model.onnx a plan of this precision is compiled from."""
        folders = {"fp16": self.fp16, "int8": self.int8_tensorrt, "int8-fp16": self.int8_fp16}
        return folders.get(precision, self.batched_fp32(recipe))


def is_batched_already(recipe: "Recipe") -> bool:
    """Whether the graph that CPUs serve has a batch of rows, as TensorRT's precisions need it."""
    from tritonrank_runtime.architectures import architecture_named  # needs tokenizers, which `serve` does not

    return not architecture_named(recipe.model.architecture).has_score_batch
