"""The way of a recommendation through parts that work, dawdle, fail, or are not there."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from recommend_stand_ins import StandInCatalogue, StandInRanker, recommender_of
from tritonrank_client import InvalidRequest, Overloaded, RankError, Unavailable
from tritonrank_recommend.engine import EngineSettings, NoCatalogueError, PageGoneError, Recommender, RequestError
from tritonrank_recommend.engine.ranker import Scored
from tritonrank_recommend.engine.wire import ExplainRequest, RecentItem, RecommendAnswer, RecommendRequest
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import ItemChange, StoreError

NEWEST_FIRST = [f"i{number}" for number in range(59, -1, -1)]


@asynccontextmanager
async def running(catalogue: Any, ranker: StandInRanker | None = None, **parts: Any) -> AsyncIterator[Recommender]:
    async with recommender_of(catalogue, ranker, **parts) as recommender:
        if ranker is not None:
            ranker.asked.clear()
        yield recommender


def ids(answer: RecommendAnswer) -> list[str]:
    return [item.item_id for item in answer.items]


async def test_a_list_is_the_rankers_order_with_fields_and_sources() -> None:
    ranker = StandInRanker()
    async with running(StandInCatalogue(), ranker) as recommender:
        answer = await recommender.recommend(RecommendRequest(user_id="u", query="desk", size=5), seconds=5)
    assert ids(answer) == NEWEST_FIRST[:5]
    assert [item.position for item in answer.items] == [0, 1, 2, 3, 4]
    assert answer.items[0].fields["brand"] == "Kestrel"
    assert answer.items[0].sources == {"popular": 59}
    assert (answer.items[0].score, answer.items[0].logit) == (59.0, 59.0)
    assert answer.artifacts == {"catalogue": "catalogue-1", "ranker": "ranker-1"}
    assert set(answer.milliseconds) == {"profile", "retrieve", "rank", "blend", "total"}
    assert (answer.cold, answer.degraded, answer.degraded_reasons) == (True, False, [])
    assert ranker.asked == [("desk", [], [f"item {number}" for number in range(60)])]


async def test_the_history_is_the_profile_and_then_the_request() -> None:
    catalogue, ranker, store = StandInCatalogue(), StandInRanker(), open_store("sqlite::memory:")
    events = [
        Event(event_id="1", user_id="u", type="purchase", item_id="i3", timestamp=1_000.0),
        Event(event_id="2", user_id="u", type="view", item_id="i3", timestamp=1_001.0),
        Event(event_id="3", user_id="u", type="skip", item_id="i4", timestamp=1_002.0),
        Event(event_id="4", user_id="u", type="click", item_id="i5", timestamp=1_003.0),
    ]
    await store.add_events(events)
    async with running(catalogue, ranker, store=store) as recommender:
        request = RecommendRequest(user_id="u", recent=["i6", RecentItem("i7", "view")], exclude=["i59"])
        answer = await recommender.recommend(request, seconds=5)
        assert ranker.asked[0][1] == [
            "item 3",
            "item 5",
            "item 6",
            "item 7",
        ]
        liked = {one.item_id: one.weight for one in catalogue.wishes[-1].history}
        assert liked == {"i3": 1.0, "i4": -0.25, "i5": 0.5, "i6": 0.5, "i7": 0.25}
        assert not {"i3", "i4", "i59"} & {one.removeprefix("item ") for one in ranker.asked[0][2]}
        assert not answer.cold
        again = await recommender.recommend(RecommendRequest(user_id="u", exclude_seen=False), seconds=5)
        assert "item 3" in ranker.asked[-1][2]
        assert not again.degraded


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (lambda: Overloaded("full"), "ranker: overloaded"),
        (lambda: Overloaded("full for now", retryable=True), "ranker: overloaded"),
        (lambda: Unavailable("gone"), "ranker: unavailable"),
        (lambda: InvalidRequest("long"), "ranker: refused the request"),
        (lambda: RankError("else"), "ranker: unavailable"),
        (lambda: ValueError("a fault of ours"), "ranker: failed"),
    ],
    ids=["overloaded", "for-now", "unavailable", "invalid", "other", "bug"],
)
async def test_without_the_ranker_the_fused_order_is_shown(failure: Callable[[], RankError], reason: str) -> None:
    ranker = StandInRanker()
    ranker.failure = failure
    async with running(StandInCatalogue(), ranker) as recommender:
        answer = await recommender.recommend(RecommendRequest(size=3), seconds=0.5)
    assert ids(answer) == ["i0", "i1", "i2"]
    assert answer.degraded_reasons == [reason]
    assert answer.items[0].logit is None


async def test_a_slow_ranker_gets_what_is_left_and_nobody_waits_longer() -> None:
    ranker = StandInRanker()
    ranker.delay = 10.0
    async with running(StandInCatalogue(), ranker) as recommender:
        began = time.monotonic()
        answer = await recommender.recommend(RecommendRequest(deadline_ms=400), seconds=5)
        assert time.monotonic() - began < 1.0
    assert answer.degraded_reasons == ["ranker: too slow"]
    assert 0.2 < ranker.seconds[0] < 0.37  # a tenth is left for the rest


async def test_a_ranker_that_is_gone_is_not_waited_for_again_and_comes_back() -> None:
    ranker = StandInRanker()
    ranker.failure = lambda: Unavailable("gone")
    async with running(StandInCatalogue(), ranker) as recommender:
        for _ in range(3):
            await recommender.recommend(RecommendRequest(), seconds=5)
        ranker.delay = 0.3
        began = time.monotonic()
        for _ in range(10):
            answer = await recommender.recommend(RecommendRequest(), seconds=5)
            assert answer.degraded_reasons == ["ranker: unavailable"]
        assert time.monotonic() - began < 2.0  # ten times 0.3 s if each had waited
        ranker.failure, ranker.delay = None, 0.0
        deadline = time.monotonic() + 10
        while answer.degraded:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
            answer = await recommender.recommend(RecommendRequest(), seconds=5)


async def test_a_list_that_the_ranker_has_no_room_for_waits_within_its_deadline() -> None:
    ranker = StandInRanker()
    ranker.failure = lambda: Overloaded("full for now", retryable=True)
    async with running(StandInCatalogue(), ranker) as recommender:
        waiting = asyncio.create_task(recommender.recommend(RecommendRequest(size=3), seconds=30))
        while len(ranker.asked) < 3:
            await asyncio.sleep(0.01)
        ranker.failure = None
        answer = await waiting
    assert (answer.degraded, ids(answer)) == (False, ["i59", "i58", "i57"])


async def test_a_ranker_that_is_gone_is_not_waited_for_to_explain() -> None:
    ranker = StandInRanker()
    request = ExplainRequest(item_ids=["i3"], recent=["i1", "i2"], query="desk")
    async with running(StandInCatalogue(), ranker) as recommender:
        whole = await recommender.explain(request, seconds=30)
        assert {reason.kind for reason in whole.items[0].explanation.reasons} == set()  # this one reads items alone
        ranker.delay = 60.0
        began = time.monotonic()
        for _ in range(3):
            told = await recommender.explain(request, seconds=30, ranking_seconds=0.3)
            assert told.degraded_reasons == ["ranker: too slow"]
            assert told.items[0].explanation.left_out == ["ranker: too slow"]
        assert time.monotonic() - began < 10
        ranker.asked.clear()
        known = await recommender.explain(request, seconds=30)  # it is known to be away
        assert known.items[0].explanation.left_out == ["ranker: too slow"]
        assert time.monotonic() - began < 12
        assert len(ranker.asked) <= 1, "one looks in the background whether it is back"


async def test_a_ranker_that_goes_away_while_it_explains_is_not_waited_for() -> None:
    class GoesAway(StandInRanker):
        async def score(self, *arguments: Any, **named: Any) -> Scored:
            if self.asked:
                self.failure = lambda: Unavailable("gone")
            return await super().score(*arguments, **named)

    ranker = GoesAway()
    async with running(StandInCatalogue(), ranker) as recommender:
        request = ExplainRequest(item_ids=["i3"], recent=[f"i{number}" for number in range(5, 13)])
        told = await recommender.explain(request, seconds=30)
    assert told.items[0].explanation.left_out
    # Without the guard: the list, the whole, and eight times without an item. Two are under way at once.
    assert len(ranker.asked) <= 1 + 4 + 1, "after three failures one looks in the background whether it is back"


async def test_the_ranker_is_told_as_much_of_the_history_as_its_model_reads() -> None:
    for reads, told in ((2, 2), (12, 12), (None, 8)):
        ranker = StandInRanker()
        ranker.history_items = reads  # type: ignore[attr-defined]
        async with running(StandInCatalogue(), ranker) as recommender:
            recent: list[Any] = [f"i{number}" for number in range(20)]
            await recommender.recommend(RecommendRequest(recent=recent), seconds=5)
        assert ranker.asked[0][1] == [f"item {number}" for number in range(20 - told, 20)]


async def test_a_ranker_that_answers_others_meanwhile_is_busy_and_not_gone() -> None:
    class Busy(StandInRanker):
        async def score(self, query: str, *arguments: Any, **named: Any) -> Scored:
            if query == "long":
                await asyncio.sleep(60)
            await asyncio.sleep(0.01)
            return await super().score(query, *arguments, **named)

    ranker, ended = Busy(), asyncio.Event()
    async with running(StandInCatalogue(), ranker) as recommender:

        async def others() -> list[list[str]]:
            reasons = []
            while not ended.is_set():
                reasons.append((await recommender.recommend(RecommendRequest(size=2), seconds=20)).degraded_reasons)
            return reasons

        running_others = asyncio.create_task(others())
        late = [
            await recommender.recommend(RecommendRequest(query="long", deadline_ms=400), seconds=5) for _ in range(4)
        ]
        ended.set()
        assert not any(await running_others)
    assert [one.degraded_reasons for one in late] == [["ranker: too slow"]] * 4


async def test_callers_in_a_hurry_do_not_cut_others_off() -> None:
    ranker = StandInRanker()
    ranker.delay = 0.08
    async with running(StandInCatalogue(), ranker) as recommender:
        for _ in range(5):
            hurried = await recommender.recommend(RecommendRequest(deadline_ms=40), seconds=5)
            assert hurried.degraded
        assert not (await recommender.recommend(RecommendRequest(), seconds=5)).degraded


class AwayStore:
    """Every question to it fails, or is never answered."""

    def __init__(self, hangs: bool = False) -> None:
        self.hangs = hangs

    def __getattr__(self, name: str) -> Any:
        async def away(*_: Any, **__: Any) -> Any:
            if name == "close":
                return
            if self.hangs:
                await asyncio.sleep(60)
            raise StoreError("away")

        return away


@pytest.mark.parametrize(("hangs", "reason"), [(False, "store: unavailable"), (True, "store: too slow")])
async def test_without_the_store_the_request_itself_is_the_history(hangs: bool, reason: str) -> None:
    store = AwayStore()
    ranker = StandInRanker()
    async with running(StandInCatalogue(), ranker, store=store) as recommender:
        store.hangs = hangs
        began = time.monotonic()
        first = await recommender.recommend(RecommendRequest(user_id="u", recent=["i8"], size=4), seconds=5)
        assert time.monotonic() - began < 2
        assert reason in first.degraded_reasons
        assert ranker.asked[-1][1] == ["item 8"]
        # The list is still in this process.
        second = await recommender.recommend(RecommendRequest(user_id="u", cursor=first.cursor, size=4), seconds=5)
        assert ids(first) + ids(second) == NEWEST_FIRST[:8]


async def test_without_the_catalogue_what_was_popular_is_shown() -> None:
    catalogue, ranker, store = StandInCatalogue(), StandInRanker(), open_store("sqlite::memory:")
    async with running(catalogue, ranker, store=store) as recommender:
        catalogue.failure = lambda: OSError("the index is torn")
        answer = await recommender.recommend(RecommendRequest(size=3, filters={"brand": "Fern"}), seconds=5)
        assert "catalogue: damaged" in answer.degraded_reasons
        assert ids(answer) == ["i58", "i54", "i50"]
        assert answer.items[0].fields["title"] == "item 58"
        kept = await store.get("remembered-popular")
    assert kept
    # A gateway that starts beside a damaged catalogue finds it in the store.
    other = open_store("sqlite::memory:")
    await other.put("remembered-popular", kept, 100)
    async with running(None, ranker, store=other) as recommender:
        answer = await recommender.recommend(RecommendRequest(size=2), seconds=5)
        assert answer.degraded_reasons == ["catalogue: missing"]
        assert ids(answer) == ["i59", "i58"]
    async with running(None, ranker) as recommender:
        nothing = await recommender.recommend(RecommendRequest(size=2), seconds=5)
        assert (nothing.items, nothing.cursor, nothing.degraded) == ([], "", True)


async def test_a_slow_catalogue_is_not_waited_for_past_the_deadline() -> None:
    catalogue = StandInCatalogue()
    async with running(catalogue, StandInRanker()) as recommender:
        catalogue.delay = 1.0
        began = time.monotonic()
        answer = await recommender.recommend(RecommendRequest(size=3), seconds=0.3)
        assert time.monotonic() - began < 0.9
        assert "catalogue: too slow" in answer.degraded_reasons
        assert len(answer.items) == 3


class Blend:
    """Knows nothing but the place in retrieval; the ranker's order is turned round."""

    artifact = "blend-1"
    names = ("logit",)
    fails = False
    orders_unranked = False
    ranked = 0
    first: Any = None

    def first_order(self, candidates: Any) -> Any:
        if self.fails:
            raise RuntimeError("torn")
        return self.first

    def features(self, candidates: Any, logits: Any) -> Any:
        if self.fails:
            raise RuntimeError("torn")
        assert len(candidates.fields) == len(logits) == len(candidates.ids)
        return logits[:, None]

    def score(self, features: Any) -> Any:
        return -features[:, 0]

    def parts(self, features: Any) -> Any:
        return -features


