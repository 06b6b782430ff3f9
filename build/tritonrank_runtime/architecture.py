"""What an architecture of rankers has to say of itself, as far as a server asks: its tensors, its rows, its engine.

There is one object of each (``joint.py``, ``shared_context.py``), and ``architectures.py`` lists them. Whoever handles
requests asks that object; nobody else looks at the names of tensors or files. What training, export and configs ask
besides is answered by the objects of ``tritonrank.rankers``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.engine import Engine, Graph, RowsError, Tensors
from tritonrank_runtime.images import ImageTable
from tritonrank_runtime.pair_layout import PairLayout

if TYPE_CHECKING:
    from tritonrank_runtime.packed.rows import PackedRows
    from tritonrank_runtime.padding import Buckets
    from tritonrank_runtime.text import TextRules

ROWS_PER_BATCH = 16
"""Rows of pairs in one run: a thousand tokens or so fill a matrix product and stay in the cache."""
MOST_ROWS_ON_GPU = 256
"""As ``ROWS_PER_BATCH``, where nothing has to stay in a cache."""
VOCABULARY = "vocabulary_size"
"""The scorer's parameter for how many ids the tokenizer has."""
SEGMENTS = "segments"
"""The scorer's parameter for how many segment ids the tokenizer gives."""


@dataclass(frozen=True)
class Input:
    """One tensor that the engine takes.

    Args:
        name: of the tensor.
        axes: those of one entry of the scorer's batch.
        filling: what it holds where a row or a request has ended.
        least: the least value that a row may hold.
        longest: the scorer's parameter for the tokens in a row at the most; "" where another tensor's says it.
        ids: the scorer's parameter for how many different ids there are, from 0 on; "" where nothing bounds them.
        example: a value that every ranker takes at any place of it.
    """

    name: str
    axes: int = 1
    filling: int = 0
    least: int = 0
    longest: str = ""
    ids: str = ""
    example: int = 0

    @property
    def is_text(self) -> bool:
        """Whether it holds ids of the vocabulary."""
        return self.ids == VOCABULARY


@dataclass(frozen=True)
class RowLimits:
    """What the rows of a request may be; ``tokenize`` makes no others."""

    tokens: Mapping[str, int] = field(default_factory=dict)
    """in a row at the most, by tensor"""
    ids: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """the least id, and the first one that there is not, by tensor"""

    def check(self, request: Tensors) -> None:
        """Refuse rows beyond the limits.

        Raises:
            RowsError: names the tensor, what was found, and the limit.
        """
        for name, limit in self.tokens.items():
            if (found := request[name].shape[-1]) > limit:
                raise RowsError(f"{name}: rows of {found} tokens; the limit is {limit}")
        for name, (least, limit) in self.ids.items():
            ids = request[name]
            if ids.size and (ids.min() < least or ids.max() >= limit):
                raise RowsError(f"{name}: ids from {ids.min()} to {ids.max()}; expected {least} to {limit - 1}")


@dataclass(frozen=True)
class EngineOptions:
    """How an engine may use the machine.

    Args:
        threads: runs side by side at the most; 0 = all cores this process may use, 1 for graphs that take one run at a
            time.
        rows_per_batch: rows of pairs in one run at the most.
        context_cache_bytes: keys and values of contexts that are kept at the most.
        shares: parts that a request's candidates are cut into for the sake of threads; 0 = by the machine's cores.
        is_gpu: runs are costly to start, and may be large.
        context_cache_bits: of each number of those keys and values (``kept_states.py``).
        images: what the graphs look ids of images up in, where they take any.
        is_packed: the graphs leave padding out themselves, a run of them costs little to start, and a row's score does
            not depend on the rows beside it.
    """

    threads: int = 0
    rows_per_batch: int = ROWS_PER_BATCH
    context_cache_bytes: int = 0
    shares: int = 0
    is_gpu: bool = False
    is_packed: bool = False
    context_cache_bits: int = 32
    images: ImageTable | None = None

    @classmethod
    def on_gpu(cls, context_cache_bytes: int = 0) -> "EngineOptions":
        """One large run after the other."""
        return cls(1, MOST_ROWS_ON_GPU, context_cache_bytes, shares=1, is_gpu=True)


