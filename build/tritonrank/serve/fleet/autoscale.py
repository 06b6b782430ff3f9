"""How many Tritons a fleet should have, by what its gateways wish: `tritonrank_adapt_wished_replicas`.

Each gateway wishes for what comes to itself, so the wishes add up. One that has not ranked anything yet knows no speed
and repeats the number that it sees; it is taken for as busy as the mean of those that know. Up at once, down only to
the largest sum of a while: the same as a HorizontalPodAutoscaler with its stabilization window.
"""

import math
import re
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

WISHED, UTILISATION = "tritonrank_adapt_wished_replicas", "tritonrank_adapt_utilisation"
SAMPLE = re.compile(rf"^({WISHED}|{UTILISATION}) ([-+0-9.eEnNaAiIfF]+)", re.MULTILINE)


class Bounds(NamedTuple):
    """Of an autoscaler."""

    least: int
    most: int

    @classmethod
    def read(cls, text: str) -> "Bounds":
        """From MIN:MAX.

        Raises:
            ValueError: it is something else.
        """
        least, colon, most = text.partition(":")
        if not (colon and least.isdigit() and most.isdigit() and 1 <= int(least) <= int(most)):
            raise ValueError(f"--autoscale {text}: expected MIN:MAX with 1 <= MIN <= MAX, such as 2:4")
        return cls(int(least), int(most))


def wish_in(page: str) -> float | None:
    """What one gateway wishes, by its metrics page; None where it knows nothing yet."""
    found = {name: float(value) for name, value in SAMPLE.findall(page)}
    wished, utilisation = found.get(WISHED, math.nan), found.get(UTILISATION, 0.0)
    return wished if math.isfinite(wished) and utilisation > 0 else None


class Autoscaler:
    """Decides from one look to the next.

    Args:
        bounds: what it keeps to.
        down_after_seconds: the number falls to the largest wish of so many seconds.
    """

    def __init__(self, bounds: Bounds, down_after_seconds: float) -> None:
        self.bounds, self._window = bounds, down_after_seconds
        self._wishes: deque[tuple[float, int]] = deque()

    def look(self, now: float, wishes: Iterable[float | None], current: int) -> int:
        """How many there should be.

        Args:
            now: seconds.
            wishes: one of each gateway.
            current: how many are wanted now.
        """
        all_of_them = list(wishes)
        known = [wish for wish in all_of_them if wish is not None]
        wished = current
        if known:
            wished = math.ceil(sum(known) * len(all_of_them) / len(known) - 1e-9)
        self._wishes.append((now, min(max(wished, self.bounds.least), self.bounds.most)))
        while self._wishes[0][0] < now - self._window:
            self._wishes.popleft()
        newest, highest = self._wishes[-1][1], max(wish for _, wish in self._wishes)
        # Up to the newest; down to the highest of the window.
        return max(newest, min(highest, current))
