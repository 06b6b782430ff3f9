"""How a fleet's size follows a wish: Kubernetes' HorizontalPodAutoscaler, and its reading of CPU.

Both ways of scaling go through the same autoscaler with its defaults (autoscaling/v2: a look every 15 s, a tolerance of
10%, up by at most 100% or four replicas in 15 s, down only to the largest wish of the last 300 s;
https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/), so that they differ in the wish
alone.
"""

import math
from collections import deque
from dataclasses import dataclass, field

LOOK_SECONDS = 15.0
TOLERANCE = 0.1
STABLE_SECONDS = 300.0
LEAST_STEP = 4
CPU_TARGET = 0.6
"""Of a replica's cores: a usual setting."""
CPU_WINDOW_SECONDS = 30.0
"""Over which the metrics server takes the mean of a pod's CPU."""


@dataclass
class Autoscaler:
    """Turns wishes into sizes.

    Attributes:
        least: replicas.
        most: replicas.
    """

    least: int
    most: int
    _looked_at: float = -math.inf
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)

    def size(self, now: float, size: int, wished: float) -> int:
        """The size from now on; as it is between two looks.

        Args:
            now: seconds.
            size: of the fleet, with replicas that start.
            wished: replicas.
        """
        if now - self._looked_at < LOOK_SECONDS:
            return size
        self._looked_at = now
        wish = size if abs(wished / max(size, 1) - 1) <= TOLERANCE else math.ceil(wished - 1e-9)
        wish = min(self.most, max(self.least, wish))
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - STABLE_SECONDS:
            self._wishes.popleft()
        if wish > size:
            return min(wish, max(2 * size, size + LEAST_STEP))
        return min(size, max(one for _, one in self._wishes))


@dataclass
class CpuReading:
    """The mean share of their cores that ready replicas used lately."""

    _seen: deque[tuple[float, float]] = field(default_factory=deque)

    def wished(self, now: float, busy: float, ready: int) -> float:
        """Replicas at which the mean would be the target.

        Args:
            now: seconds.
            busy: share of the last tick, mean over ready replicas.
            ready: replicas that answer.
        """
        self._seen.append((now, busy))
        while self._seen[0][0] < now - CPU_WINDOW_SECONDS:
            self._seen.popleft()
        return ready * sum(share for _, share in self._seen) / len(self._seen) / CPU_TARGET
