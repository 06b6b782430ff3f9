# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""Attention over packed rows as one kernel, in OpenAI Triton.

``attend`` is one program per tile and few heads that share a key head; their rows lie one behind the other, so that
what is read of keys and values serves all of them. It takes the tile's queries into registers, goes over the span that
all its rows see, then over the chunks of the tile's candidates, and keeps the softmax as it goes: the largest score m
so far, the sum l of exponentials, and the weighted values, both rescaled when m grows (Milakov and Gimelshein,
arXiv:1805.02867; Dao et al., arXiv:2205.14135). Exponentials are to base 2, which is one instruction; log2(e) is in the
query's weights. A chunk changes nothing for a row that does not see it, to the last bit: its m stays, so the factor is
2^0, and what is added is 0. In a decoder that holds for keys behind a row, too.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonrank_runtime.packed.kernels import power_of_two
from tritonrank_runtime.packed.packing import CHUNK_FIELDS, CHUNK_KEYS, TILE_FIELDS

TILE_STEP, CHUNK_STEP = tl.constexpr(TILE_FIELDS), tl.constexpr(CHUNK_FIELDS)
NOTHING = tl.constexpr(-1e30)
"""A score that no product gives: lower than any, and a number, since nothing less nothing must be 0."""


@dataclass(frozen=True)
class Blocks:
    """How attention is cut.

    Args:
        rows: of one program at the most, those of all its heads together; a power of two.
        span_keys: keys of a span in one step; a power of two.
        stages: steps whose keys and values are on their way at once.
    """

    rows: int = 128
    span_keys: int = 64
    stages: int = 3

    def heads(self, tile_rows: int, group: int) -> int:
        """Of one program: as many of a key head's as fit and divide its group."""
        heads = 1
        while 2 * heads * tile_rows <= self.rows and group % (2 * heads) == 0:
            heads *= 2
        return heads


BLOCKS = Blocks()


@triton.jit
def _step(
    query,
    keys_pointer,
    stride,
    key_width: tl.constexpr,
    column,
    is_column,
    is_seen,
    size,
    is_real,
    largest,
    total,
    mixed,
    is_masked: tl.constexpr,
):
    """Some keys and their values: what the softmax is after them."""
    key_place = keys_pointer + column[None, :] * stride + size[:, None]
    value_place = keys_pointer + key_width + column[:, None] * stride + size[None, :]
    if is_masked:
        key = tl.load(key_place, mask=is_column[None, :] & is_real[:, None], other=0.0)
        scores = tl.where(is_seen, tl.dot(query, key, input_precision="ieee"), NOTHING)
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.where(is_seen, tl.exp2(scores - larger[:, None]), 0.0)
        value = tl.load(value_place, mask=is_column[:, None] & is_real[None, :], other=0.0)
    else:
        key = tl.load(key_place, mask=is_real[:, None], other=0.0)
        scores = tl.dot(query, key, input_precision="ieee")
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        value = tl.load(value_place, mask=is_real[None, :], other=0.0)
    shrink = tl.exp2(largest - larger)
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None]
    mixed += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return larger, total, mixed


