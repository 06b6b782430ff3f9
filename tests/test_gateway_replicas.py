"""Several replicas behind one gateway, each of which may be gone, slow, overloaded or wrong."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_stand_ins import StandIn
from tritonrank_client import DeadlineExceeded, InvalidRequest, Overloaded, ServerFault, Unavailable
from tritonrank_gateway.discovery import names_of
from tritonrank_gateway.golden import GoldenRequest, WrongAnswerError
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.replicas import PoolSettings, ReplicaPool

REQUEST = RankRequest(query="boots", items=["hiking boots", "lamp"], deadline_s=2.0)
QUICK = PoolSettings(probe_seconds=0.02, probe_timeout_seconds=0.2)
NO_PROBES = PoolSettings(probe_seconds=1_000.0)
GOLDEN = GoldenRequest()


def pool_of(number: int, settings: PoolSettings = NO_PROBES, **options: object) -> tuple[ReplicaPool, list[StandIn]]:
    backends = [StandIn(f"r{place}") for place in range(number)]
    return ReplicaPool({one.name: one for one in backends}, GOLDEN, settings, **options), backends  # type: ignore[arg-type]


def gone() -> Unavailable:
    return Unavailable("no connection", retryable=True)


def ranked(backend: StandIn) -> list[RankRequest]:
    """What it was asked beside golden requests."""
    return [request for request in backend.asked if request.query != GOLDEN.query]


async def until(condition: object, seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_a_user_goes_to_the_same_replica_and_users_are_spread() -> None:
    pool, backends = pool_of(4)
    for _ in range(3):
        for user in range(200):
            await pool.rank(replace(REQUEST, user=f"u{user}"))
    of_replica = [{request.user for request in ranked(backend)} for backend in backends]
    assert sum(map(len, of_replica)) == 200  # no user was at two
    assert min(map(len, of_replica)) > 20
    await pool.close()


async def test_without_a_user_the_context_decides() -> None:
    pool, backends = pool_of(4)
    for _ in range(2):
        for number in range(50):
            await pool.rank(replace(REQUEST, query=f"query {number}", items=[f"item {number}"]))
    asked = [Counter(request.query for request in ranked(backend)) for backend in backends]
    assert sum(map(len, asked)) == 50
    await pool.close()


async def test_few_users_move_when_a_replica_is_gone() -> None:
    pool, backends = pool_of(4)
    users = [f"u{number}" for number in range(300)]

    async def homes() -> dict[str, str]:
        before = [len(ranked(backend)) for backend in backends]
        for user in users:
            await pool.rank(replace(REQUEST, user=user))
        return {
            request.user: backend.name
            for backend, seen in zip(backends, before, strict=True)
            for request in ranked(backend)[seen:]
            if backend.failure is None
        }

    first = await homes()
    backends[2].failure = gone
    second = await homes()
    assert set(second) == set(users)
    assert all(second[user] == first[user] for user in users if first[user] != "r2")
    await pool.close()


async def test_a_busy_replica_hands_its_share_on() -> None:
    """All requests are one user's, and still no replica has much more than its share."""
    pool, backends = pool_of(4)
    for backend in backends:
        backend.delay = 0.2
    calls = [asyncio.create_task(pool.rank(replace(REQUEST, user="one"))) for _ in range(40)]
    await asyncio.sleep(0.1)
    running = [len(ranked(backend)) for backend in backends]
    assert sum(running) == 40
    assert max(running) <= 1.25 * 10 + 1
    await asyncio.gather(*calls)
    assert [replica.load for replica in pool.replicas] == [0] * 4
    await pool.close()


@pytest.mark.parametrize(
    "failure",
    [gone, lambda: ServerFault("broken"), lambda: Overloaded("busy", retryable=True)],
    ids=["gone", "faulty", "overloaded"],
)
async def test_another_replica_answers_instead(failure: object) -> None:
    events: list[str] = []
    pool, backends = pool_of(2, watch=lambda event, replica: events.append(event))
    for backend in backends:
        backend.failure = failure if backend is backends[0] else None  # type: ignore[assignment]
    for user in range(20):
        assert (await pool.rank(replace(REQUEST, user=f"u{user}"))).artifact == backends[1].artifact
    assert len(ranked(backends[1])) == 20
    assert "retry" in events
    await pool.close()