class FirstRanker(StandInRanker):
    """Scores the first 10 items of lists alone."""

    @property
    def of_lists(self) -> Any:
        async def score(query: str, history: Any, items: Any, **told: Any) -> Scored:
            return await self.score(query, history, items[:10], **told)

        return SimpleNamespace(score=score)


async def test_the_ranker_reads_as_many_as_the_blend_was_judged_with() -> None:
    blend, ranker = Blend(), StandInRanker()
    blend.ranked = 10
    request = RecommendRequest(query="desk", size=30)
    async with running(StandInCatalogue(30), ranker, blend=blend) as recommender:
        answer = await recommender.recommend(request, seconds=5)
        assert [len(items) for _, _, items in ranker.asked] == [10]
        assert not answer.degraded, "nothing is missing"
        assert [item.item_id for item in answer.items] == [f"i{place}" for place in range(30)]
        assert [item.logit is None for item in answer.items] == [False] * 10 + [True] * 20
        for order, asked in (("ranker", [30]), ("retrieval", [])):
            ranker.asked.clear()
            await recommender.recommend(replace(request, order=order), seconds=5)
            assert [len(items) for _, _, items in ranker.asked] == asked
        blend.first = np.arange(30)[::-1]  # retrieval's last are the first stage's first
        ranker.asked.clear()
        answer = await recommender.recommend(request, seconds=5)
        assert ranker.asked[0][2] == [f"item {place}" for place in range(29, 19, -1)]
        assert [item.item_id for item in answer.items] == [f"i{place}" for place in [*range(20, 30), *range(20)]]
        assert [item.logit for item in answer.items[:10]] == [float(place) for place in range(20, 30)]
        blend.fails = True
        ranker.asked.clear()
        answer = await recommender.recommend(request, seconds=5)
        assert ranker.asked[0][2] == [f"item {place}" for place in range(10)]
        assert answer.degraded_reasons == ["blend: failed"]
        blend.fails, blend.first = False, None
    for own, expected in ((5, 5), (200, 30)):
        ranker.asked.clear()
        async with running(StandInCatalogue(30), ranker, blend=blend, settings=EngineSettings(ranked=own)) as other:
            await other.recommend(request, seconds=5)
            assert [len(items) for _, _, items in ranker.asked] == [expected]


