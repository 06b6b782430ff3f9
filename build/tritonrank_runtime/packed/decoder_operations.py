"""What a packed decoder layer does beside its products, as ``operations.py`` has it for encoders."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tritonrank_runtime.network import make_activation
from tritonrank_runtime.packed.operations import Operations, PlainOperations, TritonOperations

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
"""That a gate can have; ``PLAIN_NAMES`` says what configs call them."""
PLAIN_NAMES = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


class RmsNorm(NamedTuple):
    """A root-mean-square norm: weights (width,), FP32."""

    weight: Tensor
    epsilon: float


class Turning(NamedTuple):
    """What becomes of a head's queries and keys before they meet.

    Args:
        weights: (2, head_size), FP32: what queries are multiplied by, and keys.
        epsilon: of their norm; None: they have none.
    """

    weights: Tensor
    epsilon: float | None


class DecoderOperations(Operations, Protocol):
    """One way to compute them."""

    def add_rms(self, hidden: Tensor, added: Tensor | None, norm: RmsNorm, dtype: torch.dtype) -> Tensor:
        """Add to the residual stream (rows, width), FP32, in place; its norm in another type."""
        ...

    def turn(self, rows: Tensor, query_heads: int, turns: Tensor, turning: Turning) -> None:
        """Norm, weights and rotation of heads, in place.

        Args:
            rows: (rows, heads * head_size), queries' heads before keys'; rows may lie apart.
            query_heads: how many of the heads are queries'.
            turns: (rows, head_size), FP32: cosines of a row's angles, then their sines.
            turning: see there.
        """
        ...

    def gated(self, projected: Tensor, activation: str) -> Tensor:
        """projected (rows, 2 * inner), the gate before what passes it -> (rows, inner)."""
        ...


class PlainDecoderOperations(PlainOperations):
    """PyTorch alone."""

    def add_rms(self, hidden: Tensor, added: Tensor | None, norm: RmsNorm, dtype: torch.dtype) -> Tensor:
        if added is not None:
            hidden += added
        return (_normed(hidden, norm.epsilon) * norm.weight).to(dtype)

    def turn(self, rows: Tensor, query_heads: int, turns: Tensor, turning: Turning) -> None:
        size = self._head_size
        heads = rows.view(rows.shape[0], -1, size)
        exact = heads.float()
        if turning.epsilon is not None:
            exact = _normed(exact, turning.epsilon)
        kinds = [query_heads, heads.shape[1] - query_heads]
        exact = exact * turning.weights.repeat_interleave(torch.tensor(kinds, device=rows.device), dim=0)
        first, second = exact.chunk(2, dim=-1)
        cosine, sine = turns[:, None].chunk(2, dim=-1)
        heads.copy_(torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1))

    def gated(self, projected: Tensor, activation: str) -> Tensor:
        gate, inner = projected.float().chunk(2, dim=1)
        opened = (
            functional.gelu(gate, approximate="tanh") if activation == "gelu_tanh" else _activated(gate, activation)
        )
        return (opened * inner).to(projected.dtype)


class TritonDecoderOperations(TritonOperations):
    """The kernels of ``attention.py`` and ``decoder_kernels.py``."""

    def __init__(self, head_size: int) -> None:
        super().__init__(head_size)
        from tritonrank_runtime.packed import decoder_kernels

        self._own = decoder_kernels

    def add_rms(self, hidden: Tensor, added: Tensor | None, norm: RmsNorm, dtype: torch.dtype) -> Tensor:
        return self._own.add_rms(hidden, added, *norm, dtype)

    def turn(self, rows: Tensor, query_heads: int, turns: Tensor, turning: Turning) -> None:
        self._own.turn(rows, query_heads, turns, *turning)

    def gated(self, projected: Tensor, activation: str) -> Tensor:
        return self._own.gated(projected, activation)


DECODER_OPERATIONS: dict[str, Callable[[int], DecoderOperations]] = {
    "triton": TritonDecoderOperations,
    "sdpa": PlainDecoderOperations,
}
"""By the name of their attention."""


def _normed(exact: Tensor, epsilon: float) -> Tensor:
    return exact * torch.rsqrt(exact.pow(2).mean(dim=-1, keepdim=True) + epsilon)


def _activated(gate: Tensor, activation: str) -> Tensor:
    opened: Tensor = make_activation(activation)(gate)
    return opened
