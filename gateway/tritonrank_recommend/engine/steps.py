"""What is gathered for a list: who the user is, what could be shown, and what the ranker says of it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace

from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.catalogue.columns import FilterError
from tritonrank_recommend.catalogue.interface import Catalogue, Wish
from tritonrank_recommend.engine.arrange import Situation
from tritonrank_recommend.engine.course import Course
from tritonrank_recommend.engine.explain import PastItem
from tritonrank_recommend.engine.filters import together
from tritonrank_recommend.engine.history import History, history_of
from tritonrank_recommend.engine.listing import Bounds, Heard, Listed
from tritonrank_recommend.engine.parts import Parts
from tritonrank_recommend.engine.ranker import InformedRanker, Ranker, Scored, SparingRanker, WarmingRanker
from tritonrank_recommend.engine.ranker_guard import GuardedRanker, NotRankedError, RankerGuard
from tritonrank_recommend.engine.retrieval import Found, retrieve_somehow
from tritonrank_recommend.engine.settings import EngineSettings
from tritonrank_recommend.engine.threads import Work, looked_up
from tritonrank_recommend.engine.wire import RecommendRequest
from tritonrank_recommend.stores.interface import Profile, StoreError

LOG = logging.getLogger("tritonrank_recommend")
PROFILE_SHARE = 0.25
"""Of the time that is left, which the store may take for a profile."""
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a list is made of.

    Attributes:
        history: of the user.
        told: what the ranker was told of it, newest last.
        scored: what the ranker said; None where it was not heard.
        heard: candidates and scores, as they are put in order.
        situation: what rules ask about.
        bounds: what a list must keep to.
    """

    history: History
    told: list[PastItem]
    scored: Scored | None
    heard: Heard
    situation: Situation
    bounds: Bounds

    @property
    def found(self) -> Found:
        """The candidates."""
        return self.heard.found

    def artifacts(self, done: Listed | None) -> dict[str, str]:
        """What made the list."""
        named = {
            "catalogue": self.found.catalogue.artifact,
            "ranker": "" if self.scored is None else self.scored.artifact,
            "blend": "" if done is None else done.blend_artifact,
        }
        return {part: artifact for part, artifact in named.items() if artifact}