async def test_what_was_not_ranked_stays_behind_unless_the_blend_orders_it_better() -> None:
    blend = Blend()
    async with running(StandInCatalogue(30), FirstRanker(), blend=blend) as recommender:
        request = RecommendRequest(query="desk", size=30)
        places = await shown(recommender, request)
        assert places == [f"i{place}" for place in range(30)]  # the blend turns the ranker's order of the ten round
        blend.orders_unranked = True
        blend.score = lambda features: np.where(np.isnan(features[:, 0]), 4.5, features[:, 0])
        places = await shown(recommender, request)
        assert places == [f"i{place}" for place in [9, 8, 7, 6, 5, *range(10, 30), 4, 3, 2, 1, 0]]
        recommender.ranker = None  # nobody is asked at all: the blend orders what it knows, and it is said
        answer = await recommender.recommend(request, seconds=5)
        assert answer.artifacts["blend"] == "blend-1"
        assert answer.degraded_reasons == ["ranker: none"]


async def shown(recommender: Recommender, request: RecommendRequest) -> list[str]:
    answer = await recommender.recommend(request, seconds=5)
    assert not answer.degraded
    return ids(answer)


async def test_the_blend_orders_and_the_ranker_where_it_fails() -> None:
    blend = Blend()
    async with running(StandInCatalogue(), StandInRanker(), blend=blend) as recommender:
        answer = await recommender.recommend(RecommendRequest(size=2), seconds=5)
        assert (ids(answer), answer.artifacts["blend"]) == (["i0", "i1"], "blend-1")
        assert (answer.items[1].score, answer.items[1].logit) == (-1.0, 1.0)
        alone = await recommender.recommend(RecommendRequest(size=2, order="ranker"), seconds=5)
        assert (ids(alone), "blend" in alone.artifacts) == (["i59", "i58"], False)
        blend.fails = True
        failed = await recommender.recommend(RecommendRequest(size=2), seconds=5)
        assert (ids(failed), failed.degraded_reasons) == (["i59", "i58"], ["blend: failed"])


