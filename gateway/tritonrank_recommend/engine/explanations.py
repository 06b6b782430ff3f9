"""Explanations of whole lists: of the one that a user gets now, of a page that was shown, of items by name."""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from tritonrank_recommend.catalogue.columns import FilterError
from tritonrank_recommend.engine.course import Course
from tritonrank_recommend.engine.errors import RequestError
from tritonrank_recommend.engine.explain import BlendParts, PastItem, Question, explain, explain_without_ranker
from tritonrank_recommend.engine.history import HistoryError
from tritonrank_recommend.engine.listing import Heard, blend_parts
from tritonrank_recommend.engine.pages import Pages
from tritonrank_recommend.engine.parts import Parts
from tritonrank_recommend.engine.ranker import Ranker
from tritonrank_recommend.engine.shown import shown_to_explain
from tritonrank_recommend.engine.steps import Gathered, Steps, past_items
from tritonrank_recommend.engine.threads import Work
from tritonrank_recommend.engine.wire import (
    ExplainAnswer,
    ExplainedItem,
    ExplainRequest,
    RecommendAnswer,
    Recommended,
    RecommendRequest,
)


@dataclass(frozen=True, slots=True)
class Explanations:
    """Says why items stand where they stand.

    Args:
        parts: may be replaced in place between requests.
        steps: gather a list of which only the reasons are wanted.
        pages: where lists are kept.
        work: runs a function in a thread.
    """

    parts: Parts
    steps: Steps
    pages: Pages
    work: Work

    async def of_items(self, request: ExplainRequest, course: Course, ranker: Ranker | None) -> ExplainAnswer:
        """See ``Recommender.explain``."""
        pinned = await self.pages.find(request.page, request.user_id) if request.page else None
        asked = RecommendRequest(
            user_id=request.user_id,
            recent=request.recent,
            query=request.query if pinned is None else pinned.query,
            context=request.context,
            candidates=request.candidates,
        )
        try:
            gathered = await self.steps.gather(asked, course, ranker)
        except (FilterError, HistoryError) as error:
            raise RequestError(str(error)) from None
        catalogue = gathered.found.catalogue
        told = gathered.told
        if pinned is not None:
            told = await self.work(past_items, catalogue, pinned.history)
        fields = await self.work(catalogue.fields, request.item_ids)
        items = [
            Recommended(item_id, place, 0.0, dict(of))
            for place, (item_id, of) in enumerate(zip(request.item_ids, fields, strict=True))
            if of is not None
        ]
        answer = await self._added(RecommendAnswer(items, ""), asked, told, gathered.heard, course, ranker)
        return ExplainAnswer(
            items=[ExplainedItem(item.item_id, item.explanation) for item in answer.items if item.explanation],
            unknown=[item_id for item_id, of in zip(request.item_ids, fields, strict=True) if of is None],
            degraded_reasons=course.reasons,
            artifacts=gathered.artifacts(None),
        )

    async def of_page(
        self,
        answer: RecommendAnswer,
        request: RecommendRequest,
        gathered: Gathered,
        course: Course,
        ranker: Ranker | None,
    ) -> RecommendAnswer:
        """The answer with an explanation for each of the first shown items, as far as time allows."""
        return await self._added(answer, request, gathered.told, gathered.heard, course, ranker)

    async def of_later_page(
        self,
        answer: RecommendAnswer,
        request: RecommendRequest,
        history: Sequence[tuple[str, str]],
        course: Course,
        ranker: Ranker | None,
    ) -> RecommendAnswer:
        """The same for a page of a list that was kept, with the (item id, type) that the ranker was told; of what the
        blend heard nothing is known any more."""
        told = await self.work(past_items, self.parts.catalogue.opened or self.parts.remembered, history)
        return await self._added(answer, request, told, None, course, ranker)

    async def _added(
        self,
        answer: RecommendAnswer,
        request: RecommendRequest,
        told: Sequence[PastItem],
        heard: Heard | None,
        course: Course,
        ranker: Ranker | None,
    ) -> RecommendAnswer:
        catalogue = self.parts.catalogue.opened or self.parts.remembered
        parts: BlendParts | None = None
        if heard is not None:
            parts = await self.work(blend_parts, heard, [item.item_id for item in answer.items])
        with course.step("explain"):
            shown = await self.work(shown_to_explain, catalogue, answer.items)
            question = Question(shown, told, request.query, catalogue.render, parts, request.user_id)
            if why := course.reason_of("ranker"):
                explained = explain_without_ranker(question, why)
            elif ranker is None:
                course.lost("ranker", "none")
                explained = explain_without_ranker(question, "none")
            else:
                explained = await explain(question, self.steps.guarded(ranker), seconds=course.seconds_left)
        items = [replace(item, explanation=one) for item, one in zip(answer.items, explained, strict=False)]
        return replace(answer, items=[*items, *answer.items[len(items) :]])
