"""Tensors of different shapes side by side: the only place that pads, and the sizes that requests are padded to."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.item_text import TextError

PADDING = -1
"""Ends a shorter row of token ids where no mask says so: no vocabulary has a negative id."""


def side_by_side(
    tensors: Sequence[NDArray[Any]], filling: int = PADDING, shape: Sequence[int] = (), dtype: Any = np.int32
) -> NDArray[Any]:
    """Tensors as one, each in the corner of its place, which is as large as the largest of them.

    Args:
        tensors: with equally many axes; any number, none too where ``shape`` says how large a place is.
        filling: what the places hold beside them.
        shape: of a place at the least; by default it need not be larger than the tensors.
        dtype: of the whole.

    Returns:
        (tensors, ...the place's axes).
    """
    axes = len(shape) or tensors[0].ndim
    least = [*shape] or [0] * axes
    place = [max(least[axis], *(tensor.shape[axis] for tensor in tensors), 0) for axis in range(axes)]
    whole = np.full((len(tensors), *place), filling, dtype=dtype)
    for number, tensor in enumerate(tensors):
        whole[(number, *map(slice, tensor.shape))] = tensor
    return whole


@dataclass(frozen=True)
class Buckets:
    """The sizes that requests are padded to where an engine wants few shapes, ascending.

    Args:
        candidates: different candidates of a request; of a joint ranker its rows.
        tokens: of a candidate's row.
    """

    candidates: tuple[int, ...]
    tokens: tuple[int, ...]

    def shape(self, candidates: int, tokens: int) -> tuple[int, int]:
        """The smallest bucket that holds so many candidates of so many tokens.

        Raises:
            TextError: there is none.
        """
        if candidates > self.candidates[-1] or tokens > self.tokens[-1]:
            raise TextError(
                f"items: {candidates} different candidates of up to {tokens} tokens; the engine was built for "
                f"{self.candidates[-1]} of {self.tokens[-1]}"
            )
        return (
            self.candidates[bisect_left(self.candidates, candidates)],
            self.tokens[bisect_left(self.tokens, tokens)],
        )