@pytest.mark.parametrize("failure", [lambda: InvalidRequest("items: empty"), lambda: DeadlineExceeded("late")])
async def test_some_errors_are_nobodys_elses(failure: object) -> None:
    pool, backends = pool_of(3)
    await pool.ready()
    await until(lambda: all(backend.asked for backend in backends))  # the golden requests, which must be answered
    for backend in backends:
        backend.failure = failure  # type: ignore[assignment]
    with pytest.raises(type(failure())):  # type: ignore[operator]
        await pool.rank(REQUEST)
    assert sum(len(ranked(backend)) for backend in backends) == 1
    assert all(replica.is_up for replica in pool.replicas)
    await pool.close()


async def test_an_overload_is_tried_once_more_and_an_outage_everywhere() -> None:
    pool, backends = pool_of(4)
    for failure, times in ((lambda: Overloaded("busy", retryable=True), 2), (gone, 4)):
        for backend in backends:
            backend.failure, backend.asked = failure, []  # type: ignore[assignment]
        with pytest.raises((Overloaded, Unavailable)):
            await pool.rank(REQUEST)
        assert sum(len(ranked(backend)) for backend in backends) == times
    await pool.close()


async def test_the_second_try_has_what_is_left_of_the_deadline() -> None:
    pool, backends = pool_of(2)
    for backend in backends:
        backend.delay, backend.failure = 0.1, gone
    with pytest.raises(Unavailable):
        await pool.rank(replace(REQUEST, deadline_s=1.0))
    first, second = sorted((ranked(backend)[0].deadline_s or 0 for backend in backends), reverse=True)
    assert second <= first - 0.1
    for backend in backends:
        backend.asked = []
    with pytest.raises(Unavailable):
        await pool.rank(replace(REQUEST, deadline_s=0.05))
    assert sum(len(ranked(backend)) for backend in backends) == 1
    await pool.close()


async def test_a_lost_replica_is_out_and_comes_back_by_itself() -> None:
    pool, backends = pool_of(2, QUICK)
    backends[0].failure = gone
    for user in range(10):
        await pool.rank(replace(REQUEST, user=f"u{user}"))
    assert [replica.is_up for replica in pool.replicas] == [False, True]
    assert len(ranked(backends[0])) <= 1  # one request found out, or the golden one did
    backends[0].failure = None
    await until(lambda: pool.replicas[0].is_up)
    for user in range(50):
        await pool.rank(replace(REQUEST, user=f"u{user}"))
    assert len(ranked(backends[0])) > 5
    assert (pool.replicas[0].counts.ejections, pool.replicas[0].counts.returns) == (1, 1)
    await pool.close()


async def test_golden_requests_find_out_before_a_user_does() -> None:
    pool, backends = pool_of(2, QUICK)
    assert await pool.ready()
    backends[1].failure = gone
    await until(lambda: not pool.replicas[1].is_up)
    assert not ranked(backends[1])
    assert await pool.ready()
    backends[0].failure = gone
    await until(lambda: not pool.replicas[0].is_up)
    assert not await pool.ready()
    await pool.close()


async def test_wrong_scores_put_a_replica_out() -> None:
    pool, backends = pool_of(2, QUICK)
    await pool.ready()
    await until(lambda: all(backend.asked for backend in backends))
    backends[1].offset = 0.5
    await until(lambda: not pool.replicas[1].is_up)
    assert "0.5" in pool.replicas[1].reason
    backends[1].artifact = "b" * 16  # of another model other scores are right
    await until(lambda: pool.replicas[1].is_up)
    await pool.close()


async def test_one_that_hangs_is_out_after_a_few_golden_requests() -> None:
    pool, backends = pool_of(2, PoolSettings(probe_seconds=0.01, probe_timeout_seconds=0.03))
    await pool.ready()
    backends[0].delay = 60.0
    await until(lambda: not pool.replicas[0].is_up)
    assert "in time" in pool.replicas[0].reason
    backends[0].delay = 0.0
    await until(lambda: pool.replicas[0].is_up)
    await pool.close()