class Architecture(ABC):
    """One way of turning context and candidates into rows, and rows into scores."""

    name: str
    """in recipes and in text.json"""
    inputs: tuple[Input, ...]
    """All that there may be, in their order; a family may leave some of them out."""
    graph_files: tuple[str, ...]
    """The graphs that are served on a CPU, in the order in which they run."""
    batch_is_request: bool
    """Whether an entry of the scorer's batch is a request; else it is one of its rows."""
    block_candidates = 0
    """Candidates of a request that are scored by themselves, so that it may be cut where they end
    (``candidate_rows.py``); 0: its scores may depend on the cut in their last bits."""
    has_score_batch = False
    """Whether its network scores padded requests side by side (``score_batch``): its served graphs do not, so engines
    that take one graph and few shapes get one of this."""

    # ---- rows

    @property
    def text_inputs(self) -> list[str]:
        """The tensors that hold, one after the other, all tokens of a request with one candidate."""
        return [one.name for one in self.inputs if one.is_text]

    @abstractmethod
    def rows(
        self, layout: PairLayout, context: Sequence[int], candidates: Sequence[Sequence[int]]
    ) -> dict[str, NDArray[np.int32]]:
        """What the engine takes for one request, by input name.

        Args:
            layout: of the checkpoint's tokenizer.
            context: token ids of query and history, without special tokens.
            candidates: token ids of each, likewise.
        """

    @abstractmethod
    def longest_rows(self, layout: PairLayout, rules: "TextRules") -> dict[str, int]:
        """Tokens of the longest row that ``rows`` can make of each input, special tokens included."""

    @abstractmethod
    def padded(
        self, tensors: Tensors, buckets: "Buckets", layout: PairLayout, rules: "TextRules"
    ) -> dict[str, NDArray[np.int32]]:
        """A request in the shape of a bucket, so that all requests of a bucket can run side by side; its own rows
        come first.

        Raises:
            TextError: no bucket is large enough.
        """

    @abstractmethod
    def needed_tokens(self, tensors: Tensors) -> int:
        """Tokens of a request without its padding: the measure of work on both sides of the scorer's queue."""

    @abstractmethod
    def computed_tokens(self, tensors: Tensors) -> int:
        """Tokens of a request with its padding."""

    def run_tokens(self, tokens: int) -> int:
        """Tokens that a row of so many takes in a run."""
        return tokens

    def one_request(self, tensors: Tensors, most_candidates: int) -> Tensors:
        """A request as the engine takes it, of the entries of the scorer's batch that belong to it.

        Raises:
            RowsError: they are not one request, or of too many candidates.
        """
        return tensors

    def batch_of_one(self, tensors: Tensors) -> dict[str, NDArray[np.int32]]:
        """A request as the graph takes it whose batch is the scorer's."""
        if self.batch_is_request:
            return {name: np.ascontiguousarray(tensor[np.newaxis]) for name, tensor in tensors.items()}
        return {**tensors}

    def candidates_axis(self, name: str) -> int | None:
        """The axis of a batch's tensor that counts candidates; None of a tensor that holds none."""
        if not self.batch_is_request:
            return 0
        return next(1 if one.axes > 1 else None for one in self.inputs if one.name == name)

    # ---- limits

    def limits(self, input_names: Sequence[str], settings: Mapping[str, str]) -> RowLimits:
        """What the scorer's parameters allow in the tensors that a ranker takes."""
        taken = [one for one in self.inputs if one.name in input_names]
        return RowLimits(
            {one.name: int(settings[one.longest]) for one in taken if one.longest in settings},
            {one.name: (one.least, int(settings[one.ids])) for one in taken if one.ids in settings},
        )

    # ---- graphs and engine

    @abstractmethod
    def takes_graphs(self, inputs: Mapping[str, Sequence[str]]) -> bool:
        """Whether graphs are of this architecture, by file name and the names of their inputs."""

    @abstractmethod
    def engine(self, graphs: Mapping[str, Graph], options: EngineOptions) -> Engine:
        """The engine around graphs that are open already, by file name."""

    @abstractmethod
    def input_names(self, config: Any) -> list[str]:
        """The tensors that a checkpoint takes, by its config."""

    @abstractmethod
    def torch_graphs(self, folder: Path, device: str) -> dict[str, Graph]:
        """A checkpoint as graphs that PyTorch runs, by the names of the files that they stand for: FP16 on a GPU.

        Raises:
            ExecutorError: a library is missing.
        """

    def packed(self, folder: Path) -> "tuple[Any, PackedRows] | None":
        """A checkpoint for the packed engine: its network in FP32, and how its requests become rows; None of a family
        that this engine does not compute.

        Raises:
            ExecutorError: a library is missing.
        """
        return None