class Steps:
    """The steps up to the ranker's answer. Used from one event loop.

    Args:
        parts: may be replaced in place between requests.
        settings: of the recommender.
        work: runs a function in a thread.
    """

    def __init__(self, parts: Parts, settings: EngineSettings, work: Work) -> None:
        self._parts, self._settings, self._work = parts, settings, work
        self._guard = RankerGuard()
        self._warming: set[asyncio.Task[None]] = set()

    def tune(self, candidates: int) -> None:
        """So many are retrieved from here on, unless the request says how many."""
        self._settings = replace(self._settings, candidates=candidates)

    def guarded(self, ranker: Ranker) -> Ranker:
        """A ranker that is not waited for while it is known to be away, and that is asked in turn."""
        return GuardedRanker(self._guard, ranker)

    async def close(self) -> None:
        """Give up what runs in the background."""
        for task in self._warming:
            task.cancel()
        await asyncio.gather(*self._warming, return_exceptions=True)
        await self._guard.close()

    async def gather(self, request: RecommendRequest, course: Course, ranker: Ranker | None) -> Gathered:
        """What the list of a request is made of.

        Raises:
            FilterError: a filter of the request is wrong.
            HistoryError: an item of its history is.
        """
        rules, now = self._parts.rules.rules, time.time()
        with course.step("profile"):
            profile = await self._profile(request.user_id, course)
        seen_since = now - DAY * rules.seen.days if rules.seen.days else 0.0
        history = history_of(profile, request.recent, rules.seen.types, now, seen_since)
        excluded = frozenset(request.exclude) | (history.seen if request.exclude_seen else frozenset())
        with course.step("retrieve"):
            told, found = await asyncio.gather(
                self._told_and_warm(history, request, ranker, course),
                self._found(request, history, excluded | rules.block.item_ids, now, course),
            )
        with course.step("rank"):
            scored = await self._scored(request, told, self._to_rank(request, found.candidates.texts), ranker, course)
        logits = None if scored is None else scored.logits
        return Gathered(
            history,
            told,
            scored,
            Heard(found, logits, self._blend(request, scored, course), request.order),
            Situation(request.query, request.context, now),
            Bounds(request.filters, excluded),
        )

    async def _profile(self, user_id: str, course: Course) -> Profile:
        store = self._parts.store
        if not user_id or store is None:
            return Profile(user_id)
        try:
            async with asyncio.timeout(min(self._settings.profile_seconds, PROFILE_SHARE * course.seconds_left)):
                return await store.profile(user_id)
        except StoreError:
            course.lost("store", "unavailable")
        except TimeoutError:
            course.lost("store", "too slow")
        return Profile(user_id)

    async def _told_and_warm(
        self, history: History, request: RecommendRequest, ranker: Ranker | None, course: Course
    ) -> list[PastItem]:
        """What the ranker is told of the history; where that is wanted it is told at once, before the candidates."""
        told = await self._told(history, ranker)
        is_wanted = self._settings.warm_context and request.order != "retrieval" and not self._guard.is_out
        if is_wanted and isinstance(ranker, WarmingRanker):
            texts, seconds = [past.text for past in told], course.seconds_for_ranking
            work = ranker.warm(request.query, texts, user=request.user_id, seconds=seconds)
            task = asyncio.create_task(_without_errors(work))
            self._warming.add(task)
            task.add_done_callback(self._warming.discard)
        return told

    async def _told(self, history: History, ranker: Ranker | None) -> list[PastItem]:
        reads = ranker.history_items if isinstance(ranker, InformedRanker) else None
        newest = history.newest_liked(self._settings.history_items if reads is None else reads)
        if not newest:
            return []
        catalogue = self._parts.catalogue.opened or self._parts.remembered
        past = [(item_id, history.types[item_id]) for item_id in newest]
        told: list[PastItem]
        try:
            told = await looked_up(self._work, catalogue, past_items, catalogue, past)
        # The catalogue's own failure is told by retrieval.
        except Exception:
            LOG.exception("texts of the history")
            return []
        return told

    async def _found(
        self, request: RecommendRequest, history: History, excluded: frozenset[str], now: float, course: Course
    ) -> Found:
        parts = self._parts
        filters, later = together(request.filters, parts.rules.rules.filters)
        wish = Wish(
            query=request.query,
            history=history.liked,
            filters=filters,
            exclude=excluded,
            size=request.candidates or self._settings.candidates,
            now=now,
        )
        catalogue, problem = parts.catalogue.opened, parts.catalogue.problem
        blend = parts.blend.opened if request.order == "blend" else None
        found: Found
        try:
            async with asyncio.timeout(course.seconds_for_ranking):
                found = await self._work(retrieve_somehow, catalogue, problem, parts.remembered, wish, later, blend)
        except TimeoutError:
            found = retrieve_somehow(None, "too slow", parts.remembered, wish, later)
        except FilterError as error:
            if any(str(error).startswith(f"filters.{name}") for name in request.filters):
                raise
            LOG.error("rules: %s", error)
            course.lost("rules", "a filter names no field of the items")
            found = retrieve_somehow(None, "not asked", parts.remembered, wish, later)
        if found.problem:
            course.lost("catalogue", found.problem)
        for source, why in found.candidates.missing.items():
            course.lost(f"catalogue.{source}", why)
        return found

    def _to_rank(self, request: RecommendRequest, texts: list[str]) -> list[str]:
        """The candidates that the ranker reads. Who asks for its own order gets it of all."""
        blend = self._parts.blend.opened
        first = self._settings.ranked or (0 if blend is None else blend.ranked)
        return texts[:first] if first and request.order == "blend" else texts

    async def _scored(
        self,
        request: RecommendRequest,
        told: Sequence[PastItem],
        texts: list[str],
        ranker: Ranker | None,
        course: Course,
    ) -> Scored | None:
        if request.order == "retrieval" or not texts:
            return None
        if ranker is None:
            course.lost("ranker", "none")
            return None
        seconds = course.seconds_for_ranking
        if not seconds:
            course.lost("ranker", "no time left")
            return None
        history = [past.text for past in told]
        ranker = ranker.of_lists if isinstance(ranker, SparingRanker) else ranker
        try:
            return await self._guard.score(ranker, request.query, history, texts, user=request.user_id, seconds=seconds)
        except NotRankedError as error:
            course.lost("ranker", str(error))
            return None

    def _blend(self, request: RecommendRequest, scored: Scored | None, course: Course) -> Blend | None:
        if scored is not None and scored.blend is not None:
            return scored.blend
        folder = self._parts.blend
        if request.order == "blend" and folder.problem:
            course.lost("blend", folder.problem)
        return folder.opened


async def _without_errors(work: Awaitable[None]) -> None:
    try:
        await work
    # The request itself is sent as well, and says what is wrong.
    except Exception as error:  # noqa: BLE001 - as above
        LOG.debug("warming a context: %s", error)


def past_items(catalogue: Catalogue, history: Sequence[tuple[str, str]]) -> list[PastItem]:
    """Items of a history with texts and fields, without those that are no longer in the catalogue.

    Args:
        catalogue: that knows them.
        history: id and type of the event, newest last.
    """
    ids = [item_id for item_id, _ in history]
    return [
        PastItem(item_id, text, type_, fields)
        for (item_id, type_), text, fields in zip(history, catalogue.texts(ids), catalogue.fields(ids), strict=True)
        if text is not None
    ]
