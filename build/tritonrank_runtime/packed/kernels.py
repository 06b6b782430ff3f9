# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""The GPU's kernels, in OpenAI Triton: attention over packed rows, and what lies between two products.

Importing this imports ``triton``: PyTorch's builds for CUDA bring it. With TRITON_INTERPRET=1 in the environment before
that, kernels run in NumPy on any machine, which is how the tests prove them.

``attend`` is one program per tile and head. It takes the tile's queries into registers, goes over the span that all
its rows see, then over the chunks of the tile's candidates, and keeps the softmax as it goes: the largest score m so
far, the sum l of exponentials, and the weighted values, both rescaled when m grows (Milakov and Gimelshein,
arXiv:1805.02867; Dao et al., arXiv:2205.14135). Exponentials are to base 2, which is one instruction; log2(e) is in the
query's weights. A chunk changes nothing for a row that does not see it, to the last bit: its m stays, so the factor is
2^0, and what is added is 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonrank_runtime.packed.packing import CHUNK_FIELDS, CHUNK_KEYS, TILE_FIELDS

SPAN_KEYS = 64
"""Keys of a span in one step."""
NORM_ROWS = 4
"""Rows of one program that normalizes: one for each of its warps."""
COPY_ROWS = 16
TILE_STEP, CHUNK_STEP = tl.constexpr(TILE_FIELDS), tl.constexpr(CHUNK_FIELDS)
NOTHING = tl.constexpr(-1e30)
"""A score that no product gives: lower than any, and a number, since nothing less nothing must be 0."""


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
    width: tl.constexpr,
    head_size: tl.constexpr,
    padded_size: tl.constexpr,
    tile_rows: tl.constexpr,
    span_keys: tl.constexpr,
    chunk_keys: tl.constexpr,
):
    head = tl.program_id(1)
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
    row = query_start + tl.arange(0, tile_rows)
    is_row = row < query_end
    query_place = query_pointer + row[:, None].to(tl.int64) * query_stride + head * head_size + size[None, :]
    query = tl.load(query_place, mask=is_row[:, None] & is_real[None, :], other=0.0)
    largest = tl.full([tile_rows], NOTHING, tl.float32)
    total = tl.zeros([tile_rows], tl.float32)
    mixed = tl.zeros([tile_rows, padded_size], tl.float32)

    span_pointer = keys_values_pointer
    span_stride = keys_values_stride
    if is_kept != 0:
        span_pointer = pool_pointer
        span_stride = pool_stride
    span_pointer += context_start.to(tl.int64) * span_stride + head * head_size
    span = context_end - context_start
    for start in range(0, span, span_keys):
        column = start + tl.arange(0, span_keys)
        is_column = column < span
        key_place = span_pointer + column[None, :] * span_stride + size[:, None]
        key = tl.load(key_place, mask=is_column[None, :] & is_real[:, None], other=0.0)
        scores = tl.where(is_column[None, :], tl.dot(query, key, input_precision="ieee"), NOTHING)
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        value_place = span_pointer + width + column[:, None] * span_stride + size[None, :]
        value = tl.load(value_place, mask=is_column[:, None] & is_real[None, :], other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        largest = larger

    for number in range(tl.load(tile + 5), tl.load(tile + 6)):
        chunk = chunks_pointer + number * CHUNK_STEP
        key_start = tl.load(chunk)
        keys = tl.load(chunk + 1) - key_start
        is_own = (row >= tl.load(chunk + 2)) & (row < tl.load(chunk + 3))
        chunk_pointer = keys_values_pointer + key_start.to(tl.int64) * keys_values_stride + head * head_size
        column = tl.arange(0, chunk_keys)
        is_column = column < keys
        key_place = chunk_pointer + column[None, :] * keys_values_stride + size[:, None]
        key = tl.load(key_place, mask=is_column[None, :] & is_real[:, None], other=0.0)
        is_seen = is_own[:, None] & is_column[None, :]
        scores = tl.where(is_seen, tl.dot(query, key, input_precision="ieee"), NOTHING)
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.where(is_seen, tl.exp2(scores - larger[:, None]), 0.0)
        shrink = tl.exp2(largest - larger)
        value_place = chunk_pointer + width + column[:, None] * keys_values_stride + size[None, :]
        value = tl.load(value_place, mask=is_column[:, None] & is_real[None, :], other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        largest = larger

    out_place = out_pointer + row[:, None].to(tl.int64) * out_stride + head * head_size + size[None, :]
    found = (mixed / total[:, None]).to(out_pointer.dtype.element_ty)
    tl.store(out_place, found, mask=is_row[:, None] & is_real[None, :])


@triton.jit
def _normalized(summed, weight_pointer, bias_pointer, column, is_column, epsilon, width: tl.constexpr):
    """Layer norm of rows in FP32; ``summed`` is 0 beside the columns."""
    mean = tl.sum(summed, 1) / width
    centred = tl.where(is_column[None, :], summed - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / width
    weight = tl.load(weight_pointer + column, mask=is_column, other=0.0).to(tl.float32)
    bias = tl.load(bias_pointer + column, mask=is_column, other=0.0).to(tl.float32)
    return centred * (1.0 / tl.sqrt(variance + epsilon))[:, None] * weight[None, :] + bias[None, :]


@triton.jit
def _add_norm(
    rows_pointer,
    added_pointer,
    weight_pointer,
    bias_pointer,
    out_pointer,
    rows,
    epsilon,
    width: tl.constexpr,
    padded_width: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0) * block + tl.arange(0, block)
    column = tl.arange(0, padded_width)
    is_column = column < width
    place = row[:, None].to(tl.int64) * width + column[None, :]
    mask = (row < rows)[:, None] & is_column[None, :]
    summed = tl.load(rows_pointer + place, mask=mask, other=0.0).to(tl.float32)
    summed += tl.load(added_pointer + place, mask=mask, other=0.0).to(tl.float32)
    found = _normalized(summed, weight_pointer, bias_pointer, column, is_column, epsilon, width)
    tl.store(out_pointer + place, found.to(out_pointer.dtype.element_ty), mask=mask)


@triton.jit
def _embed_norm(
    ids_pointer,
    positions_pointer,
    types_pointer,
    words_pointer,
    places_pointer,
    kinds_pointer,
    weight_pointer,
    bias_pointer,
    out_pointer,
    rows,
    last_kind,
    epsilon,
    width: tl.constexpr,
    padded_width: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0) * block + tl.arange(0, block)
    is_row = row < rows
    column = tl.arange(0, padded_width)
    is_column = column < width
    mask = is_row[:, None] & is_column[None, :]
    token = tl.load(ids_pointer + row, mask=is_row, other=0).to(tl.int64)
    summed = tl.load(words_pointer + token[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
    position = tl.load(positions_pointer + row, mask=is_row, other=0).to(tl.int64)
    summed += tl.load(places_pointer + position[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
    kind = tl.minimum(tl.load(types_pointer + row, mask=is_row, other=0), last_kind)
    summed += tl.load(kinds_pointer + kind[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
    found = _normalized(summed, weight_pointer, bias_pointer, column, is_column, epsilon, width)
    place = row[:, None].to(tl.int64) * width + column[None, :]
    tl.store(out_pointer + place, found.to(out_pointer.dtype.element_ty), mask=mask)


@triton.jit
def _keep(
    rows_pointer,
    pool_pointer,
    from_pointer,
    to_pointer,
    rows,
    rows_stride,
    width: tl.constexpr,
    padded_width: tl.constexpr,
    block: tl.constexpr,
):
    number = tl.program_id(0) * block + tl.arange(0, block)
    source = tl.load(from_pointer + number, mask=number < rows, other=-1)
    target = tl.load(to_pointer + number, mask=source >= 0, other=0).to(tl.int64)
    column = tl.program_id(1) * padded_width + tl.arange(0, padded_width)
    mask = (source >= 0)[:, None] & (column < width)[None, :]
    copied = tl.load(rows_pointer + source[:, None].to(tl.int64) * rows_stride + column[None, :], mask=mask, other=0.0)
    tl.store(pool_pointer + target[:, None] * width + column[None, :], copied, mask=mask)


def _power_of_two(size: int) -> int:
    """The least that is not smaller; triton's own is a thing that torch.compile does not look into."""
    return 1 << (size - 1).bit_length()


def _parts(size: int, most: int) -> int:
    return -(-size // most)


def attend(
    query: Tensor,
    keys_values: Tensor,
    pool: Tensor,
    tiles: Tensor,
    chunks: Tensor,
    head_size: int,
    tile_rows: int,
    out: Tensor | None = None,
) -> Tensor:
    """Attention as the tables say, base 2: queries come scaled by log2(e) as well.

    Args:
        query: (queries, heads * head_size); rows may lie apart.
        keys_values: (rows, 2 * heads * head_size), keys before values; rows may lie apart.
        pool: (kept rows, 2 * heads * head_size).
        tiles, chunks: see ``packing.py``.
        head_size: a multiple of 16.
        tile_rows: rows of a tile at the most; a power of two from 16.
        out: where the result goes, (queries, heads * head_size); queries of no tile are not written.
    """
    queries, width = query.shape
    out = torch.empty(queries, width, dtype=query.dtype, device=query.device) if out is None else out
    _attend[(tiles.shape[0], width // head_size)](
        query,
        keys_values,
        pool,
        out,
        tiles,
        chunks,
        query.stride(0),
        keys_values.stride(0),
        2 * width,
        out.stride(0),
        width=width,
        head_size=head_size,
        padded_size=_power_of_two(head_size),
        tile_rows=tile_rows,
        span_keys=SPAN_KEYS,
        chunk_keys=CHUNK_KEYS,
        num_warps=4 if tile_rows >= 64 else 1,
    )
    return out


def add_norm(rows: Tensor, added: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer norm of the sum of two (rows, width)."""
    count, width = rows.shape
    out = torch.empty_like(rows)
    _add_norm[(_parts(count, NORM_ROWS),)](
        rows,
        added,
        weight,
        bias,
        out,
        count,
        epsilon,
        width=width,
        padded_width=_power_of_two(width),
        block=NORM_ROWS,
        num_warps=4,
    )
    return out


def embed_norm(
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    words: Tensor,
    places: Tensor,
    kinds: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
) -> Tensor:
    """Layer norm of the sum of three embeddings: (rows,) ids each, and tables (ids, width); types beyond the table's
    last are its last."""
    count, width = ids.shape[0], words.shape[1]
    out = torch.empty(count, width, dtype=words.dtype, device=words.device)
    _embed_norm[(_parts(count, NORM_ROWS),)](
        ids,
        positions,
        types,
        words,
        places,
        kinds,
        weight,
        bias,
        out,
        count,
        kinds.shape[0] - 1,
        epsilon,
        width=width,
        padded_width=_power_of_two(width),
        block=NORM_ROWS,
        num_warps=4,
    )
    return out


def keep(keys_values: Tensor, pool: Tensor, keep_from: Tensor, keep_to: Tensor) -> None:
    """Copy rows of keys_values (rows, width) into pool (kept rows, width): ``keep_from[i]`` to ``keep_to[i]``, none
    where that is negative."""
    count, width = keep_from.shape[0], pool.shape[1]
    padded = min(_power_of_two(width), 1024)
    _keep[(_parts(count, COPY_ROWS), _parts(width, padded))](
        keys_values,
        pool,
        keep_from,
        keep_to,
        count,
        keys_values.stride(0),
        width=width,
        padded_width=padded,
        block=COPY_ROWS,
        num_warps=4,
    )
