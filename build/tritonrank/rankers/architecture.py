"""What an architecture of rankers has to say of itself, as far as a build asks: checkpoints, costs, batches, graphs,
the shapes of plans and of the scorer's config.

There is one object of each (``joint.py``, ``shared_context.py``), and ``architectures.py`` lists them; what a server
asks is answered by their counterparts in ``tritonrank_runtime``. Torch and transformers are imported where a method
needs them: configs and profiles are also written where neither is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.architecture import Architecture
from tritonrank_runtime.engine import Logits, Tensors

from tritonrank.rankers.serving import AnyServing

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from tritonrank_runtime.text import RequestTokenizer

    from tritonrank.recipe import ModelSettings

RequestTensors = dict[str, NDArray[np.int32]]
"""One request as the engine takes it, by input name."""
Shape = tuple[int, ...]
Axes = dict[str, set[int]]
"""By tensor, which of its axes have to be dynamic."""


@dataclass(frozen=True)
class Range:
    """The shapes of one input: smallest, the one that kernels are chosen for, largest."""

    smallest: Shape
    best: Shape
    largest: Shape


@dataclass(frozen=True)
class GridCase:
    """A request of odd sizes on which a graph is compared with PyTorch.

    Args:
        what: its sizes, in words.
        expected: PyTorch's logits.
        run: gives those of an engine.
    """

    what: str
    expected: NDArray[np.float32]
    run: Callable[[Any], NDArray[np.float32]]


@dataclass(frozen=True)
class Warmup:
    """A batch that the scorer runs before it reports ready, so that memory is allocated and pages are touched.

    Args:
        what: its sizes, in words.
        batch_size: entries of the scorer's batch.
        shapes: of one entry, by tensor.
    """

    what: str
    batch_size: int
    shapes: Mapping[str, Shape]


class RankerArchitecture(ABC):
    """One way of training, exporting and serving a ranker."""

    served: Architecture
    """its counterpart, with the tensors"""
    shares_positions: bool
    """Whether a ready checkpoint's positions are shared out among the texts by what the data need."""
    has_prompt = False
    """Whether its texts stand in a prompt (``TextRules.frame``), and not between the tokenizer's special tokens."""
    longest_input: str
    """What has to fit the positions of a model, in words."""
    bucketed: str
    """What ``tensorrt.token_buckets`` are the lengths of, in words."""
    speed_settings: ClassVar[Mapping[str, Sequence[int]]]
    """Settings of a recipe that decide how its requests are batched, with values to try."""

    @property
    def name(self) -> str:
        """In recipes and in text.json."""
        return self.served.name

    # ---- checkpoints

    @abstractmethod
    def load(self, name: str, revision: str | None = None) -> "PreTrainedModel":
        """A checkpoint of this architecture that was fine-tuned, FP32.

        Raises:
            ArtifactError: it cannot be used.
        """

    @abstractmethod
    def untrained(self, model: "ModelSettings", tokenizer: "RequestTokenizer") -> "PreTrainedModel":
        """What training starts from, or the ready checkpoint.

        Raises:
            ArtifactError: it cannot be used.
            RecipeError: it was trained for shorter texts.
        """

    @abstractmethod
    def positions(self, config: Any, tokenizer: "RequestTokenizer") -> int:
        """Positions that the longest texts need, by the token budgets, in a model with this config."""

    # ---- anatomy

    @abstractmethod
    def head_size(self, config: Any) -> int:
        """Of an attention head."""

    @abstractmethod
    def set_heads(self, config: Any, heads: int) -> None:
        """Make the config one of a model with so many heads per layer, each of the same size as before."""

    @abstractmethod
    def layer_list(self, model: "PreTrainedModel") -> tuple["nn.Module", str]:
        """The module that holds the list of layers, and the attribute that it is."""

    def heads(self, config: Any) -> int:
        """Attention heads per layer that are there; all layers have equally many."""
        return int(config.num_attention_heads - len(dict(config.pruned_heads or {}).get(0, [])))

    norms_first: bool = False
    """Whether layers norm what they read and leave the residual as it is, or norm the residual itself."""

    def head_group(self, config: Any) -> int:
        """Attention heads that share one of keys and values, and go or stay together."""
        return 1

    def has_position_table(self, config: Any) -> bool:
        """Whether each position has a row of weights."""
        return True

    def keep_layers(self, config: Any, layers: Sequence[int]) -> None:
        """Make the config one of a model with these of its layers."""
        config.num_hidden_layers = len(layers)

    # ---- what a request costs, and gives

    @abstractmethod
    def list_tokens(self, context: float, candidate: float, candidates: int) -> float:
        """Tokens that are read for one list, of a context's and a candidate's tokens."""

    @abstractmethod
    def flop(self, config: Any, tensors: Tensors) -> float:
        """Floating-point operations of one request; padding and embedding look-ups are not counted."""

    @abstractmethod
    def torch_run(self, model: Any, rows_per_batch: int) -> Callable[[Sequence[RequestTensors]], list[Logits]]:
        """What scores requests with a PyTorch model, on the device it is on and in the precision it has."""

    # ---- training

    @abstractmethod
    def batch(self, model: Any, requests: Sequence[RequestTensors]) -> dict[str, "torch.Tensor"]:
        """Requests -> the arguments of the model's forward."""

    @abstractmethod
    def token_mask(self, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """True where a batch holds a token and not padding: (sequences, tokens)."""

    # ---- graphs

    @abstractmethod
    def write_graphs(self, checkpoint_folder: Path, folder: Path, opset: int) -> None:
        """The graphs that serve a checkpoint, in FP32 with int32 inputs."""

    @abstractmethod
    def signatures(self, model: Any) -> dict[str, tuple[Axes, Axes]]:
        """Inputs and outputs of each graph, by its file's name."""

    @abstractmethod
    def grid_cases(self, model: Any) -> Iterator[GridCase]:
        """Requests with sizes that the model can take; odd ones show an axis that was frozen."""

    # ---- plans

    @abstractmethod
    def profile(
        self,
        input_names: Sequence[str],
        requests: int,
        candidates: tuple[int, int],
        tokens: tuple[int, int],
        tokenizer: "RequestTokenizer",
    ) -> dict[str, Range]:
        """An optimization profile by input name, of a bucket.

        Args:
            input_names: of the graph.
            requests: side by side at the most.
            candidates: fewest and most.
            tokens: of the shortest and of the longest row.
            tokenizer: knows the longest context.
        """

    # ---- the scorer's config

    @abstractmethod
    def max_batch_size(self, settings: AnyServing) -> int:
        """Entries of the scorer's batch at the most."""

    @abstractmethod
    def score_parameters(self, settings: AnyServing) -> dict[str, int]:
        """What the scorer is told beside what every scorer is told."""

    @abstractmethod
    def warmups(self, settings: AnyServing, longest_rows: Mapping[str, int]) -> list[Warmup]:
        """Small, middling and large.

        Args:
            settings: the scorer refuses larger requests.
            longest_rows: tokens in a row of each input of the engine at the most; the scorer refuses longer ones.
        """
