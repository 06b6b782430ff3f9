"""What another version would make of a list: ranked and blended again after the answer, for comparison alone."""

import asyncio
import logging
from dataclasses import replace

from tritonrank_recommend.engine.listing import Listed, listed
from tritonrank_recommend.engine.ranker import Repeating
from tritonrank_recommend.engine.rules import Rules
from tritonrank_recommend.engine.steps import Gathered
from tritonrank_recommend.engine.threads import Work

LOG = logging.getLogger("tritonrank_recommend")


class Repeats:
    """Makes lists again in the background. Used from one event loop.

    Args:
        work: runs a function in a thread.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, gathered: Gathered, done: Listed, rules: Rules) -> None:
        """Make a list again where another version ranks for it, too: of the same candidates, by the same rules."""
        repeating = None if gathered.scored is None else gathered.scored.repeating
        if repeating is not None:
            task = asyncio.create_task(self._again(repeating, gathered, done, rules))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Give up what is on its way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _again(self, repeating: Repeating, gathered: Gathered, done: Listed, rules: Rules) -> None:
        try:
            scored = await repeating.scored()
            if scored is None:
                return
            heard = replace(gathered.heard, logits=scored.logits, blend=scored.blend or gathered.heard.blend)
            other = await self._work(listed, heard, rules, gathered.situation, gathered.bounds)
            repeating.listed([entry.item_id for entry in done.entries], [entry.item_id for entry in other.entries])
        # Nobody waits for it.
        except Exception:
            LOG.exception("a list that was made again")
