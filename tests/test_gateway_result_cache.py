"""The result cache: the same answers as without it, bounded, and never those of another model."""

import asyncio
from dataclasses import replace

import pytest
from gateway_stand_ins import StandIn
from tritonrank_client import DeadlineExceeded, Overloaded
from tritonrank_gateway.ranking import RankRequest
from tritonrank_gateway.result_cache import ENTRY_BYTES, CachedBackend, request_key

REQUEST = RankRequest(query="boots", items=["hiking boots", "lamp", {"title": "wide boots"}], history=["poles"])


async def test_the_same_request_is_answered_once() -> None:
    backend = StandIn()
    cache = CachedBackend(backend, 100_000)
    first = await cache.rank(REQUEST)
    again = await cache.rank(replace(REQUEST, deadline_s=0.5, user="somebody"))
    assert again == replace(first, is_cached=True)
    assert len(backend.asked) == 1
    assert (cache.counts.hits, cache.counts.misses) == (1, 1)
    assert cache.counts.hit_rate == 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"query": "boot"},
        {"query": "boots "},
        {"history": []},
        {"items": ["hiking boots", {"title": "wide boots"}, "lamp"]},
        {"items": ["hiking boots", "lamp", '{"title": "wide boots"}']},
        {"item_ids": ["1", "2", "3"]},
        {"top_k": 2},
        {"want": ("truncated",)},
        {"max_item_tokens": 3},
        {"truncate_left": True},
    ],
    ids=str,
)
async def test_whatever_changes_an_answer_is_another_request(change: dict[str, object]) -> None:
    assert request_key(REQUEST) != request_key(replace(REQUEST, **change))  # type: ignore[arg-type]
    backend = StandIn()
    cache = CachedBackend(backend, 100_000)
    await cache.rank(REQUEST)
    await cache.rank(replace(REQUEST, **change))  # type: ignore[arg-type]
    assert len(backend.asked) == 2


async def test_bytes_are_bounded_and_the_oldest_goes_first() -> None:
    backend = StandIn()
    cache = CachedBackend(backend, 10 * (ENTRY_BYTES + 400))
    requests = [replace(REQUEST, query=str(number)) for number in range(200)]
    for request in requests:
        await cache.rank(request)
        await cache.rank(requests[0])  # used again and again, so it stays
        assert cache.bytes <= 10 * (ENTRY_BYTES + 400)
    assert 5 < len(cache) < 15
    asked = len(backend.asked)
    await cache.rank(requests[0])
    await cache.rank(requests[-1])
    assert len(backend.asked) == asked
    await cache.rank(requests[1])
    assert len(backend.asked) == asked + 1


async def test_an_answer_larger_than_all_room_is_not_kept() -> None:
    backend = StandIn()
    cache = CachedBackend(backend, ENTRY_BYTES + 300)
    large = replace(REQUEST, items=["text"] * 1_000)
    for _ in range(2):
        await cache.rank(large)
    assert (len(backend.asked), len(cache), cache.bytes) == (2, 0, 0)


async def test_another_artifact_empties_it() -> None:
    backend = StandIn()
    cache = CachedBackend(backend, 100_000, recheck_seconds=0.05)
    await cache.rank(REQUEST)
    await cache.rank(replace(REQUEST, query="lamp"))
    backend.artifact, backend.offset = "b" * 16, 1.0
    await asyncio.sleep(0.06)
    # No answer for a while: this one is asked for although it is kept, and shows that all others are of yesterday.
    assert (await cache.rank(REQUEST)).artifact == "b" * 16
    assert (await cache.rank(replace(REQUEST, query="lamp"))).artifact == "b" * 16
    assert len(backend.asked) == 4
    assert cache.counts.emptied == 1


async def test_equal_requests_at_once_are_one() -> None:
    backend = StandIn()
    backend.delay = 0.05
    cache = CachedBackend(backend, 100_000)
    answers = await asyncio.gather(*(cache.rank(REQUEST) for _ in range(20)))
    assert len(backend.asked) == 1
    assert all(answer == answers[0] for answer in answers)
    assert (cache.counts.misses, cache.counts.shared) == (1, 19)


async def test_who_hangs_up_leaves_the_others_alone() -> None:
    backend = StandIn()
    backend.delay = 0.05
    cache = CachedBackend(backend, 100_000)
    first, second = (asyncio.create_task(cache.rank(REQUEST)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    assert (await second).artifact == backend.artifact
    assert (len(backend.asked), backend.cancelled) == (1, 0)


async def test_the_work_ends_when_all_have_hung_up() -> None:
    backend = StandIn()
    backend.delay = 5.0
    cache = CachedBackend(backend, 100_000)
    tasks = [asyncio.create_task(cache.rank(REQUEST)) for _ in range(3)]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    backend.delay = 0.0
    assert (await cache.rank(REQUEST)).artifact == backend.artifact  # does not join what was cancelled
    assert (backend.cancelled, len(backend.asked)) == (1, 2)


async def test_one_that_has_less_time_goes_alone() -> None:
    backend = StandIn()
    backend.delay = 0.1
    cache = CachedBackend(backend, 100_000)
    patient = asyncio.create_task(cache.rank(REQUEST))
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded):
        await cache.rank(replace(REQUEST, deadline_s=0.02))
    assert (await patient).artifact == backend.artifact


async def test_one_that_has_more_time_is_not_late_with_another() -> None:
    backend = StandIn()
    backend.delay = 0.1
    cache = CachedBackend(backend, 100_000)
    hasty = asyncio.create_task(cache.rank(replace(REQUEST, deadline_s=0.02)))
    await asyncio.sleep(0)
    patient = asyncio.create_task(cache.rank(replace(REQUEST, deadline_s=1.0)))
    with pytest.raises(DeadlineExceeded):
        await hasty
    assert (await patient).artifact == backend.artifact


async def test_errors_are_told_to_all_and_kept_for_nobody() -> None:
    backend = StandIn()
    backend.delay = 0.02
    backend.failure = lambda: Overloaded("busy", retryable=True)
    cache = CachedBackend(backend, 100_000)
    answers = await asyncio.gather(*(cache.rank(REQUEST) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Overloaded] * 3
    backend.failure = None
    assert (await cache.rank(REQUEST)).artifact == backend.artifact


async def test_closing_closes_what_is_behind() -> None:
    backend = StandIn()
    cache = CachedBackend(backend, 100_000)
    await cache.rank(REQUEST)
    await cache.close()
    assert backend.is_closed
    assert len(cache) == 0


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="most_bytes"):
        CachedBackend(StandIn(), 0)
