"""One version at work: what ranks, what is known of its model, how it compares, and how many wait for it."""

import asyncio
import math
from contextlib import suppress
from dataclasses import replace

from tritonrank_client import ServerFault
from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.engine.artifact_folder import ArtifactFolder

from tritonrank_gateway.model import KnownModel
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.versions.backend_metrics import Opened
from tritonrank_gateway.versions.comparison import Compared
from tritonrank_gateway.versions.wire import Version


class Arm:
    """See above. Used from one event loop.

    Args:
        version: that it is of; another with another share alone may take its place.
        opened: what ranks.
        blend: of the version's own; None where it brings none.
    """

    def __init__(self, version: Version, opened: Opened, blend: ArtifactFolder[Blend] | None = None) -> None:
        self.version, self.opened, self.blend = version, opened, blend
        self.model = KnownModel(opened.backend)
        self.compared = Compared(name=version.name, since_generation=0, since=0.0, share=version.share)
        self._in_flight = 0
        self._is_idle = asyncio.Event()

    async def rank(self, request: RankRequest) -> Ranking:
        """See ``Backend``; the version is not closed before it has answered."""
        self._in_flight += 1
        try:
            return await self.opened.backend.rank(request)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._is_idle.set()

    async def tried(self, request: RankRequest, seconds: float) -> Ranking:
        """The ranking of a version that has to prove itself: of a request that was made ready for another model.

        Args:
            request: as it was made ready for the live version.
            seconds: that it may take.

        Raises:
            RankError: as the backend raised it; ServerFault where the answer is none.
            TimeoutError: it took longer.
        """
        async with asyncio.timeout(seconds):
            # Not asked again here: a question every ten seconds would count as the version's own slowness.
            outputs = (self.model.known or await self.model.get()).outputs
            want = tuple(name for name in request.want if name in outputs)
            ranking = await self.rank(replace(request, deadline_s=seconds, want=want))
        is_whole = len(ranking.indices) == len(ranking.logits) > 0
        if not is_whole or not all(map(math.isfinite, ranking.logits)):
            raise ServerFault(f"version {self.version.name}: an answer without scores, or with one that is no number")
        self.compared.artifact = ranking.artifact
        self.model.scored_by(ranking.artifact)
        return ranking

    async def finish(self, seconds: float) -> None:
        """Close it once nobody waits for it any more, after so many seconds all the same."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._in_flight:
                    self._is_idle.clear()
                    await self._is_idle.wait()
        await self.opened.backend.close()
