"""Whether a balancer may send requests: whether they would be answered."""

import time
from collections.abc import Callable

from tritonrank_gateway.call import Gateway

FIRST_RANKER_SECONDS = 60.0
"""That a gateway with a catalogue waits for its ranker when both start; then it serves lists without one."""


class Readiness:
    """What a gateway says of itself. Made when it starts.

    Whoever recommends stays ready while its ranker is away: it has lists without one, and all gateways lose the ranker
    at once, so that a balancer which took them out would leave nobody. A start is another matter: the ranker is on its
    way, most often started in the same minute, and what came before it could not be ranked.

    Args:
        gateway: that is asked for.
        clock: seconds, for tests.
    """

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway, self._clock = gateway, clock
        self._waits_until = clock() + FIRST_RANKER_SECONDS
        self._has_ranked = False

    async def now(self) -> tuple[bool, bool]:
        """Whether it is ready, and whether a ranker is."""
        ranks = await self._gateway.backend.ready()
        self._has_ranked |= ranks
        recommender = self._gateway.recommender
        has_lists = recommender is not None and recommender.parts.catalogue.opened is not None
        return ranks or (has_lists and (self._has_ranked or self._clock() >= self._waits_until)), ranks
