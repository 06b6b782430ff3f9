"""Times in buckets: counts that several gateways may add up, and what can be said of a quantile from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tritonrank.serve.rollout.confidence import Bounds, is_no_mean


@dataclass(frozen=True)
class Histogram:
    """How many observations lie between the bounds.

    Attributes:
        bounds: upper ones in seconds, rising.
        counts: of each bucket alone, one more than bounds; the last one has no upper bound.
    """

    bounds: Sequence[float]
    counts: Sequence[float]

    @property
    def count(self) -> float:
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Interpolated within its bucket; None of nothing, and the largest bound where it lies beyond."""
        wanted, least, below = share * self.count, 0.0, 0.0
        for most, inside in zip(self.bounds, self.counts, strict=False):
            if inside and below + inside >= wanted:
                return least + (most - least) * (wanted - below) / inside
            least, below = most, below + inside
        return least if self.count else None

    def quantile_bounds(self, share: float, error: float) -> Bounds:
        """Where the quantile lies for certain, at whichever look: one of the bounds to each side.

        A bound ``t`` is below the quantile when more than ``1 - share`` of all observations are above ``t``. Of all
        such claims the one at the first bound past the true quantile is the first that can be wrong, so that no
        correction for the number of buckets is needed.
        """
        low, above, count = 0.0, self.count, self.count
        for bound, inside in zip(self.bounds, self.counts, strict=False):
            above -= inside
            if count and is_no_mean(1 - share, above, count, error):
                if above <= (1 - share) * count:
                    return Bounds(low, bound)
                low = bound
        return Bounds(low, math.inf)
