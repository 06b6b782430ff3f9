"""What the packed engine asks of an architecture: whether rows fit, where a large request is cut, how one is packed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.architecture import RowLimits
from tritonrank_runtime.engine import Logits, RowsError, Tensors
from tritonrank_runtime.packed.context_pool import ContextPool
from tritonrank_runtime.packed.packing import NOT_KEPT, PackedRequest
from tritonrank_runtime.packed.requests import decoder_request, joint_request, shared_context_request

if TYPE_CHECKING:
    from tritonrank_runtime.packed.network import PackedPasses

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

    @property
    def network_type(self) -> "type[PackedPasses]":
        """What computes them."""
        from tritonrank_runtime.packed.network import PackedNetwork

        return PackedNetwork

    def check_limits(self, request: Tensors) -> None:
        """Refuse ids and lengths that the ranker has nothing for.

        Raises:
            RowsError: names the tensor, what was found, and the limit.
        """
        self.limits.check(request)

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


class TreeRows(PackedRows):
    """A row that all candidates share, and theirs, in one span of rows."""

    def pack(self, part: Part, pool: ContextPool) -> PackedRequest:
        shared_ids = part.tensors[self.input_names[0]]
        kept_at = pool.find(shared_ids) if pool.rows else NOT_KEPT
        keep_at = pool.reserve(shared_ids) if pool.rows and kept_at == NOT_KEPT else NOT_KEPT
        return self._packed(part.tensors, kept_at, keep_at)

    def example(self) -> Tensors:
        shared, rows = self.input_names
        ids = np.arange(EXAMPLE_CANDIDATES * EXAMPLE_TOKENS, dtype=np.int32) % self.limits.ids[rows][1]
        return {shared: ids[:EXAMPLE_TOKENS], rows: ids.reshape(EXAMPLE_CANDIDATES, EXAMPLE_TOKENS)}

    @abstractmethod
    def _packed(self, tensors: Tensors, kept_at: int, keep_at: int) -> PackedRequest:
        """The rows of a part whose shared row is kept there, or shall be."""

    def _lengths(self, request: Tensors) -> tuple[int, NDArray[np.int64]]:
        shared, rows = (request[name] for name in self.input_names)
        return len(shared), np.asarray((rows >= 0).sum(axis=1), dtype=np.int64)

    def _cut(self, request: Tensors, part: slice) -> Tensors:
        rows = self.input_names[1]
        return {**request, rows: request[rows][part]}


class SharedContextRows(TreeRows):
    """Of a shared-context ranker; the other arguments are those of ``PackedRows``.

    Args:
        context_positions: where the positions of candidates begin.
    """

    def __init__(self, context_positions: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._context_positions = context_positions

    def _packed(self, tensors: Tensors, kept_at: int, keep_at: int) -> PackedRequest:
        return shared_context_request(tensors, self.limits, self._context_positions, kept_at=kept_at, keep_at=keep_at)


class DecoderRows(TreeRows):
    """Of a decoder; the other arguments are those of ``PackedRows``.

    Args:
        positions: that the decoder has for a prefix and a branch together.
    """

    def __init__(self, positions: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._positions = positions

    @property
    def network_type(self) -> "type[PackedPasses]":
        from tritonrank_runtime.packed.decoder_network import PackedDecoder

        return PackedDecoder

    def check_limits(self, request: Tensors) -> None:
        super().check_limits(request)
        prefix, branches = (request[name].shape[-1] for name in self.input_names)
        if prefix + branches > self._positions:
            raise RowsError(
                f"{self.input_names[1]}: rows of {branches} tokens behind a prefix of {prefix}; the ranker has "
                f"{self._positions} positions for both"
            )

    def _packed(self, tensors: Tensors, kept_at: int, keep_at: int) -> PackedRequest:
        return decoder_request(tensors, self.limits, kept_at=kept_at, keep_at=keep_at)


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