async def test_retrieval_alone_asks_no_ranker() -> None:
    ranker = StandInRanker()
    async with running(StandInCatalogue(), ranker) as recommender:
        answer = await recommender.recommend(RecommendRequest(size=2, order="retrieval"), seconds=5)
    assert (ids(answer), answer.degraded, ranker.asked) == (["i0", "i1"], False, [])
    assert "ranker" not in answer.artifacts


async def test_pages_go_on_through_the_whole_list_once() -> None:
    ranker, store = StandInRanker(), open_store("sqlite::memory:")
    catalogue = StandInCatalogue()
    async with running(catalogue, ranker, store=store) as recommender:
        shown, cursor, token = [], "", ""
        while True:
            answer = await recommender.recommend(RecommendRequest(user_id="u", cursor=cursor, size=7), seconds=5)
            shown += ids(answer)
            token = token or answer.page
            assert answer.page == token
            ranker.failure = lambda: Unavailable("another model is published, and slow")
            if not answer.cursor:
                break
            cursor = answer.cursor
        assert shown == NEWEST_FIRST
        assert len(ranker.asked) == 1


async def test_a_page_is_found_by_another_gateway_and_by_its_user_alone(tmp_path: Any) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with running(StandInCatalogue(), StandInRanker(), store=open_store(url)) as recommender:
        first = await recommender.recommend(RecommendRequest(user_id="u", size=3), seconds=5)
    changed = StandInCatalogue()
    del changed.items["i55"]
    async with running(changed, None, store=open_store(url)) as other:
        second = await other.recommend(RecommendRequest(user_id="u", cursor=first.cursor, size=3), seconds=5)
        assert ids(second) == ["i56", "i54", "i53"]  # what was removed is passed over
        assert [item.position for item in second.items] == [3, 5, 6]
        assert not second.degraded
        for stranger in ("", "v"):
            with pytest.raises(PageGoneError):
                await other.recommend(RecommendRequest(user_id=stranger, cursor=first.cursor), seconds=5)
        await other.users.erase("u")
        with pytest.raises(PageGoneError):
            await other.recommend(RecommendRequest(user_id="u", cursor=first.cursor), seconds=5)


