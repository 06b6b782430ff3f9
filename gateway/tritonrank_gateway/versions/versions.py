"""Versions side by side: live answers, a canary answers a share of the users, a shadow ranks again and is not heard.

A caller never sees a failure because of a version. What a canary cannot answer, or not in the time that the live
version would take several times over, live answers within what is left of the deadline. A version that takes a role has
shown before that it is reachable and right (``checking.py``), and one that loses it is closed when the last of its
requests is done. While there is neither a shadow nor a canary a request goes straight to live.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tritonrank_client import DeadlineExceeded, InvalidRequest, ModelInfo, RankError
from tritonrank_recommend.blend.interface import Blend

from tritonrank_gateway.quality.clicks import position_label
from tritonrank_gateway.ranking import Ranking, RankRequest, Side
from tritonrank_gateway.replicas import routing_key, user_key
from tritonrank_gateway.versions.arm import Arm
from tritonrank_gateway.versions.backend_metrics import Opens
from tritonrank_gateway.versions.comparison import Compared, Comparison, SideSums
from tritonrank_gateway.versions.shadow import Shadowing, count_failure
from tritonrank_gateway.versions.shares import place_of
from tritonrank_gateway.versions.wire import Role, Version
from tritonrank_gateway.versions.wire import Versions as Told

NO_DEADLINE_SECONDS = 10.0
LEAST_PATIENCE_SECONDS = 0.25
PATIENCE = 4.0
"""Times the 99th percentile of live: so long a canary may take before live is asked instead."""
KNOWN_RANKINGS = 50
"""Of live, before its percentile is believed; until then a canary may take half of the time that is left."""
MOST_FAULTS, REST_SECONDS = 5, 1.0
"""So many in a row, and the canary is not asked for a while: each would cost a user time."""


class Versions:
    """A `Backend`: that of the live version, with others beside it. Used from one event loop.

    Args:
        live: to begin with.
        opener: of the versions to come.
    """

    def __init__(self, live: Arm, opener: Opens) -> None:
        self.opener = opener
        opener.metrics.now["live"] = live.opened
        self.generation, self.started = 1, time.time()
        self._arms: dict[Role, Arm] = {"live": live}
        self.is_busy: Callable[[], bool] = lambda: False  # whoever knows puts it here
        self._shadowing = Shadowing(lambda: self.is_busy())
        self._faults, self._rests_until = 0, 0.0

    @property
    def live(self) -> Arm:
        """What answers."""
        return self._arms["live"]

    def arm(self, role: Role) -> Arm | None:
        """The version in a role."""
        return self._arms.get(role)

    def told(self) -> Told:
        """What is served now."""
        return Told(
            generation=self.generation,
            started=self.started,
            **{role: arm.version for role, arm in self._arms.items()},
        )

    def compared(self) -> Comparison:
        """How the others compare with live."""
        others = {role: arm.compared for role, arm in self._arms.items() if role != "live"}
        return Comparison(generation=self.generation, started=self.started, **others)  # type: ignore[arg-type]

    # As a backend

    async def rank(self, request: RankRequest) -> Ranking:
        """The live version's ranking, or for the users in its share the canary's.

        Raises:
            RankError: as live raised it.
        """
        canary, shadow = self._arms.get("canary"), self._arms.get("shadow")
        if canary is None and shadow is None:
            return await self._arms["live"].rank(request)
        compared, refusal = None if canary is None else canary.compared, None
        if canary is not None:
            side = request.side or self.side_of(routing_key(request))
            if side == "canary":
                began = time.monotonic()
                try:
                    return await self._by_canary(canary, request)
                except (RankError, TimeoutError) as error:
                    refusal = error
                if request.deadline_s is not None:
                    request = replace(request, deadline_s=max(0.001, request.deadline_s - time.monotonic() + began))
        began = time.monotonic()
        try:
            ranking = await self._arms["live"].rank(request)  # it may be another one than before the canary was asked
        except RankError as error:
            if compared is not None and refusal is None and request.is_shown:
                count_failure(compared.live, error, time.monotonic() - began)
            if compared is not None and isinstance(refusal, InvalidRequest) and isinstance(error, InvalidRequest):
                compared.version.invalid -= request.is_shown  # both say so: it is the caller's fault
            raise
        seconds = time.monotonic() - began
        if compared is not None and refusal is None and request.is_shown:
            compared.live.ranked(ranking, len(request.items), seconds)
        if shadow is not None:
            repeated = self._shadowing.offer(shadow, request, ranking, seconds)
            return ranking if repeated is None else replace(ranking, repeated=repeated)
        return ranking

    async def info(self) -> ModelInfo:
        """What live says of its model."""
        return await self.live.opened.backend.info()

    async def ready(self) -> bool:
        """Whether live can serve."""
        return await self.live.opened.backend.ready()

    async def close(self) -> None:
        """Close all."""
        await self._shadowing.close()
        await asyncio.gather(*(arm.opened.backend.close() for arm in self._arms.values()))

    # Whose turn it is

    @property
    def has_canary(self) -> bool:
        """Whether users are told apart."""
        return "canary" in self._arms

    def side_of(self, key: str) -> Side:
        """Whether a user is in the canary's share.

        Args:
            key: see ``replicas.routing_key``.
        """
        canary = self._arms.get("canary")
        is_in = canary is not None and place_of(key, canary.version.name) < canary.version.share
        return "canary" if is_in else "live"

    def sums_of(self, side: Side) -> SideSums | None:
        """Where what happens to the users of a side is counted; None while there is no canary."""
        canary = self._arms.get("canary")
        if canary is None:
            return None
        return canary.compared.version if side == "canary" else canary.compared.live

    def blend_of(self, side: Side) -> Blend | None:
        """The blend of the version that has ranked, where a canary has one; else the recommender's own holds."""
        canary = self._arms.get("canary") if side == "canary" else None
        return None if canary is None or canary.blend is None else canary.blend.opened

    # What becomes of users, by whose turn it was

    def called(self, side: Side, outcome: str, *, is_degraded: bool) -> None:
        """A call came to its end.

        Args:
            side: whose turn it was.
            outcome: as the metrics count it.
            is_degraded: it was answered without a part.
        """
        if (sums := self.sums_of(side)) is not None:
            sums.calls += 1
            sums.calls_failed += outcome in ("failed", "expired")
            sums.calls_refused += outcome == "refused"
            sums.calls_degraded += is_degraded

    def shown(self, user: str, positions: Iterable[int]) -> None:
        """A page was shown to a user, with items at these positions of the whole list."""
        if user and (sums := self.sums_of(self.side_of(user_key(user)))) is not None:
            sums.shown([position_label(position) for position in positions])

    def clicked(self, user: str, position: int, click_sums: NDArray[np.float64]) -> None:
        """A user clicked an item at this position; the same gateway need not have shown it."""
        if (sums := self.sums_of(self.side_of(user_key(user)))) is not None:
            sums.clicked(position_label(position), click_sums)

    async def _by_canary(self, canary: Arm, request: RankRequest) -> Ranking:
        """The canary's ranking.

        Raises:
            RankError, TimeoutError: there is none, which is counted.
        """
        # Of what nobody is shown nothing is counted, be it answered or not.
        sums, began = canary.compared.version if request.is_shown else SideSums(), time.monotonic()
        if began < self._rests_until:
            sums.resting += 1
            raise DeadlineExceeded("the canary failed again and again")
        left = NO_DEADLINE_SECONDS if request.deadline_s is None else request.deadline_s
        try:
            ranking = await canary.tried(request, self._patience(canary, left))
        except Exception as error:
            count_failure(sums, error, time.monotonic() - began)
            if not isinstance(error, InvalidRequest):
                self._faults += 1
                if self._faults >= MOST_FAULTS:
                    self._faults, self._rests_until = 0, time.monotonic() + REST_SECONDS
            if isinstance(error, RankError | TimeoutError):
                raise
            raise DeadlineExceeded(f"the canary failed: {type(error).__name__}") from error
        self._faults = 0
        sums.ranked(ranking, len(request.items), time.monotonic() - began)
        return replace(ranking, version="canary")

    def _patience(self, canary: Arm, left: float) -> float:
        """Seconds that a canary may take: live has to have its time after it."""
        usual = canary.compared.live.quantile_seconds(0.99, KNOWN_RANKINGS)
        return left / 2 if usual is None else min(left / 2, max(LEAST_PATIENCE_SECONDS, PATIENCE * usual))

    # Changes: ``changing.py`` decides when

    def share(self, role: Role, version: Version) -> None:
        """The version in a role gets another share."""
        arm = self._arms[role]
        arm.version, arm.compared.share = version, version.share
        self.generation += 1

    def take(self, role: Role, arm: Arm) -> Arm | None:
        """A version takes a role from here on; the one that had it, to be finished."""
        before = self._arms.get(role)
        self._arms[role] = arm
        self._begin_anew(role)
        return before

    def leave(self, role: Role) -> Arm | None:
        """Nobody has a role from here on; the one that had it, to be finished."""
        before = self._arms.pop(role, None)
        if before is not None:
            self._begin_anew(role)
        return before

    def _begin_anew(self, role: Role) -> None:
        """What is compared is not what it was."""
        self.generation += 1
        for other, arm in self._arms.items():
            if role in ("live", other):
                version = arm.version
                arm.compared = Compared(
                    name=version.name, since_generation=self.generation, since=time.time(), share=version.share
                )
        if role != "shadow":
            self._faults, self._rests_until = 0, 0.0
