"""Ways to compute attention over packed rows, behind one interface, so that they can be measured against each other.

``triton`` is the kernel of ``kernels.py``, and what serves. ``sdpa`` is PyTorch's own attention under a mask of all
rows by all rows: the reference for tests, and what a machine without OpenAI Triton computes with. ``flex`` and
``varlen`` are PyTorch's newer ways, which docs/gpu-engine.md compares.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tritonrank_runtime.engine import ExecutorError


class Attention(Protocol):
    """One way."""

    query_factor: float
    """what queries are multiplied by beside the scale"""

    def prepare(self, tiles: Tensor, chunks: Tensor, queries: int, keys: int, pool_rows: int) -> Any:
        """What the layers that have these tables share; see ``packing.py``."""
        ...

    def __call__(self, query: Tensor, keys_values: Tensor, pool: Tensor, view: Any) -> Tensor:
        """query (queries, width), keys_values and pool (rows, 2 * width) -> (queries, width)."""
        ...

    def keep(self, keys_values: Tensor, pool: Tensor, keep_from: Tensor, keep_to: Tensor) -> None:
        """Copy rows into the pool: row ``keep_from[i]`` to ``keep_to[i]``, none where that is negative."""
        ...


class SdpaAttention:
    """``scaled_dot_product_attention`` under a mask."""

    query_factor = 1.0

    def __init__(self, heads: int, head_size: int) -> None:
        self._heads, self._head_size = heads, head_size

    def prepare(self, tiles: Tensor, chunks: Tensor, queries: int, keys: int, pool_rows: int) -> Tensor:
        """The mask, (queries, keys + pool_rows): who sees whom."""
        is_query = _in_spans(tiles[:, 0], tiles[:, 1], queries)
        in_span = _in_spans(tiles[:, 2], tiles[:, 3], max(keys, pool_rows))
        is_kept = tiles[:, 4:5] != 0
        in_either = torch.cat([in_span[:, :keys] & ~is_kept, in_span[:, :pool_rows] & is_kept], dim=1)
        visible = is_query.float().T @ in_either.float()
        own = (
            _in_spans(chunks[:, 2], chunks[:, 3], queries).float().T
            @ _in_spans(chunks[:, 0], chunks[:, 1], keys).float()
        )
        visible[:, :keys] += own
        # A row of padding sees row 0, so that it is a number: nothing times what is none would be none.
        visible[:, 0] += visible.sum(dim=1) == 0
        return visible > 0

    def __call__(self, query: Tensor, keys_values: Tensor, pool: Tensor, view: Tensor) -> Tensor:
        key, value = torch.cat([keys_values, pool]).chunk(2, dim=1)
        mixed = functional.scaled_dot_product_attention(
            self._by_head(query), self._by_head(key), self._by_head(value), attn_mask=view, scale=1.0
        )
        return mixed.transpose(0, 1).flatten(1)

    def _by_head(self, rows: Tensor) -> Tensor:
        """(rows, width) -> (heads, rows, head_size)"""
        return rows.view(-1, self._heads, self._head_size).transpose(0, 1)

    def keep(self, keys_values: Tensor, pool: Tensor, keep_from: Tensor, keep_to: Tensor) -> None:
        is_one = keep_from >= 0
        pool[keep_to[is_one]] = keys_values[keep_from[is_one]]


def _in_spans(starts: Tensor, ends: Tensor, rows: int) -> Tensor:
    """(spans, rows): whether a row lies in a span."""
    row = torch.arange(rows, device=starts.device)
    return (row >= starts[:, None]) & (row < ends[:, None])


class _Maker(Protocol):
    def __call__(self, heads: int, head_size: int) -> Attention: ...


ATTENTIONS: dict[str, _Maker] = {"sdpa": SdpaAttention}
"""By the name that ``PackedNetwork`` takes."""


def attention_named(name: str, heads: int, head_size: int, device: torch.device) -> Attention:
    """The way of that name.

    Raises:
        ExecutorError: there is none, or it cannot run here.
    """
    if name not in ATTENTIONS:
        raise ExecutorError(f"attention {name!r}: there is none of that name; known: {', '.join(ATTENTIONS)}")
    return ATTENTIONS[name](heads, head_size)