async def test_without_a_store_a_page_that_is_not_here_is_made_anew_and_says_so() -> None:
    async with running(StandInCatalogue(), StandInRanker()) as recommender:
        first = await recommender.recommend(RecommendRequest(size=3), seconds=5)
        here = await recommender.recommend(RecommendRequest(size=3, cursor=first.cursor), seconds=5)
        assert (ids(here), here.degraded) == (["i56", "i55", "i54"], False)
    async with running(StandInCatalogue(), StandInRanker()) as other:
        there = await other.recommend(RecommendRequest(size=3, cursor=first.cursor), seconds=5)
        assert (ids(there), there.degraded_reasons) == (["i56", "i55", "i54"], ["page: made anew"])
        further = await other.recommend(RecommendRequest(size=3, cursor=there.cursor), seconds=5)
        assert (ids(further), further.degraded) == (["i53", "i52", "i51"], False)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (RecommendRequest(cursor="../../etc"), "cursor"),
        (RecommendRequest(cursor="0" * 32), "cursor"),
        (RecommendRequest(filters={"price": {"below": 3}}), "filters.price"),
        (RecommendRequest(filters={"price": {"lt": "x"}}), "filters.price"),
        (RecommendRequest(filters={"brand": []}), "filters.brand"),
        (RecommendRequest(filters={"brand": None}), "filters.brand"),
        (RecommendRequest(recent=[RecentItem("i1", "stare")]), "recent[0].type"),
    ],
    ids=["path", "token", "bound", "text", "empty", "null", "type"],
)
async def test_a_wrong_request_is_named(request_: RecommendRequest, named: str) -> None:
    async with running(StandInCatalogue(), StandInRanker()) as recommender:
        with pytest.raises(RequestError, match="^" + named.replace("[", r"\[").replace("]", r"\]")):
            await recommender.recommend(request_, seconds=5)


