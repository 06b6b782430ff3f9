# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""The GPU's kernels, in OpenAI Triton, for what lies between two products; ``attention.py`` has that of attention.

Importing this imports ``triton``: PyTorch's builds for CUDA bring it. With TRITON_INTERPRET=1 in the environment before
that, kernels run in NumPy on any machine, which is how the tests prove them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NORM_ROWS = 4
"""Rows of one program that normalizes: one for each of its warps."""
COPY_ROWS = 16


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


def power_of_two(size: int) -> int:
    """The least that is not smaller; triton's own is a thing that torch.compile does not look into."""
    return 1 << (size - 1).bit_length()


def parts(size: int, most: int) -> int:
    return -(-size // most)


def add_norm(rows: Tensor, added: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer norm of the sum of two (rows, width)."""
    count, width = rows.shape
    out = torch.empty_like(rows)
    _add_norm[(parts(count, NORM_ROWS),)](
        rows,
        added,
        weight,
        bias,
        out,
        count,
        epsilon,
        width=width,
        padded_width=power_of_two(width),
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
    _embed_norm[(parts(count, NORM_ROWS),)](
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
        padded_width=power_of_two(width),
        block=NORM_ROWS,
        num_warps=4,
    )
    return out


def keep(keys_values: Tensor, pool: Tensor, keep_from: Tensor, keep_to: Tensor) -> None:
    """Copy rows of keys_values (rows, width) into pool (kept rows, width): ``keep_from[i]`` to ``keep_to[i]``, none
    where that is negative."""
    count, width = keep_from.shape[0], pool.shape[1]
    padded = min(power_of_two(width), 1024)
    _keep[(parts(count, COPY_ROWS), parts(width, padded))](
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
