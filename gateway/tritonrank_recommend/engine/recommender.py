"""What should this user see now: profile -> retrieval -> rank -> blend -> rules -> page.

One object behind the gateway's HTTP and Triton's model ``recommend``, and for judging offline. Every part may be away:
what is left makes a list, and the answer says what was missing. Used from one event loop; what computes runs in a few
threads of its own.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.catalogue.columns import FilterError
from tritonrank_recommend.catalogue.interface import Catalogue, Wish
from tritonrank_recommend.engine.arrange import Situation
from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.engine.course import Course
from tritonrank_recommend.engine.filters import check_filters, together
from tritonrank_recommend.engine.history import History, HistoryError, history_of
from tritonrank_recommend.engine.listing import Heard, listed
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
from tritonrank_recommend.engine.ranker import Ranker, Scored
from tritonrank_recommend.engine.ranker_guard import NotRankedError, RankerGuard
from tritonrank_recommend.engine.retrieval import Found, retrieve_somehow, texts_of
from tritonrank_recommend.engine.rules import Rules
from tritonrank_recommend.engine.settings import EngineSettings
from tritonrank_recommend.engine.shown import shown_from
from tritonrank_recommend.engine.wire import RecommendAnswer, Recommended, RecommendRequest, SimilarAnswer
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores.interface import Added, ItemChange, Profile, Store, StoreError

LOG = logging.getLogger("tritonrank_recommend")
PROFILE_SHARE = 0.25
"""Of the time that is left, which the store may take for a profile."""
WARM_SECONDS = 30.0
MADE_ANEW = "page: made anew"
"""The list of a cursor is not here, and there is no store, or none that answers."""
Result = TypeVar("Result")


class RequestError(ValueError):
    """A request that nobody could answer; the message names the field."""


class NotKeptError(Exception):
    """Something has to be kept, and there is no store."""


class NoCatalogueError(Exception):
    """A question to the catalogue alone, and it cannot be opened; the message says why."""


class Recommender:
    """Recommends; an async context manager, between whose ends it follows changes of items, rules and artifacts.

    Args:
        parts: catalogue, blend, rules and store, see ``open``.
        ranker: scores texts; None where every request brings its own, or there is none.
        settings: see EngineSettings.
    """

    def __init__(self, parts: Parts, ranker: Ranker | None = None, settings: EngineSettings | None = None) -> None:
        self.parts, self.ranker, self.settings = parts, ranker, settings or EngineSettings()
        self.pages = Pages(parts.store, self.settings.page_minutes)
        self._pool = ThreadPoolExecutor(self.settings.threads, "recommend")
        self._guard = RankerGuard()
        self._upkeep = Upkeep(parts, self._pool)

    @classmethod
    def open(
        cls,
        *,
        catalogue: Path | None = None,
        blend: Path | None = None,
        store_url: str = "",
        rules: Path | None = None,
        ranker: Ranker | None = None,
        settings: EngineSettings | None = None,
    ) -> Self:
        """A recommender of folders and files; a folder that is missing or damaged is done without, and looked at again.

        Args:
            catalogue, blend: artifacts.
            store_url: see ``stores.open_store``; "" keeps nothing.
            rules: a TOML file.
            ranker, settings: as above.

        Raises:
            RulesError: the rules file is wrong.
            StoreError: the store cannot be used as it is named.
        """
        parts = open_parts(catalogue=catalogue, blend=blend, store_url=store_url, rules=rules)
        return cls(parts, ranker, settings)

    async def start(self) -> None:
        """Take what changed since the catalogue was built, warm what computes, and follow changes from here on."""
        await self._upkeep.start()
        with suppress(Exception):  # it only warms; a request that needs the part says what is wrong with it
            await self._recommended(RecommendRequest(query="warm", order="retrieval"), Course(WARM_SECONDS), None)

    async def close(self) -> None:
        """End what runs in the background, and close the store."""
        await self._upkeep.close()
        await self._guard.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
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
        if request.deadline_ms is not None:
            seconds = min(seconds, request.deadline_ms / 1_000)
        course = Course(seconds)
        try:
            check_filters(request.filters)
            answer, offset = None, 0
            if request.cursor:
                offset = Cursor.read(request.cursor).offset
                answer = await self._continued(request, course)
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
        rules, catalogue = self.parts.rules.rules, self.parts.catalogue.opened
        try:
            check_filters(filters or {})
        except FilterError as error:
            raise RequestError(str(error)) from None
        if catalogue is None:
            raise NoCatalogueError(self.parts.catalogue.problem or "missing")
        wanted, later = together(filters or {}, rules.filters)

        def look() -> list[Recommended]:
            found = catalogue.similar(item_id, min(MOST_PINNED, size + len(rules.block.item_ids)), wanted)
            entries = listed(
                Heard(Found(found, [], catalogue), None, None, "retrieval"), Rules(), Situation(), {}, frozenset()
            ).entries
            shown = shown_from(entries, 0, size, catalogue, rules).items
            return [one for one in shown if meets(one.fields, later)]

        try:
            return SimilarAnswer(await self._work(look), {"catalogue": catalogue.artifact})
        except FilterError as error:
            raise RequestError(str(error)) from None

    # What changes

    async def change_items(self, changes: Sequence[ItemChange]) -> bool:
        """Add, change and remove items; whether that is kept (there is a store) or ends with this process.

        They can be found here when this returns, and within a second by whoever shares the store.

        Raises:
            StoreError: the store does not answer; nothing was changed.
        """
        store, live = self.parts.store, self._upkeep.live
        if store is None or live is None:
            await self._upkeep.apply(changes)
            return False
        version = await store.change_items(changes)
        await live.wait_for(version, self.settings.wait_seconds)
        return True

    async def add_events(self, events: Sequence[Event]) -> Added:
        """Take events.

        Raises:
            NotKeptError: there is no store.
            StoreError: the store does not answer; nothing was acknowledged.
        """
        return await self._store().add_events(events)

    async def export_user(self, user_id: str) -> dict[str, Any]:
        """Everything that is kept of a user; raises as ``add_events`` does."""
        return await self._store().export_user(user_id)

    async def erase_user(self, user_id: str) -> dict[str, int]:
        """Remove everything that is kept of a user, pages too; raises as ``add_events`` does."""
        rows = await self._store().erase_user(user_id)
        self.pages.erase(user_id)
        return rows

    # The way of a request

    async def _recommended(
        self, request: RecommendRequest, course: Course, ranker: Ranker | None, offset: int = 0
    ) -> RecommendAnswer:
        rules, now = self.parts.rules.rules, time.time()
        with course.step("profile"):
            profile = await self._profile(request.user_id, course)
        history = history_of(profile, request.recent, rules.seen.types, now, _since(rules, now))
        excluded = frozenset(request.exclude) | (history.seen if request.exclude_seen else frozenset())
        with course.step("retrieve"):
            told, found = await asyncio.gather(
                self._history_texts(history), self._found(request, history, excluded, now, course)
            )
        with course.step("rank"):
            scored = await self._scored(request, told, found.texts, ranker, course)
        heard = Heard(found, None if scored is None else scored.logits, self._blend(request, course), request.order)
        situation = Situation(request.query, request.context, now)
        with course.step("blend"):
            done = await self._work(listed, heard, rules, situation, request.filters, excluded)
        if done.problem:
            course.lost("blend", done.problem)
        artifacts = {
            "catalogue": found.catalogue.artifact,
            "ranker": "" if scored is None else scored.artifact,
            "blend": done.blend_artifact,
        }
        pinned = PinnedList(
            request.user_id,
            done.entries,
            history.is_empty,
            [reason for reason in course.reasons if reason != MADE_ANEW],
            {part: artifact for part, artifact in artifacts.items() if artifact},
            request.query,
            history.newest_liked(self.settings.history_items),
        )
        return await self._page(pinned, new_token(), offset, request, course, found.catalogue, is_fresh=True)

    async def _profile(self, user_id: str, course: Course) -> Profile:
        store = self.parts.store
        if not user_id or store is None:
            return Profile(user_id)
        try:
            async with asyncio.timeout(min(self.settings.profile_seconds, PROFILE_SHARE * course.seconds_left)):
                return await store.profile(user_id)
        except StoreError:
            course.lost("store", "unavailable")
        except TimeoutError:
            course.lost("store", "too slow")
        return Profile(user_id)

    async def _history_texts(self, history: History) -> list[str]:
        catalogue = self.parts.catalogue.opened or self.parts.remembered
        ids = history.newest_liked(self.settings.history_items)
        try:
            return await self._work(texts_of, catalogue, ids) if ids else []
        # The catalogue's own failure is told by retrieval.
        except Exception:
            LOG.exception("texts of the history")
            return []

    async def _found(
        self, request: RecommendRequest, history: History, excluded: frozenset[str], now: float, course: Course
    ) -> Found:
        parts, rules = self.parts, self.parts.rules.rules
        filters, later = together(request.filters, rules.filters)
        wish = Wish(
            query=request.query,
            history=history.liked,
            filters=filters,
            exclude=excluded | rules.block.item_ids,
            size=request.candidates or self.settings.candidates,
            now=now,
        )
        catalogue, problem = parts.catalogue.opened, parts.catalogue.problem
        try:
            async with asyncio.timeout(course.seconds_for_ranking):
                found = await self._work(retrieve_somehow, catalogue, problem, parts.remembered, wish, later)
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

    async def _scored(
        self, request: RecommendRequest, history: list[str], texts: list[str], ranker: Ranker | None, course: Course
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
        try:
            return await self._guard.score(ranker, request.query, history, texts, user=request.user_id, seconds=seconds)
        except NotRankedError as error:
            course.lost("ranker", str(error))
            return None

    def _blend(self, request: RecommendRequest, course: Course) -> Blend | None:
        folder = self.parts.blend
        if request.order == "blend" and folder.problem:
            course.lost("blend", folder.problem)
        return folder.opened

    # Pages

    async def _page(
        self,
        pinned: PinnedList,
        token: str,
        offset: int,
        request: RecommendRequest,
        course: Course,
        catalogue: Catalogue,
        *,
        is_fresh: bool,
    ) -> RecommendAnswer:
        shown = await self._work(shown_from, pinned.entries, offset, request.size, catalogue, self.parts.rules.rules)
        has_more = shown.after < len(pinned.entries)
        if is_fresh and has_more:
            try:
                await self.pages.keep(token, pinned)
            except StoreError:
                course.lost("store", "unavailable")
        course.finish()
        reasons = list(dict.fromkeys([*pinned.reasons, *course.reasons]))
        return RecommendAnswer(
            items=shown.items,
            page=token,
            cursor=str(Cursor(token, shown.after)) if has_more else "",
            cold=pinned.cold,
            degraded=bool(reasons),
            degraded_reasons=reasons,
            artifacts=pinned.artifacts,
            milliseconds=course.milliseconds,
        )

    async def _continued(self, request: RecommendRequest, course: Course) -> RecommendAnswer | None:
        """The next page of a list; None where its list is not here though it may still be kept elsewhere."""
        cursor = Cursor.read(request.cursor)
        with course.step("profile"):
            try:
                pinned = await self.pages.find(cursor.token, request.user_id)
            except StoreError:
                course.lost("store", "unavailable")
            except PageGoneError:
                if self.pages.is_shared:
                    raise
            else:
                catalogue = self.parts.catalogue.opened or self.parts.remembered
                return await self._page(pinned, cursor.token, cursor.offset, request, course, catalogue, is_fresh=False)
        course.lost(*MADE_ANEW.split(": "))
        return None

    def _store(self) -> Store:
        if self.parts.store is None:
            raise NotKeptError("there is no store; start the gateway with --store sqlite:FILE")
        return self.parts.store

    async def _work(self, do: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, do, *arguments)


def _since(rules: Rules, now: float) -> float:
    return now - 86_400 * rules.seen.days if rules.seen.days else 0.0
