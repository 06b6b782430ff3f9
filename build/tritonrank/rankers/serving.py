"""How a ranker is served, for whoever writes configs: a recipe's serve section, or a plain object with the same names.

Apart from the recipe, because a machine that serves has no library to check one with.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from tritonrank.recipe import ServeSettings

QUEUE_DELAY_US = 0
"""Microseconds that a request waits for batch mates: none. What waits anyway is batched."""


@dataclass(frozen=True)
class Serving:
    """What the configs take from a recipe's serve section, for machines that have no library to check one with."""

    max_candidates: int
    deadline_ms: int
    queue_share: float
    queue_requests: int
    rows_per_batch: int
    context_cache_mb: int
    instances: int | Literal["auto"]
    threads: int | Literal["auto"]
    executor: str
    device: str
    context_cache_dtype: str = "float32"


BITS = {"float32": 32, "float16": 16, "int8": 8}
"""Of the number formats in which keys and values of contexts are kept."""


AnyServing: TypeAlias = "ServeSettings | Serving"


def kept_bits(settings: AnyServing) -> int:
    """Bits that a number of kept keys and values takes."""
    return BITS[settings.context_cache_dtype]
