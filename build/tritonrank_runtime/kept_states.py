"""Keys and values in fewer bits than they are computed in, for users who may return: half or a quarter of the memory.

INT8 has a scale of its own for each number of a key over all tokens, and for each token's values: what is far from
the rest in keys is so at the same places of every token, in values at single tokens (KIVI, Liu et al.,
arXiv:2402.02750). What goes to the next graph is FP32 again, and the same whether it was kept or has just been
computed: a score must not depend on who asked before.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.engine import Feed

EXACT_BITS = 32
KEPT_BITS = (EXACT_BITS, 16, 8)
"""What a number of keys and values may take: FP32, FP16, INT8."""
_TOKENS, _NUMBERS = 2, 3
"""Axes of keys and values: (layers, heads, tokens, head size)."""


@dataclass(frozen=True)
class KeptStates:
    """How the keys and values of a context are kept.

    Args:
        keys: the name of the tensor whose scales go along tokens; every other's go along the numbers of a token.
        bits: one of KEPT_BITS.
    """

    keys: str
    bits: int

    def kept(self, entry: Feed) -> Feed:
        """What is kept of an entry; tensors that are not FP32 (a rank's own states, say) stay as they are."""
        kept: Feed = {}
        for name, tensor in entry.items():
            if self.bits == EXACT_BITS or getattr(tensor, "dtype", None) != np.float32:
                kept[name] = tensor
            elif self.bits == 16:
                kept[name] = tensor.astype(np.float16)
            else:
                kept[name], kept[_scale_of(name)] = _rounded(tensor, _TOKENS if name == self.keys else _NUMBERS)
        return kept

    def restored(self, kept: Feed) -> Feed:
        """The entry again, FP32."""
        scales = {name for name in kept if _scale_of(name) in kept}
        return {
            name: np.multiply(tensor, kept[_scale_of(name)], dtype=np.float32) if name in scales else _widened(tensor)
            for name, tensor in kept.items()
            if not name.endswith(_SCALE)
        }


_SCALE = "/scale"


def _scale_of(name: str) -> str:
    return name + _SCALE


def _rounded(tensor: NDArray[Any], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """INT8 numbers, and what they are multiplied by: one scale for all that lies along an axis."""
    largest = np.abs(tensor).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(tensor / scale).astype(np.int8), scale


def _widened(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor
