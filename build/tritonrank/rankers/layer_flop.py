"""What one layer of an encoder costs: the formula behind every GFLOP that this project tells."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def layer_flop(hidden: int, width: int, intermediate: int, tokens: ArrayLike, attended: ArrayLike) -> float:
    """Operations of a whole layer on some runs of tokens; a multiply-add is two.

    Per token 2 x (4 hidden x width + 2 hidden x intermediate) for the linear parts, and 4 x width per token that it
    attends to for both attention products. Padding, normalization and embeddings are not counted.

    Args:
        hidden: width of the residual stream.
        width: heads times head size; less than ``hidden`` where heads were cut.
        intermediate: inner width of the FFN.
        tokens: the length of each run.
        attended: to how many tokens each token of that run attends.
    """
    lengths: Any = np.asarray(tokens, dtype=np.float64)
    linear = 2 * (4 * hidden * width + 2 * hidden * intermediate)
    return float(linear * lengths.sum() + 4 * width * (lengths * np.asarray(attended, dtype=np.float64)).sum())
