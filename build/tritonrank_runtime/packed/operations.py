"""What a packed layer does beside its products, behind one interface: by own kernels, or by PyTorch alone.

``triton`` are the kernels of ``attention.py`` and ``kernels.py``, and what serves on a GPU. ``sdpa`` is PyTorch's
attention under a mask of all rows by all rows: the reference for tests, and what a machine without OpenAI Triton
computes with.
docs/gpu-engine.md compares them with PyTorch's other ways.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from tritonrank_runtime.engine import ExecutorError
from tritonrank_runtime.packed.packing import SCORED_TILE_ROWS, TILE_ROWS


class Norm(NamedTuple):
    """A layer norm's weights."""

    weight: Tensor
    bias: Tensor
    epsilon: float


class Embeddings(NamedTuple):
    """Tables (ids, width), from the first position that a text has, and the norm of their sum."""

    words: Tensor
    positions: Tensor
    types: Tensor
    norm: Norm


class Operations(Protocol):
    """One way to compute them."""

    query_factor: float
    """what queries are multiplied by beside the scale"""

    def prepare(self, tables: Mapping[str, Tensor], pool_rows: int, *, is_causal: bool = False) -> tuple[Any, Any]:
        """What attention is told of who sees whom: in all layers but the last, and in the last.

        Args:
            tables: of a launch, by name.
            pool_rows: that there are.
            is_causal: whether no row sees what stands behind it.
        """
        ...

    def attend(self, query: Tensor, keys_values: Tensor, pool: Tensor, view: Any) -> Tensor:
        """query (queries, width), keys_values and pool (rows, 2 * key width) -> (queries, width)."""
        ...

    def keep(self, keys_values: Tensor, pool: Tensor, tables: Mapping[str, Tensor]) -> None:
        """Copy rows into the pool: row ``keep_from[i]`` to ``keep_to[i]``, none where that is negative."""
        ...


class EncoderOperations(Operations, Protocol):
    """What an encoder's layers need beside these."""

    def embed(self, tables: Mapping[str, Tensor], embeddings: Embeddings) -> Tensor:
        """Normalized sums of embeddings (rows, width)."""
        ...

    def add_norm(self, rows: Tensor, added: Tensor, norm: Norm) -> Tensor:
        """The layer norm of a sum."""
        ...


