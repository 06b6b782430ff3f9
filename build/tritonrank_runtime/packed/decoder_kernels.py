# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""What lies between two products of a packed decoder layer, in OpenAI Triton; all of it is FP32 inside.

Importing this imports ``triton``; see ``kernels.py``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritonrank_runtime.packed.kernels import parts, power_of_two

NORM_NUMBERS = 4_096
"""Of the rows that one program of four warps normalizes: more would not stay in its registers."""
TURN_ROWS = 16
GATE_NUMBERS = 1_024


@triton.jit
def _add_rms(
    hidden_pointer,
    added_pointer,
    weight_pointer,
    out_pointer,
    rows,
    epsilon,
    width: tl.constexpr,
    padded_width: tl.constexpr,
    block: tl.constexpr,
    has_added: tl.constexpr,
):
    row = tl.program_id(0) * block + tl.arange(0, block)
    column = tl.arange(0, padded_width)
    is_column = column < width
    place = row[:, None].to(tl.int64) * width + column[None, :]
    mask = (row < rows)[:, None] & is_column[None, :]
    hidden = tl.load(hidden_pointer + place, mask=mask, other=0.0)
    if has_added:
        hidden += tl.load(added_pointer + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(hidden_pointer + place, hidden, mask=mask)
    spread = tl.sqrt(tl.sum(hidden * hidden, 1) / width + epsilon)
    weight = tl.load(weight_pointer + column, mask=is_column, other=0.0)
    found = hidden * (1.0 / spread)[:, None] * weight[None, :]
    tl.store(out_pointer + place, found.to(out_pointer.dtype.element_ty), mask=mask)


@triton.jit
def _turn(
    rows_pointer,
    turns_pointer,
    weights_pointer,
    rows,
    rows_stride,
    query_heads,
    epsilon,
    head_size: tl.constexpr,
    padded_half: tl.constexpr,
    block: tl.constexpr,
    is_normed: tl.constexpr,
):
    half: tl.constexpr = head_size // 2
    head = tl.program_id(1)
    row = tl.program_id(0) * block + tl.arange(0, block)
    size = tl.arange(0, padded_half)
    is_size = size < half
    mask = (row < rows)[:, None] & is_size[None, :]
    place = rows_pointer + row[:, None].to(tl.int64) * rows_stride + head * head_size + size[None, :]
    first = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=mask, other=0.0).to(tl.float32)
    if is_normed:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        shrink = 1.0 / tl.sqrt(squares / head_size + epsilon)
        first = first * shrink[:, None]
        second = second * shrink[:, None]
    weight_place = weights_pointer + (head >= query_heads).to(tl.int32) * head_size + size
    first = first * tl.load(weight_place, mask=is_size, other=0.0)[None, :]
    second = second * tl.load(weight_place + half, mask=is_size, other=0.0)[None, :]
    turn_place = turns_pointer + row[:, None].to(tl.int64) * head_size + size[None, :]
    cosine = tl.load(turn_place, mask=mask, other=0.0)
    sine = tl.load(turn_place + half, mask=mask, other=0.0)
    tl.store(place, (first * cosine - second * sine).to(rows_pointer.dtype.element_ty), mask=mask)
    tl.store(place + half, (second * cosine + first * sine).to(rows_pointer.dtype.element_ty), mask=mask)


@triton.jit
def _gated(projected_pointer, out_pointer, inner, block: tl.constexpr, activation: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    mask = column < inner
    place = projected_pointer + row * 2 * inner + column
    gate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    passed = tl.load(place + inner, mask=mask, other=0.0).to(tl.float32)
    if activation == "silu":
        opened = gate * tl.sigmoid(gate)
    elif activation == "gelu_tanh":  # 1 + tanh(x) is 2 sigmoid(2 x)
        opened = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    elif activation == "gelu":
        opened = 0.5 * gate * (1.0 + tl.erf(0.7071067811865476 * gate))
    else:
        opened = tl.maximum(gate, 0.0)
    tl.store(out_pointer + row * inner + column, (opened * passed).to(out_pointer.dtype.element_ty), mask=mask)


def add_rms(hidden: Tensor, added: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Add ``added`` to ``hidden`` (rows, width), FP32, in place -> the root-mean-square norm of it."""
    count, width = hidden.shape
    out = torch.empty(count, width, dtype=dtype, device=hidden.device)
    padded = power_of_two(width)
    block = max(1, NORM_NUMBERS // padded)
    _add_rms[(parts(count, block),)](
        hidden,
        hidden if added is None else added,
        weight,
        out,
        count,
        epsilon,
        width=width,
        padded_width=padded,
        block=block,
        has_added=added is not None,
        num_warps=4 if padded <= NORM_NUMBERS else 8,
    )
    return out


def turn(rows: Tensor, query_heads: int, turns: Tensor, weights: Tensor, epsilon: float | None) -> None:
    """As ``DecoderOperations.turn``: norm, weights and rotation of heads (rows, heads * head_size), in place."""
    count, head_size = turns.shape
    _turn[(parts(count, TURN_ROWS), rows.shape[1] // head_size)](
        rows,
        turns,
        weights,
        count,
        rows.stride(0),
        query_heads,
        epsilon or 0.0,
        head_size=head_size,
        padded_half=power_of_two(head_size // 2),
        block=TURN_ROWS,
        is_normed=epsilon is not None,
        num_warps=4,
    )


def gated(projected: Tensor, activation: str) -> Tensor:
    """(rows, 2 * inner), the gate before what passes it -> (rows, inner)."""
    count, inner = projected.shape[0], projected.shape[1] // 2
    out = torch.empty(count, inner, dtype=projected.dtype, device=projected.device)
    _gated[(count, parts(inner, GATE_NUMBERS))](
        projected, out, inner, block=GATE_NUMBERS, activation=activation, num_warps=4
    )
    return out
