"""A shadow ranks again what the live version has answered: after the answer, few at once, first to give way."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from tritonrank_client import DeadlineExceeded, InvalidRequest, Overloaded, RankError
from tritonrank_recommend.engine.ranker import Scored

from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.versions.arm import Arm
from tritonrank_gateway.versions.comparison import SideSums
from tritonrank_gateway.versions.figures import agreement, alike

Failure = Literal["failed", "refused", "late", "invalid"]
LOG = logging.getLogger("tritonrank_gateway.versions")
MOST_AT_ONCE = 4
"""Requests on their way to the shadow."""
MOST_SECONDS = 5.0
"""That one may take, whatever time the caller had."""


class Shadowing:
    """Repeats requests to a shadow. Used from one event loop.

    Args:
        is_busy: whether the gateway has enough to do without.
        chance: gives numbers from 0 to 1.
    """

    def __init__(self, is_busy: Callable[[], bool], chance: Callable[[], float] = random.random) -> None:
        self._is_busy, self._chance = is_busy, chance
        self._running: set[asyncio.Task[Ranking | None]] = set()

    def offer(self, shadow: Arm, request: RankRequest, ranking: Ranking, seconds: float) -> "Repeated | None":
        """Repeat a request, if it is its turn and there is room; what comes of it.

        Args:
            shadow: that is to rank it, too.
            request: which live has answered.
            ranking: that live gave.
            seconds: that live took.
        """
        if not request.is_shown or not ranking.indices or self._chance() >= shadow.version.share:
            return None
        if self._is_busy():
            shadow.compared.drop("busy")
            return None
        if len(self._running) >= MOST_AT_ONCE:
            shadow.compared.drop("waiting")
            return None
        task = asyncio.create_task(_repeat(shadow, request, ranking, seconds))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return Repeated(task, shadow, len(request.items))

    async def close(self) -> None:
        """Repeat nothing more."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class Repeated:
    """What a shadow makes of a request, for whoever makes a list of it (``engine.ranker.Repeating``).

    Args:
        task: its ranking; None where it gave none.
        shadow: whose blend and comparison it is.
        items: of the request.
    """

    def __init__(self, task: "asyncio.Task[Ranking | None]", shadow: Arm, items: int) -> None:
        self._task, self._items = task, items
        self._blend = None if shadow.blend is None else shadow.blend.opened
        self._pairs = shadow.compared.pairs

    async def scored(self) -> Scored | None:
        ranking = await asyncio.shield(self._task)
        if ranking is None or len(ranking.indices) != self._items:
            return None
        logits = np.empty(self._items, np.float32)
        logits[ranking.indices] = ranking.logits
        return Scored(logits, ranking.artifact, self._blend)

    def listed(self, shown: Sequence[str], other: Sequence[str]) -> None:
        if shown and other:
            self._pairs.add_lists(*alike(shown, other))


async def _repeat(shadow: Arm, request: RankRequest, ranking: Ranking, live_seconds: float) -> Ranking | None:
    compared, items, began = shadow.compared, len(request.items), time.monotonic()
    try:
        repeated = await shadow.tried(request, MOST_SECONDS)
    except Exception as error:  # noqa: BLE001 - it is a trial, and its failure is what is to be found out
        seconds = time.monotonic() - began
        if count_failure(compared.version, error, seconds) == "late" and not ranking.is_cached:
            compared.live.took(live_seconds)
        return None
    seconds = time.monotonic() - began
    compared.live.ranked(ranking, items, live_seconds)
    compared.version.rankings += 1
    compared.version.candidates += items
    if not ranking.is_cached:  # both of the same requests
        compared.version.took(seconds)
    compared.pairs.add(agreement(ranking, repeated, items))
    return repeated


def count_failure(side: SideSums, error: Exception, seconds: float) -> Failure:
    """A version gave no ranking, after so long.

    What came too late took that long at least: without it a slow version would look faster the slower it is.
    """
    if isinstance(error, Overloaded):
        side.refused += 1
        return "refused"
    if isinstance(error, InvalidRequest):
        side.invalid += 1
        return "invalid"
    if isinstance(error, DeadlineExceeded | TimeoutError):
        side.late += 1
        side.took(seconds)
        return "late"
    side.failed += 1
    if not isinstance(error, RankError):
        LOG.error("a version failed: %s", type(error).__name__)
    return "failed"
