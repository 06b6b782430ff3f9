"""What the packed engine asks of an architecture: whether rows fit, where a large request is cut, how one is packed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.architecture import RowLimits
from tritonrank_runtime.engine import Logits, Tensors
from tritonrank_runtime.packed.context_pool import ContextPool
from tritonrank_runtime.packed.packing import NOT_KEPT, PackedRequest, joint_request, shared_context_request

EXAMPLE_CANDIDATES, EXAMPLE_TOKENS = 8, 6


@dataclass(frozen=True)
class Part:
    """Some candidates of a request, which go into one launch.

    Args:
        request: its place among those of a run.
        candidates: from where to where.
        tensors: theirs; of a shared-context ranker with the whole context.
        rows: tokens, without padding.
        segments: candidates that are scored.
    """

    request: int
    candidates: slice
    tensors: Tensors
    rows: int
    segments: int


class PackedRows(ABC):
    """How requests of one architecture become rows.

    Args:
        input_names: the tensors of a request.
        limits: what the ranker has embeddings for.
        check: refuses rows that ``tokenize`` would not make, as the other engines do.
    """

    pairs = False
    """Whether every candidate is a segment with a context of its own."""

    def __init__(self, input_names: Sequence[str], limits: RowLimits, check: Callable[[Tensors], None]) -> None:
        self.input_names, self.limits, self.check = [*input_names], limits, check

    def parts(self, number: int, request: Tensors, most_rows: int) -> Iterator[Part]:
        """A request in parts of at most so many rows, one candidate at least."""
        shared, lengths = self._lengths(request)
        ends = np.cumsum(lengths)
        start = 0
        while start < len(lengths):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + most_rows - shared, side="right")))
            part = slice(start, stop)
            rows = shared + int(ends[stop - 1]) - before
            yield Part(number, part, self._cut(request, part), rows, int((lengths[part] > 0).sum()))
            start = stop

    def tokens(self, request: Tensors) -> int:
        """Of a request, without padding."""
        shared, lengths = self._lengths(request)
        return shared + int(lengths.sum())

    @abstractmethod
    def pack(self, part: Part, pool: ContextPool) -> PackedRequest:
        """The rows of a part; asks the pool whether its context is kept there, and where it shall be."""

    @abstractmethod
    def example(self) -> Tensors:
        """A small request that every ranker of the architecture takes."""

    @abstractmethod
    def _lengths(self, request: Tensors) -> tuple[int, NDArray[np.int64]]:
        """Tokens that every part has, and those of each candidate."""

    @abstractmethod
    def _cut(self, request: Tensors, part: slice) -> Tensors:
        """The tensors of some candidates."""


class SharedContextRows(PackedRows):
    """A context and its candidates in one span of rows; the other arguments are those of ``PackedRows``.

    Args:
        context_positions: where the positions of candidates begin.
    """

    def __init__(self, context_positions: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._context_positions = context_positions

    def pack(self, part: Part, pool: ContextPool) -> PackedRequest:
        context_ids = part.tensors["context_ids"]
        kept_at = pool.find(context_ids) if pool.rows else NOT_KEPT
        keep_at = pool.reserve(context_ids) if pool.rows and kept_at == NOT_KEPT else NOT_KEPT
        return shared_context_request(
            part.tensors, self.limits, self._context_positions, kept_at=kept_at, keep_at=keep_at
        )

    def example(self) -> Tensors:
        ids = np.arange(EXAMPLE_CANDIDATES * EXAMPLE_TOKENS, dtype=np.int32) % self.limits.ids["candidate_ids"][1]
        return {"context_ids": ids[:EXAMPLE_TOKENS], "candidate_ids": ids.reshape(EXAMPLE_CANDIDATES, EXAMPLE_TOKENS)}

    def _lengths(self, request: Tensors) -> tuple[int, NDArray[np.int64]]:
        return len(request["context_ids"]), np.asarray((request["candidate_ids"] >= 0).sum(axis=1), dtype=np.int64)

    def _cut(self, request: Tensors, part: slice) -> Tensors:
        return {**request, "candidate_ids": request["candidate_ids"][part]}


class PairRows(PackedRows):
    """Every pair of a joint ranker a segment."""

    pairs = True

    def pack(self, part: Part, pool: ContextPool) -> PackedRequest:
        return joint_request(part.tensors, self.limits)

    def example(self) -> Tensors:
        shape = EXAMPLE_CANDIDATES, EXAMPLE_TOKENS
        ids = np.arange(EXAMPLE_CANDIDATES * EXAMPLE_TOKENS, dtype=np.int32) % self.limits.ids["input_ids"][1]
        ones = {name: np.ones(shape, dtype=np.int32) for name in self.input_names}
        return {**ones, "input_ids": ids.reshape(shape), "token_type_ids": np.zeros(shape, dtype=np.int32)}

    def _lengths(self, request: Tensors) -> tuple[int, NDArray[np.int64]]:
        return 0, np.asarray(request["attention_mask"].sum(axis=1), dtype=np.int64)

    def _cut(self, request: Tensors, part: slice) -> Tensors:
        return {name: request[name][part] for name in self.input_names}


def joined(logits: Sequence[tuple[Part, Logits]], candidates: int) -> Logits:
    """The logits of one request, of those of its parts."""
    whole = np.zeros(candidates, dtype=np.float32)
    for part, found in logits:
        whole[part.candidates] = found
    return whole