async def test_changed_items_are_seen_at_once_here_and_soon_by_those_who_share_the_store(tmp_path: Any) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    here, there = StandInCatalogue(3), StandInCatalogue(3)
    async with (
        running(here, StandInRanker(), store=open_store(url)) as one,
        running(there, StandInRanker(), store=open_store(url)) as two,
    ):
        fields = {"title": "item 99", "brand": "Fern", "price": 1.0, "in_stock": True}
        assert await one.change_items([ItemChange("i99", fields), ItemChange("i2", None)])
        assert ids(await one.recommend(RecommendRequest(), seconds=5)) == ["i99", "i1", "i0"]
        deadline = time.monotonic() + 5
        while ids(await two.recommend(RecommendRequest(), seconds=5)) != ["i99", "i1", "i0"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    restarted = StandInCatalogue(3)
    async with running(restarted, StandInRanker(), store=open_store(url)) as three:
        assert ids(await three.recommend(RecommendRequest(), seconds=5)) == ["i99", "i1", "i0"]
    without = StandInCatalogue(3)
    async with running(without, StandInRanker()) as four:
        assert not await four.change_items([ItemChange("i2", None)])
        assert ids(await four.recommend(RecommendRequest(), seconds=5)) == ["i1", "i0"]


async def test_who_hangs_up_cancels_the_ranker() -> None:
    ranker = StandInRanker()
    async with running(StandInCatalogue(), ranker) as recommender:
        ranker.delay = 5.0
        task = asyncio.create_task(recommender.recommend(RecommendRequest(), seconds=10))
        while not ranker.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert ranker.cancelled == 1


async def test_of_a_large_catalogue_nothing_is_looked_up_in_the_event_loop() -> None:
    """It may have to be read from a disk. Of a small one it may: all of it is in memory."""
    asked = RecommendRequest(recent=["i1", "i2"])
    for items, in_threads in ((60, False), (20_001, True)):
        catalogue = StandInCatalogue()
        catalogue.size = items
        async with running(catalogue, StandInRanker()) as recommender:
            catalogue.looking_threads.clear()
            await recommender.recommend(asked, seconds=5)
        assert all(name.startswith("recommend") for name in catalogue.looking_threads) == in_threads


async def test_nothing_is_computed_in_the_event_loop() -> None:
    catalogue = StandInCatalogue()
    async with running(catalogue, StandInRanker()) as recommender:
        await recommender.recommend(RecommendRequest(), seconds=5)
    assert all(name.startswith("recommend") for name in catalogue.threads)


async def test_similar_items_keep_to_rules_and_filters() -> None:
    catalogue = StandInCatalogue()
    async with running(catalogue, StandInRanker()) as recommender:
        answer = await recommender.similar("i4", 3, {"price": {"gte": 8}})
        assert [item.item_id for item in answer.items] == ["i8", "i12", "i16"]
        with pytest.raises(KeyError):
            await recommender.similar("nothing")
        catalogue.failure = lambda: OSError("torn")
        with pytest.raises(NoCatalogueError, match="damaged"):
            await recommender.similar("i4")