@triton.jit
def _attend(
    query_pointer,
    keys_values_pointer,
    pool_pointer,
    out_pointer,
    tiles_pointer,
    chunks_pointer,
    query_stride,
    keys_values_stride,
    pool_stride,
    out_stride,
    key_width: tl.constexpr,
    group: tl.constexpr,
    heads: tl.constexpr,
    head_size: tl.constexpr,
    padded_size: tl.constexpr,
    tile_rows: tl.constexpr,
    span_keys: tl.constexpr,
    chunk_keys: tl.constexpr,
    is_causal: tl.constexpr,
):
    first_head = tl.program_id(1) * heads
    key_head = first_head // group
    tile = tiles_pointer + tl.program_id(0) * TILE_STEP
    query_start = tl.load(tile)
    query_end = tl.load(tile + 1)
    if query_start >= query_end:  # a launch has as many tiles as its bucket
        return
    context_start = tl.load(tile + 2)
    context_end = tl.load(tile + 3)
    is_kept = tl.load(tile + 4)
    size = tl.arange(0, padded_size)
    is_real = size < head_size
    member = tl.arange(0, tile_rows * heads)
    row = query_start + member % tile_rows
    head = first_head + member // tile_rows
    is_row = row < query_end
    is_place = is_row[:, None] & is_real[None, :]
    query_place = query_pointer + row[:, None].to(tl.int64) * query_stride + (head * head_size)[:, None] + size[None, :]
    query = tl.load(query_place, mask=is_place, other=0.0)
    largest = tl.full([tile_rows * heads], NOTHING, tl.float32)
    total = tl.zeros([tile_rows * heads], tl.float32)
    mixed = tl.zeros([tile_rows * heads, padded_size], tl.float32)

    span_pointer = keys_values_pointer
    span_stride = keys_values_stride
    if is_kept != 0:
        span_pointer = pool_pointer
        span_stride = pool_stride
    span_pointer += context_start.to(tl.int64) * span_stride + key_head * head_size
    span = context_end - context_start
    seen_by_all = span
    if is_causal:  # noqa: SIM102 - one is known when the kernel is compiled, the other when it runs
        if is_kept == 0:
            seen_by_all = tl.minimum(span, query_start + 1 - context_start)
    whole = seen_by_all // span_keys * span_keys
    for start in range(0, whole, span_keys):
        column = start + tl.arange(0, span_keys)
        largest, total, mixed = _step(
            query,
            span_pointer,
            span_stride,
            key_width,
            column,
            column,
            column,
            size,
            is_real,
            largest,
            total,
            mixed,
            False,
        )
    for start in range(whole, span, span_keys):
        column = start + tl.arange(0, span_keys)
        is_column = column < span
        is_seen = is_column[None, :]
        if is_causal:
            is_seen = is_seen & ((column[None, :] < seen_by_all) | (context_start + column[None, :] <= row[:, None]))
        largest, total, mixed = _step(
            query,
            span_pointer,
            span_stride,
            key_width,
            column,
            is_column,
            is_seen,
            size,
            is_real,
            largest,
            total,
            mixed,
            True,
        )

    for number in range(tl.load(tile + 5), tl.load(tile + 6)):
        chunk = chunks_pointer + number * CHUNK_STEP
        key_start = tl.load(chunk)
        keys = tl.load(chunk + 1) - key_start
        is_own = (row >= tl.load(chunk + 2)) & (row < tl.load(chunk + 3))
        chunk_pointer = keys_values_pointer + key_start.to(tl.int64) * keys_values_stride + key_head * head_size
        column = tl.arange(0, chunk_keys)
        is_column = column < keys
        is_seen = is_own[:, None] & is_column[None, :]
        if is_causal:
            is_seen = is_seen & (key_start + column[None, :] <= row[:, None])
        largest, total, mixed = _step(
            query,
            chunk_pointer,
            keys_values_stride,
            key_width,
            column,
            is_column,
            is_seen,
            size,
            is_real,
            largest,
            total,
            mixed,
            True,
        )

    out_place = out_pointer + row[:, None].to(tl.int64) * out_stride + (head * head_size)[:, None] + size[None, :]
    found = (mixed / total[:, None]).to(out_pointer.dtype.element_ty)
    tl.store(out_place, found, mask=is_place)


def attend(
    query: Tensor,
    keys_values: Tensor,
    pool: Tensor,
    tiles: Tensor,
    chunks: Tensor,
    head_size: int,
    tile_rows: int,
    out: Tensor | None = None,
    *,
    is_causal: bool = False,
    blocks: Blocks = BLOCKS,
) -> Tensor:
    """Attention as the tables say, base 2: queries come scaled by log2(e) as well.

    Args:
        query: (queries, heads * head_size); rows may lie apart.
        keys_values: (rows, 2 * key heads * head_size), keys before values; rows may lie apart. A key head serves
            equally many heads, which follow each other.
        pool: (kept rows, 2 * key heads * head_size).
        tiles, chunks: see ``packing.py``.
        head_size: a multiple of 16.
        tile_rows: rows of a tile at the most; a power of two from 16.
        out: where the result goes, (queries, heads * head_size); queries of no tile are not written.
        is_causal: whether a query, whose row is its place, sees no key of a later row.
        blocks: how it is cut.
    """
    queries, width = query.shape
    key_width = keys_values.shape[1] // 2
    group = width // key_width
    heads = blocks.heads(tile_rows, group)
    out = torch.empty(queries, width, dtype=query.dtype, device=query.device) if out is None else out
    _attend[(tiles.shape[0], width // head_size // heads)](
        query,
        keys_values,
        pool,
        out,
        tiles,
        chunks,
        query.stride(0),
        keys_values.stride(0),
        2 * key_width,
        out.stride(0),
        key_width=key_width,
        group=group,
        heads=heads,
        head_size=head_size,
        padded_size=power_of_two(head_size),
        tile_rows=tile_rows,
        span_keys=blocks.span_keys,
        chunk_keys=CHUNK_KEYS,
        is_causal=is_causal,
        num_warps=_warps(tile_rows * heads),
        num_stages=blocks.stages,
    )
    return out


def _warps(rows: int) -> int:
    """Of one program: four share the products of 64 rows."""
    return max(1, rows // 16)
