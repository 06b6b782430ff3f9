"""What should this user see now: profile -> retrieval -> rank -> blend -> rules -> page.

One object behind the gateway's HTTP and Triton's model ``recommend``, and for judging offline. Every part may be away:
what is left makes a list, and the answer says what was missing. Used from one event loop; what computes runs in a few
threads of its own.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from msgspec.structs import replace

from tritonrank_recommend.catalogue.columns import FilterError
from tritonrank_recommend.engine.course import Course, SpanOfStep, no_span
from tritonrank_recommend.engine.errors import RequestError
from tritonrank_recommend.engine.explanations import Explanations
from tritonrank_recommend.engine.exploring import explored
from tritonrank_recommend.engine.filters import check_filters
from tritonrank_recommend.engine.history import HistoryError
from tritonrank_recommend.engine.listing import listed
from tritonrank_recommend.engine.pages import (
    MOST_PINNED,
    Cursor,
    CursorError,
    PageGoneError,
    Pages,
    PinnedList,
    new_token,
)
from tritonrank_recommend.engine.parts import Parts, Upkeep, open_parts
from tritonrank_recommend.engine.ranker import Ranker
from tritonrank_recommend.engine.repeating import Repeats
from tritonrank_recommend.engine.settings import EngineSettings
from tritonrank_recommend.engine.shown import impression_of, shown_somehow
from tritonrank_recommend.engine.similar import similar_items
from tritonrank_recommend.engine.steps import Steps
from tritonrank_recommend.engine.threads import looked_up
from tritonrank_recommend.engine.users import Users
from tritonrank_recommend.engine.wire import (
    ExplainAnswer,
    ExplainRequest,
    RecommendAnswer,
    Recommended,
    RecommendRequest,
    SimilarAnswer,
)
from tritonrank_recommend.stores.interface import ItemChange, StoreError
from tritonrank_recommend.streams.settings import StreamSettings

WARM_SECONDS = 30.0
MADE_ANEW = "page: made anew"
"""The list of a cursor is not here, and there is no store, or none that answers."""
Result = TypeVar("Result")


class Recommender:
    """Recommends; an async context manager, between whose ends it follows changes of items, rules and artifacts.

    Args:
        parts: catalogue, blend, rules and store, see ``open``.
        ranker: scores texts; None where every request brings its own, or there is none.
        settings: see EngineSettings.
    """

    def __init__(self, parts: Parts, ranker: Ranker | None = None, settings: EngineSettings | None = None) -> None:
        self.parts, self.ranker, self.settings = parts, ranker, settings or EngineSettings()
        self.span: SpanOfStep = no_span  # whoever keeps traces puts theirs here
        self.pages = Pages(parts.store, self.settings.page_minutes)
        self.users = Users(parts, self.pages)
        self._pool = ThreadPoolExecutor(self.settings.threads, "recommend")
        self._steps = Steps(parts, self.settings, self._work)
        self._is_serving = False
        self._explanations = Explanations(parts, self._steps, self.pages, self._work)
        self._repeats = Repeats(self._work)
        self._upkeep = Upkeep(parts, self._pool)

    @classmethod
    def open(
        cls,
        *,
        catalogue: Path | None = None,
        blend: Path | None = None,
        store_url: str = "",
        rules: Path | None = None,
        events_log: Path | None = None,
        events_stream: StreamSettings | None = None,
        ranker: Ranker | None = None,
        settings: EngineSettings | None = None,
    ) -> Self:
        """A recommender of folders and files; a folder that is missing or damaged is done without, and looked at again.

        Args:
            catalogue, blend: artifacts.
            store_url: see ``stores.open_store``; "" keeps nothing.
            rules: a TOML file.
            events_log: folder of the training log; None writes none.
            events_stream: on which way events come into the store; None is the store alone.
            ranker, settings: as above.

        Raises:
            RulesError: the rules file is wrong.
            StoreError: the store cannot be used as it is named.
        """
        parts = open_parts(
            catalogue=catalogue, blend=blend, store_url=store_url, rules=rules, events_log=events_log,
            events_stream=events_stream,
        )  # fmt: skip
        return cls(parts, ranker, settings)

    async def start(self) -> None:
        """Take what changed since the catalogue was built, warm what computes, and follow changes from here on."""
        await self._upkeep.start()
        with suppress(Exception):  # it only warms; a request that needs the part says what is wrong with it
            await self._recommended(
                RecommendRequest(query="warm", order="retrieval", size=MOST_PINNED), Course(WARM_SECONDS), None
            )
        if self.parts.log is not None:
            self.parts.log.start()
        if self.parts.intake is not None:
            self.parts.intake.start()
        self._is_serving = True

    async def close(self) -> None:
        """End what runs in the background, and close the store."""
        await self._upkeep.close()
        await self._repeats.close()
        await self._steps.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.parts.intake is not None:
            await self.parts.intake.close()
        if self.parts.log is not None:
            await self.parts.log.close()
        if self.parts.store is not None:
            await self.parts.store.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # What users see

    async def recommend(
        self, request: RecommendRequest, *, seconds: float, ranker: Ranker | None = None
    ) -> RecommendAnswer:
        """A page for a request.

        Args:
            request: what is wanted.
            seconds: until nobody waits any more; the request's own deadline may be sooner.
            ranker: in place of the recommender's own.

        Raises:
            RequestError: the request is at fault.
            PageGoneError: the cursor's list is no longer kept.
        """
        request = replace(request, user_id=self.parts.privacy.user(request.user_id))
        if request.deadline_ms is not None:
            seconds = min(seconds, request.deadline_ms / 1_000)
        course = Course(seconds, span=self.span)
        try:
            check_filters(request.filters)
            answer, offset = None, 0
            if request.cursor:
                offset = Cursor.read(request.cursor).offset
                answer = await self._continued(request, course, ranker or self.ranker)
            if answer is None:
                answer = await self._recommended(request, course, ranker or self.ranker, offset)
        except (FilterError, CursorError, HistoryError) as error:
            raise RequestError(str(error)) from None
        return answer

    async def similar(self, item_id: str, size: int = 20, filters: Mapping[str, Any] | None = None) -> SimilarAnswer:
        """Items that are like one, best first.

        Raises:
            KeyError: the item is not in the catalogue.
            RequestError: a filter is none.
            NoCatalogueError: there is no catalogue that could be asked.
        """
        return await similar_items(self.parts, self._work, item_id, size, filters or {})

    async def explain(
        self,
        request: ExplainRequest,
        *,
        seconds: float,
        ranking_seconds: float = math.inf,
        ranker: Ranker | None = None,
    ) -> ExplainAnswer:
        """Why items stand where they stand in the list that this user gets now, or got under a page's token.

        Args:
            request: which items, for whom.
            seconds: until nobody waits any more.
            ranking_seconds: that the list itself may take; a ranker that has not answered by then is not asked why.
            ranker: in place of the recommender's own.

        Raises:
            RequestError: the request is at fault.
            PageGoneError: the page's list is no longer kept.
            StoreError: the store that has the page does not answer.
        """
        request = replace(request, user_id=self.parts.privacy.user(request.user_id))
        if request.deadline_ms is not None:
            seconds = min(seconds, request.deadline_ms / 1_000)
        course = Course(seconds, ranking_seconds, self.span)
        return await self._explanations.of_items(request, course, ranker or self.ranker)

    # What changes

    def tune(self, *, candidates: int) -> None:
        """So many candidates are retrieved and ranked from here on, unless the request says how many."""
        self._steps.tune(candidates)

    async def change_items(self, changes: Sequence[ItemChange]) -> bool:
        """Add, change and remove items; whether that is kept (there is a store) or ends with this process.

        They can be found here when this returns, and within a second by whoever shares the store.

        Raises:
            StoreError: the store does not answer; nothing was changed.
        """
        store, live = self.parts.store, self._upkeep.live
        changes = [self.parts.privacy.item(one) for one in changes]
        if store is None or live is None:
            await self._upkeep.apply(changes)
            return False
        version = await store.change_items(changes)
        await live.wait_for(version, self.settings.wait_seconds)
        return True

    # The way of a request

    async def _recommended(
        self, request: RecommendRequest, course: Course, ranker: Ranker | None, offset: int = 0
    ) -> RecommendAnswer:
        gathered = await self._steps.gather(request, course, ranker)
        with course.step("blend"):
            rules = self.parts.rules.rules
            done = await self._work(listed, gathered.heard, rules, gathered.situation, gathered.bounds)
        if done.problem:
            course.lost("blend", done.problem)
        pinned = PinnedList(
            request.user_id,
            explored(done, rules.explore, gathered.situation, random.random),
            gathered.history.is_empty,
            [reason for reason in course.reasons if reason != MADE_ANEW],
            gathered.artifacts(done),
            self.parts.privacy.query(request.query),
            [(past.item_id, past.type) for past in gathered.told],
        )
        token = new_token()
        answer = await self._page(pinned, token, offset, request, course)
        if answer.cursor:
            try:
                await self.pages.keep(token, pinned)
            except StoreError:
                course.lost("store", "unavailable")
        if request.explain and answer.items:
            answer = await self._explanations.of_page(answer, request, gathered, course, ranker)
        self._repeats.begin(gathered, done, rules)
        return _finished(answer, course)

    async def _page(
        self, pinned: PinnedList, token: str, offset: int, request: RecommendRequest, course: Course
    ) -> RecommendAnswer:
        catalogue, rules = self.parts.catalogue.opened, self.parts.rules.rules
        asked = pinned.entries, offset, request.size, catalogue, self.parts.remembered, rules
        shown = await looked_up(self._work, catalogue, shown_somehow, *asked)
        if shown.problem and self.parts.catalogue.is_wanted:
            course.lost("catalogue", self.parts.catalogue.problem or shown.problem)
        for reason in pinned.reasons:
            course.lost(*reason.split(": ", 1))
        self._log_shown(token, pinned, shown.items)
        return RecommendAnswer(
            items=shown.items,
            page=token,
            cursor=str(Cursor(token, shown.after)) if shown.after < len(pinned.entries) else "",
            cold=pinned.cold,
            artifacts=pinned.artifacts,
        )

    def _log_shown(self, token: str, pinned: PinnedList, items: Sequence[Recommended]) -> None:
        if self.parts.log is not None and items and self._is_serving:
            self.parts.log.log_impression(impression_of(token, pinned, items, time.time()))

    async def _continued(
        self, request: RecommendRequest, course: Course, ranker: Ranker | None
    ) -> RecommendAnswer | None:
        """The next page of a list; None where its list is not here though it may still be kept elsewhere."""
        cursor = Cursor.read(request.cursor)
        with course.step("profile"):
            try:
                pinned = await self.pages.find(cursor.token, request.user_id)
            except StoreError:
                course.lost("store", "unavailable")
                pinned = None
            except PageGoneError:
                if self.pages.is_shared:
                    raise
                pinned = None
        if pinned is None:
            course.lost(*MADE_ANEW.split(": "))
            return None
        answer = await self._page(pinned, cursor.token, cursor.offset, request, course)
        if request.explain and answer.items:
            asked = replace(request, query=pinned.query)
            answer = await self._explanations.of_later_page(answer, asked, pinned.history, course, ranker)
        return _finished(answer, course)

    async def _work(self, do: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, do, *arguments)


def _finished(answer: RecommendAnswer, course: Course) -> RecommendAnswer:
    course.finish()
    return replace(
        answer,
        degraded=bool(course.reasons),
        degraded_reasons=course.reasons,
        milliseconds=course.milliseconds,
    )
