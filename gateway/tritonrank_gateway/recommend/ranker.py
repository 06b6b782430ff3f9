"""The engine's Ranker over the gateway's own backend: replicas, cache, hedging, admission, keys and log hold for it."""

from collections.abc import Sequence

import numpy as np
from tritonrank_client import DeadlineExceeded, InvalidRequest, Overloaded, RankError, ServerFault, Unavailable
from tritonrank_recommend.engine.ranker import Ranker, Scored, SparedError

from tritonrank_gateway.call import Call
from tritonrank_gateway.quality import RankingKind
from tritonrank_gateway.ranking import RankRequest
from tritonrank_gateway.refusal import Kind, Refusal

ERRORS: dict[Kind, type[RankError]] = {
    "invalid": InvalidRequest,
    "empty": InvalidRequest,
    "too_large": InvalidRequest,
    "overloaded": Overloaded,
    "rate_limited": Overloaded,
    "deadline": DeadlineExceeded,
    "unavailable": Unavailable,
}


NOTHING = " "
"""A text without a token."""


class CallRanker:
    """Ranks for one call.

    Args:
        call: whose key, deadline and user count.
        is_shown: whether the first ranking makes a list that somebody is shown. All later ones ask why it is so.
    """

    def __init__(self, call: Call, *, is_shown: bool = False) -> None:
        self._call = call
        self._kind: RankingKind | None = "recommend" if is_shown else None
        self.over_quota: Refusal | None = None
        """what the key's owner is told: a list without ranking would hide that the day's candidates are used up"""

    @property
    def history_items(self) -> int | None:
        """What the model behind the gateway reads; None until it was asked once, or where it does not say."""
        model = self._call.gateway.model.known
        return None if model is None else model.history_items

    @property
    def of_lists(self) -> Ranker:
        """Ranks as many items as there is time for, see ``engine.ranker.SparingRanker``."""
        return _OfLists(self)

    async def score(
        self, query: str, history: Sequence[str], items: Sequence[str], *, user: str = "", seconds: float | None = None
    ) -> Scored:
        return await self._scored(RankRequest(query=query, items=items, history=history, user=user), seconds, False)

    async def first_scored(self, asked: RankRequest, seconds: float | None) -> Scored:
        """Scores of the first items, as many as there is time for.

        Raises:
            SparedError: there is time for none.
            RankError: as of ``score``.
        """
        return await self._scored(asked, seconds, True)

    async def _scored(self, asked: RankRequest, seconds: float | None, is_list: bool) -> Scored:
        try:
            ranking = await self._call.rank(asked, "candidates", seconds=seconds, kind=self._kind, is_list=is_list)
        except Refusal as refusal:
            if refusal.kind == "rate_limited":
                self.over_quota = refusal
            # What has no room now has it in a moment; a quota that is used up does not come back.
            may_wait = refusal.kind == "overloaded"
            if may_wait:
                self._call.take_back(asked)
            raise ERRORS.get(refusal.kind, ServerFault)(str(refusal), retryable=may_wait) from refusal
        self._kind = None
        if ranking.ranked == 0:
            raise SparedError
        logits = np.empty(len(asked.items), np.float32)
        logits[ranking.indices] = ranking.logits
        blend = self._call.gateway.versions.blend_of(ranking.version)
        return Scored(logits[: ranking.ranked], ranking.artifact, blend, ranking.repeated)

    async def warm(self, query: str, history: Sequence[str], *, user: str = "", seconds: float | None = None) -> None:
        """Rank nothing that could be scored: the server computes the context's keys and values, and keeps them. It goes
        to the replica that the candidates will go to, and is not counted as the caller's."""
        asked = RankRequest(
            query=query,
            items=[NOTHING],
            history=history,
            user=user or self._call.user,
            deadline_s=seconds,
            is_shown=False,
        )
        await self._call.gateway.backend.rank(asked)


class _OfLists:
    """Of whole lists, whose first items may be ranked alone."""

    def __init__(self, ranker: CallRanker) -> None:
        self._ranker = ranker

    async def score(
        self, query: str, history: Sequence[str], items: Sequence[str], *, user: str = "", seconds: float | None = None
    ) -> Scored:
        asked = RankRequest(query=query, items=items, history=history, user=user)
        return await self._ranker.first_scored(asked, seconds)