async def test_one_that_flaps_stays_out_longer_each_time() -> None:
    pool, backends = pool_of(2, PoolSettings(probe_seconds=0.01, probe_timeout_seconds=0.1))
    await pool.ready()
    holds = []
    for _ in range(3):
        backends[0].failure = gone
        await until(lambda: not pool.replicas[0].is_up)
        holds.append(pool.replicas[0].hold_seconds)
        backends[0].failure = None
        await until(lambda: pool.replicas[0].is_up)
    assert holds == [0.0, 0.25, 0.5]
    await pool.close()


async def test_an_overloaded_replica_is_not_ill() -> None:
    pool, backends = pool_of(2, QUICK)
    await pool.ready()
    backends[0].failure = lambda: Overloaded("busy", retryable=True)
    seen = len(backends[0].asked)
    await until(lambda: len(backends[0].asked) > seen + 5)
    assert pool.replicas[0].is_up
    await pool.close()


async def test_when_all_are_out_all_are_asked() -> None:
    pool, backends = pool_of(2)
    for backend in backends:
        backend.failure = gone
    with pytest.raises(Unavailable):
        await pool.rank(REQUEST)
    assert not any(replica.is_up for replica in pool.replicas)
    for backend in backends:
        backend.failure = None
    assert (await pool.rank(REQUEST)).artifact == backends[0].artifact
    await pool.close()


async def test_hedging_answers_with_the_first_and_hangs_up_on_the_other() -> None:
    pool, backends = pool_of(2, replace(NO_PROBES, hedge_after_seconds=0.05))
    await pool.rank(REQUEST)
    home = next(place for place, backend in enumerate(backends) if ranked(backend))
    backends[home].delay = 5.0
    started = asyncio.get_running_loop().time()
    await pool.rank(replace(REQUEST, deadline_s=3.0))
    assert asyncio.get_running_loop().time() - started < 1.0
    await until(lambda: backends[home].cancelled == 1)
    assert [replica.load for replica in pool.replicas] == [0, 0]
    await pool.close()


async def test_hedges_have_a_budget() -> None:
    pool, backends = pool_of(2, replace(NO_PROBES, hedge_after_seconds=0.001))
    for backend in backends:
        backend.delay = 0.01
    for number in range(100):
        await pool.rank(replace(REQUEST, user=f"u{number}"))
    extra = sum(len(ranked(backend)) for backend in backends) - 100
    assert 5 <= extra <= 11  # the burst, and one in twenty
    await pool.close()


async def test_hanging_up_hangs_up_on_the_replica() -> None:
    pool, backends = pool_of(2)
    for backend in backends:
        backend.delay = 5.0
    call = asyncio.create_task(pool.rank(REQUEST))
    await asyncio.sleep(0.02)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: sum(backend.cancelled for backend in backends) >= 1)
    assert all(replica.is_up for replica in pool.replicas)
    await pool.close()
    assert all(backend.is_closed for backend in backends)


async def test_the_model_is_told_by_whoever_answers() -> None:
    pool, backends = pool_of(3)
    backends[0].failure = gone
    assert (await pool.info()).name in ("r1", "r2")
    for backend in backends:
        backend.failure = gone
    with pytest.raises(Unavailable):
        await pool.info()
    await pool.close()


def test_golden_json_of_a_repository(tmp_path: Path) -> None:
    case = {"query": "q", "history": [], "items": ["a", "b"], "scores": [0.25, 0.5]}
    path = tmp_path / "golden.json"
    path.write_text(json.dumps({"artifact": "a1", "tolerance": 1e-4, "cases": [case]}))
    golden = GoldenRequest.read(path)
    golden.check(Ranking([1, 0], [0.5, 0.25], "a1"))
    with pytest.raises(WrongAnswerError):
        golden.check(Ranking([1, 0], [0.6, 0.25], "a1"))
    with pytest.raises(WrongAnswerError):
        golden.check(Ranking([1], [0.5], "a1"))
    golden.check(Ranking([1, 0], [0.6, 0.25], "another"))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"golden\.json"):
        GoldenRequest.read(path)


def test_a_replica_is_named_once() -> None:
    assert names_of(["grpc://a:8001", "grpc://b:8001"]) == ["a:8001", "b:8001"]
    with pytest.raises(ValueError, match="twice"):
        names_of(["grpc://a:8001", "grpc://a:8001"])
    with pytest.raises(ValueError, match="backends"):
        ReplicaPool({}, GOLDEN)
