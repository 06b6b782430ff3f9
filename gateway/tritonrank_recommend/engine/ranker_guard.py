"""The ranker with a fuse: while it does not answer, nobody waits for it.

After some failures in a row requests are served without it at once, and one of them now and then is sent in the
background to see whether it is back. Its own refusals (overloaded, a request that is wrong) do not blow the fuse, nor
does an answer that comes too late while others come back: then it is busy, not gone. What it has no room for waits in
turn (``ranker_turns.py``).
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from tritonrank_client import DeadlineExceeded, InvalidRequest, Overloaded, RankError, Unavailable

from tritonrank_recommend.engine.ranker import Ranker, Scored, SparedError
from tritonrank_recommend.engine.ranker_turns import RankerTurns

LOG = logging.getLogger("tritonrank_recommend")
MOST_FAILURES = 3
"""One after the other, before the fuse blows."""
PROBE_SECONDS = 0.5
"""Between two attempts to see whether it is back, and that an attempt may take at least."""
FAIR_SECONDS = 0.2
"""A ranker that does not answer in less than this is not at fault: its caller was in a hurry."""


class NotRankedError(Exception):
    """There are no scores; the message is what the answer says: why."""


class RankerGuard:
    """Asks a ranker in time, and says in few words why there is no answer. Used from one event loop."""

    def __init__(self) -> None:
        self._turns = RankerTurns()
        self._failures = 0
        self._probed_at = 0.0
        self._reason = ""
        self._probe: asyncio.Task[None] | None = None

    @property
    def is_out(self) -> bool:
        """Whether the fuse is blown."""
        return self._failures >= MOST_FAILURES

    async def score(
        self, ranker: Ranker, query: str, history: Sequence[str], items: Sequence[str], *, user: str, seconds: float
    ) -> Scored:
        """Scores of the items; of a ``SparingRanker.of_lists`` those of the first ones.

        Raises:
            NotRankedError: there are none, or not in time.
        """
        if self.is_out:
            self._look_again(ranker, query, history, items, user, seconds)
            raise NotRankedError(self._reason)
        try:
            return await self._ask(ranker, query, history, items, user, seconds)
        except NotRankedError as error:
            self._reason = str(error)
            raise

    async def close(self) -> None:
        """Give up what runs in the background."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)

    async def _ask(
        self, ranker: Ranker, query: str, history: Sequence[str], items: Sequence[str], user: str, seconds: float
    ) -> Scored:
        had, began = seconds, time.monotonic()

        async def once(left: float) -> Scored:
            nonlocal had
            had = left
            async with asyncio.timeout(left):
                return await ranker.score(query, history, items, user=user, seconds=left)

        try:
            scored = await self._turns.ask(once, seconds)
        except SparedError:
            raise NotRankedError("spared") from None
        except InvalidRequest:
            self._failures = 0
            raise NotRankedError("refused the request") from None
        except Overloaded:
            self._failures = 0
            raise NotRankedError("overloaded") from None
        except (DeadlineExceeded, TimeoutError):
            self._failures += had >= FAIR_SECONDS and self._turns.answered_at < began
            raise NotRankedError("too slow") from None
        except RankError:
            self._failures += 1
            raise NotRankedError("unavailable") from None
        except Exception as error:
            self._failures += 1
            LOG.exception("ranker: %s", type(error).__name__)
            raise NotRankedError("failed") from error
        self._failures = 0
        if not 0 < len(scored.logits) <= len(items):
            LOG.error("ranker: %d scores for %d items", len(scored.logits), len(items))
            raise NotRankedError("failed")
        return scored

    def _look_again(
        self, ranker: Ranker, query: str, history: Sequence[str], items: Sequence[str], user: str, seconds: float
    ) -> None:
        now = time.monotonic()
        is_running = self._probe is not None and not self._probe.done()
        if is_running or now - self._probed_at < PROBE_SECONDS:
            return
        self._probed_at = now

        async def probe() -> None:
            try:
                await self._ask(ranker, query, history, items, user, max(seconds, PROBE_SECONDS))
            except NotRankedError as error:
                self._reason = str(error)

        self._probe = asyncio.create_task(probe())


class GuardedRanker:
    """A ranker behind its guard: see ``Ranker``. While the fuse is blown it says so at once.

    Args:
        guard: also of those who rank whole lists.
        ranker: that is asked.
    """

    def __init__(self, guard: RankerGuard, ranker: Ranker) -> None:
        self._guard, self._ranker = guard, ranker

    async def score(
        self, query: str, history: Sequence[str], items: Sequence[str], *, user: str = "", seconds: float | None = None
    ) -> Scored:
        try:
            return await self._guard.score(
                self._ranker, query, history, items, user=user, seconds=math.inf if seconds is None else seconds
            )
        except NotRankedError as error:
            raise Unavailable(str(error)) from error
