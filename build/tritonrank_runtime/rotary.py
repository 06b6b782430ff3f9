"""Rotary positions: each pair of a head's numbers is turned by an angle that grows with the token's position, so that
the product of a query and a key depends on how far apart they are (Su et al., RoFormer, arXiv:2104.09864).

Angles are computed where they are needed, in FP32: they are few, and tables for the positions that large decoders
allow would be as large as a layer.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Turns = tuple[Tensor, Tensor]
"""Cosine and sine of each token's angles: (sequences, tokens, 1, head_size / 2), the same for all heads."""
SCALINGS = ("linear", "llama3")
"""Ways of stretching positions that are known here, by ``rope_type``; a config without one stretches nothing."""


def turns(positions: Tensor, head_size: int, theta: float, scaling: Mapping[str, Any] | None, dtype: Any) -> Turns:
    """Cosine and sine for these positions.

    Args:
        positions: (sequences, tokens).
        head_size: numbers of one head; even.
        theta: the base of the frequencies.
        scaling: None, or ``rope_type`` with its settings as transformers' configs name them.
        dtype: of the answer.
    """
    angles = positions[:, :, None, None].float() * frequencies(head_size, theta, scaling, positions.device)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def frequencies(head_size: int, theta: float, scaling: Mapping[str, Any] | None, device: Any = None) -> Tensor:
    """Radians per position of each pair: (head_size / 2,).

    ``llama3`` leaves short waves as they are, stretches those that are longer than the original context by ``factor``,
    and passes from one to the other in between (transformers' ``modeling_rope_utils`` documents its four settings).
    """
    steps = torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size
    plain: Tensor = 1.0 / torch.pow(theta, steps)
    if scaling is None:
        return plain
    if scaling["rope_type"] == "linear":
        return plain.div(scaling["factor"])
    original, low, high = (
        scaling[name] for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    waves = original * plain / (2 * math.pi)  # of each pair in the original context
    kept = ((waves - low) / (high - low)).clamp(0.0, 1.0)
    mixed: Tensor = kept * plain + (1.0 - kept) * plain / scaling["factor"]
    return mixed


def turned(rows: Tensor, by: Turns) -> Tensor:
    """rows (sequences, tokens, heads, head_size), each turned as its position says."""
    cosine, sine = by
    first, second = rows.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