class PlainOperations:
    """PyTorch alone."""

    query_factor = 1.0

    def __init__(self, head_size: int) -> None:
        self._head_size = head_size

    def prepare(
        self, tables: Mapping[str, Tensor], pool_rows: int, *, is_causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        rows, segments = tables["token_ids"].shape[0], tables["scored_rows"].shape[0]
        mask = _mask(tables["tiles"], tables["chunks"], rows, rows, pool_rows)
        if is_causal:
            mask[:, :rows].logical_and_(torch.ones_like(mask[:, :rows]).tril())
        return mask, _mask(tables["scored_tiles"], tables["scored_chunks"], segments, rows, pool_rows)

    def attend(self, query: Tensor, keys_values: Tensor, pool: Tensor, view: Tensor) -> Tensor:
        key, value = torch.cat([keys_values, pool]).chunk(2, dim=1)
        mixed = functional.scaled_dot_product_attention(
            self._by_head(query), self._by_head(key), self._by_head(value), attn_mask=view, scale=1.0, enable_gqa=True
        )
        return mixed.transpose(0, 1).flatten(1)

    def _by_head(self, rows: Tensor) -> Tensor:
        """(rows, width) -> (heads, rows, head_size)"""
        return rows.view(rows.shape[0], -1, self._head_size).transpose(0, 1)

    def embed(self, tables: Mapping[str, Tensor], embeddings: Embeddings) -> Tensor:
        return plain_embed(tables, embeddings)

    def add_norm(self, rows: Tensor, added: Tensor, norm: Norm) -> Tensor:
        return plain_norm(rows + added, norm)

    def keep(self, keys_values: Tensor, pool: Tensor, tables: Mapping[str, Tensor]) -> None:
        is_one = tables["keep_from"] >= 0
        pool[tables["keep_to"][is_one]] = keys_values[tables["keep_from"][is_one]]


class TritonOperations:
    """The kernels of ``kernels.py``; under torch.compile norms stay PyTorch's, which it fuses with what is beside."""

    query_factor = math.log2(math.e)

    def __init__(self, head_size: int) -> None:
        if head_size % 16:
            raise ExecutorError(
                f"heads of {head_size} numbers: the attention kernel takes multiples of 16. Use another executor: "
                "serve.executor: onnxruntime"
            )
        try:
            from tritonrank_runtime.packed import attention, kernels
        except ImportError as error:
            raise ExecutorError(
                f"the attention kernel is written in OpenAI Triton, and {error.name} is not installed in {sys.prefix}: "
                f"pip install triton (PyTorch {torch.__version__} names the version that it was tested with)"
            ) from None
        self._attention, self._kernels, self._head_size = attention, kernels, head_size

    def prepare(
        self, tables: Mapping[str, Tensor], pool_rows: int, *, is_causal: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        layers = {"tiles": tables["tiles"], "chunks": tables["chunks"], "tile_rows": TILE_ROWS, "is_causal": is_causal}
        # A query of the last layer is no row of the launch, and sees all of its segment.
        last = {"tiles": tables["scored_tiles"], "chunks": tables["scored_chunks"], "tile_rows": SCORED_TILE_ROWS}
        return layers | {"head_size": self._head_size}, last | {"head_size": self._head_size}

    def attend(self, query: Tensor, keys_values: Tensor, pool: Tensor, view: dict[str, Any]) -> Tensor:
        return self._attention.attend(query, keys_values, pool, **view)

    def embed(self, tables: Mapping[str, Tensor], embeddings: Embeddings) -> Tensor:
        if torch.compiler.is_compiling():
            return plain_embed(tables, embeddings)
        return self._kernels.embed_norm(
            tables["token_ids"], tables["positions"], tables["types"], *embeddings[:3], *embeddings.norm
        )

    def add_norm(self, rows: Tensor, added: Tensor, norm: Norm) -> Tensor:
        if torch.compiler.is_compiling():
            return plain_norm(rows + added, norm)
        return self._kernels.add_norm(rows, added, *norm)

    def keep(self, keys_values: Tensor, pool: Tensor, tables: Mapping[str, Tensor]) -> None:
        self._kernels.keep(keys_values, pool, tables["keep_from"], tables["keep_to"])


def plain_embed(tables: Mapping[str, Tensor], embeddings: Embeddings) -> Tensor:
    """Normalized sums of embeddings; types beyond the table's last are its last."""
    types = tables["types"].clamp(max=embeddings.types.shape[0] - 1)
    summed = functional.embedding(tables["token_ids"], embeddings.words)
    summed = summed + functional.embedding(tables["positions"], embeddings.positions)
    return plain_norm(summed + functional.embedding(types, embeddings.types), embeddings.norm)


def plain_norm(rows: Tensor, norm: Norm) -> Tensor:
    return functional.layer_norm(rows, (rows.shape[-1],), norm.weight, norm.bias, norm.epsilon)


def _mask(tiles: Tensor, chunks: Tensor, queries: int, keys: int, pool_rows: int) -> Tensor:
    """Who sees whom, (queries, keys + pool_rows); see ``packing.py``."""
    in_span = _in_spans(tiles[:, 2], tiles[:, 3], max(keys, pool_rows))
    is_kept = tiles[:, 4:5] != 0
    in_either = torch.cat([in_span[:, :keys] & ~is_kept, in_span[:, :pool_rows] & is_kept], dim=1)
    seen = _in_spans(tiles[:, 0], tiles[:, 1], queries).float().T @ in_either.float()
    of_chunk = _in_spans(chunks[:, 2], chunks[:, 3], queries).float().T
    seen[:, :keys] += of_chunk @ _in_spans(chunks[:, 0], chunks[:, 1], keys).float()
    # A row of padding sees row 0, so that it is a number: nothing times what is none would be none.
    seen[:, 0] += seen.sum(dim=1) == 0
    return seen > 0


def _in_spans(starts: Tensor, ends: Tensor, rows: int) -> Tensor:
    """(spans, rows): whether a row lies in a span."""
    row = torch.arange(rows, device=starts.device)
    return (row >= starts[:, None]) & (row < ends[:, None])


OPERATIONS: dict[str, Callable[[int], EncoderOperations]] = {"triton": TritonOperations, "sdpa": PlainOperations}
"""An encoder's, by the name of their attention."""
Way = TypeVar("Way")


def operations_named(name: str, head_size: int, ways: Mapping[str, Callable[[int], Way]]) -> Way:
    """The way of that name.

    Args:
        name: of the attention.
        head_size: numbers in a head.
        ways: that there are.

    Raises:
        ExecutorError: there is none, or it cannot run here.
    """
    if name not in ways:
        raise ExecutorError(f"attention {name!r}: there is none of that name; known: {', '.join(ways)}")
    return ways[name](head_size)
