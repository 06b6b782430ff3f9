"""Versions side by side: who answers, who is repeated to, what a canary's faults cost a caller, and what is counted."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_stand_ins import StandIn
from prometheus_client import generate_latest
from tritonrank_client import DeadlineExceeded, InvalidRequest, Overloaded, RankError, Retry, ServerFault, Unavailable
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.versions import versions as router
from tritonrank_gateway.versions.arm import Arm
from tritonrank_gateway.versions.changing import Changing
from tritonrank_gateway.versions.checking import NotTakenError
from tritonrank_gateway.versions.opening import Opener
from tritonrank_gateway.versions.versions import MOST_FAULTS, Versions
from version_stand_ins import Standing, Turned, standing, version

ITEMS = ["oak", "oak desk", "oak desk with drawers"]
USERS = [f"user-{number}" for number in range(400)]


def request(user: str = "", items: list[str] | None = None, deadline_s: float | None = 5.0) -> RankRequest:
    return RankRequest(query="desk", items=items or ITEMS, user=user, deadline_s=deadline_s)


async def artifacts_of(rank: Callable[[RankRequest], object], users: list[str]) -> list[str]:
    return [(await rank(request(user))).artifact for user in users]  # type: ignore[misc, attr-defined]


async def test_a_canary_keeps_its_users_and_gets_more_with_its_share() -> None:
    stand = standing()
    assert set(await artifacts_of(stand.versions.rank, USERS[:20])) == {"a" * 16}
    before: set[str] = set()
    for share in (0.05, 0.25, 0.5):
        await stand.put("canary", share)
        for _ in range(2):
            answered = await artifacts_of(stand.versions.rank, USERS)
            chosen = {user for user, artifact in zip(USERS, answered, strict=True) if artifact == "b" * 16}
            assert before <= chosen
            before = chosen
        assert abs(len(chosen) / len(USERS) - share) < 0.07
    other_name = standing()
    await other_name.put("canary", 0.25, name="later")
    answered = await artifacts_of(other_name.versions.rank, USERS)
    others = {user for user, artifact in zip(USERS, answered, strict=True) if artifact == "b" * 16}
    assert len(others - before) > 0, "another version takes other users"


async def test_a_context_is_sticky_where_nobody_is_named() -> None:
    stand = standing()
    await stand.put("canary", 0.5)
    answers = [
        {(await stand.versions.rank(replace(request(), query=f"query {number}"))).artifact for _ in range(3)}
        for number in range(40)
    ]
    assert {len(one) for one in answers} == {1}
    assert len(set.union(*answers)) == 2


@pytest.mark.parametrize(
    ("failure", "counted"),
    [
        (lambda: Unavailable("gone"), "failed"),
        (lambda: ServerFault("broken"), "failed"),
        (lambda: Overloaded("full", retryable=True), "refused"),
        (lambda: DeadlineExceeded("late"), "late"),
        (lambda: InvalidRequest("another model"), "invalid"),
    ],
    ids=["unavailable", "fault", "overloaded", "late", "invalid"],
)
async def test_a_caller_never_sees_that_a_canary_failed(failure: Callable[[], RankError], counted: str) -> None:
    stand = standing()
    await stand.put("canary")
    stand.other.failure = failure
    ranking = await stand.versions.rank(request("u"))
    assert (ranking.artifact, ranking.version) == ("a" * 16, "live")
    compared = stand.versions.compared().canary
    assert compared is not None
    assert getattr(compared.version, counted) == compared.version.fallen_back == 1
    assert (compared.version.rankings, compared.live.rankings) == (0, 0), "it is no ranking of a live user's"


async def test_an_answer_that_is_none_is_not_given() -> None:
    class Mute(StandIn):
        async def rank(self, request: RankRequest) -> Ranking:
            return replace(await super().rank(request), logits=[float("nan")] * len(request.items))

    stand = standing()
    await stand.put("canary")
    stand.changing.versions.arm("canary").opened = replace(  # type: ignore[union-attr]
        stand.changing.versions.arm("canary").opened,
        backend=Mute(),  # type: ignore[union-attr]
    )
    assert (await stand.versions.rank(request("u"))).artifact == "a" * 16


async def test_a_canary_that_hangs_leaves_live_its_time_and_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "REST_SECONDS", 60.0)
    stand = standing()
    await stand.put("canary")
    stand.other.delay = 30.0
    began = time.monotonic()
    assert (await stand.versions.rank(request("u", deadline_s=0.4))).artifact == "a" * 16
    assert 0.15 < time.monotonic() - began < 2
    assert stand.live.asked[-1].deadline_s is not None
    assert stand.live.asked[-1].deadline_s < 0.3
    for _ in range(MOST_FAULTS):
        await stand.versions.rank(request("u", deadline_s=0.02))
    asked, began = len(stand.other.asked), time.monotonic()
    await stand.versions.rank(request("u", deadline_s=10.0))
    assert time.monotonic() - began < 1
    assert len(stand.other.asked) == asked
    compared = stand.versions.compared().canary
    assert compared is not None
    assert compared.version.resting >= 1
    assert sum(compared.version.seconds) == compared.version.late >= MOST_FAULTS, "what is late has taken its time"


async def test_a_canary_is_given_up_after_a_few_times_what_live_takes() -> None:
    stand = standing()
    await stand.put("canary", 0.5)
    for user in USERS[:200]:
        await stand.versions.rank(request(user))
    stand.other.delay = 30.0
    user = next(one for one in USERS if stand.versions.side_of(f"user:{one}") == "canary")
    began = time.monotonic()
    await stand.versions.rank(request(user, deadline_s=20.0))
    assert time.monotonic() - began < 5, "half of the deadline would be 10 s"


async def test_what_both_find_wrong_is_the_callers_fault() -> None:
    stand = standing()
    await stand.put("canary")
    stand.other.failure = stand.live.failure = lambda: InvalidRequest("items[0]: wrong")
    with pytest.raises(InvalidRequest):
        await stand.versions.rank(request("u"))
    compared = stand.versions.compared().canary
    assert compared is not None
    assert compared.version.fallen_back == 0


@pytest.mark.parametrize(("other", "overlap"), [(StandIn(), 1.0), (Turned(), 0.6)], ids=["same", "turned"])
async def test_a_shadow_is_compared_and_never_heard(other: StandIn, overlap: float) -> None:
    stand = standing(other)
    await stand.put("shadow")
    items = [f"{'x' * number} item" for number in range(20)]
    for number in range(8):
        ranking = await stand.versions.rank(request(f"u{number}", items))
        assert ranking.artifact == "a" * 16
        await drained(stand)
    compared = stand.versions.compared().shadow
    assert compared is not None
    pairs = compared.pairs
    assert (pairs.count, pairs.top_ten_count, pairs.drift_count) == (8, 8, 8)
    assert compared.artifact == "b" * 16
    if overlap == 1.0:
        assert pairs.rbo == pytest.approx(8)
        assert (pairs.top_ten, pairs.drift) == (8, 0)
        assert pairs.live_bins == pairs.version_bins
    else:
        assert pairs.rbo / 8 < overlap
        assert pairs.top_ten == 0
        assert pairs.drift / 8 > 1
    assert sum(pairs.live_bins) == pytest.approx(8)
    assert pairs.rbo_squares / 8 == pytest.approx((pairs.rbo / 8) ** 2)
    assert sum(compared.live.seconds) == sum(compared.version.seconds) == 8
    assert compared.version.candidates == 160


async def drained(stand: Standing) -> None:
    """Whatever is on its way to the shadow is answered and compared."""
    async with asyncio.timeout(10):
        while stand.versions._shadowing._running:
            await asyncio.sleep(0.001)


async def test_a_shadow_gives_way_first() -> None:
    stand = standing()
    await stand.put("shadow")
    stand.other.delay = 30.0
    for _ in range(10):
        await stand.versions.rank(request("u"))
    stand.versions.is_busy = lambda: True
    await stand.versions.rank(request("u"))
    stand.versions.is_busy = lambda: False
    await stand.versions.rank(replace(request("u"), is_shown=False))
    compared = stand.versions.compared().shadow
    assert compared is not None
    assert compared.dropped == {"waiting": 6, "busy": 1}
    assert stand.live.running == 0
    await stand.versions.close()


async def test_what_fails_in_the_shadow_is_counted_alone() -> None:
    stand = standing()
    await stand.put("shadow")
    for failure in (Unavailable("gone"), Overloaded("full"), ValueError("a bug")):
        stand.other.failure = lambda failure=failure: failure  # type: ignore[misc]
        assert (await stand.versions.rank(request("u"))).artifact == "a" * 16
        await drained(stand)
    compared = stand.versions.compared().shadow
    assert compared is not None
    assert (compared.version.failed, compared.version.refused, compared.pairs.count) == (2, 1, 0)


async def test_half_of_the_requests_are_repeated_at_a_share_of_one_half() -> None:
    stand = standing()
    await stand.put("shadow", 0.5)
    for _ in range(200):
        await stand.versions.rank(request("u"))
        await drained(stand)
    assert 60 < len(stand.other.asked) < 140


async def test_live_is_swapped_without_losing_a_request_and_closed_after_the_last_one() -> None:
    class Held(StandIn):
        gate = asyncio.Event()

        async def rank(self, request: RankRequest) -> Ranking:
            await self.gate.wait()
            return await super().rank(request)

    stand, held = standing(), Held("live")
    stand.versions.live.opened = replace(stand.versions.live.opened, backend=held)
    waiting = [asyncio.create_task(stand.versions.rank(request(f"u{number}"))) for number in range(5)]
    await asyncio.sleep(0.01)
    swap = asyncio.create_task(stand.put("live"))
    await asyncio.sleep(0.05)
    assert (await stand.versions.rank(request("u"))).artifact == "b" * 16
    assert not held.is_closed
    held.gate.set()
    await swap
    assert held.is_closed
    assert not stand.other.is_closed
    assert {task.result().artifact for task in waiting} == {"a" * 16}
    assert held.cancelled == 0
    assert stand.versions.told().live.model == "other"


@pytest.mark.parametrize("role", ["live", "canary", "shadow"])
async def test_a_version_that_does_not_answer_takes_no_role(role: str) -> None:
    stand = standing()
    stand.other.failure = lambda: Unavailable("gone")
    with pytest.raises(NotTakenError, match="load the version"):
        await stand.put(role)  # type: ignore[arg-type]
    assert stand.other.is_closed
    assert not stand.live.is_closed
    assert (stand.versions.generation, stand.versions.told().canary) == (1, None)
    with pytest.raises(NotTakenError, match="not there"):
        await stand.changing.put("live", version("nowhere"))


async def test_the_same_again_changes_nothing_and_a_share_begins_nothing_anew() -> None:
    stand = standing()
    await stand.put("canary", 1.0)
    await stand.versions.rank(request("u"))
    generation = stand.versions.generation
    await stand.put("canary", 1.0)
    assert stand.versions.generation == generation
    await stand.put("canary", 0.999)
    compared = stand.versions.compared().canary
    assert compared is not None
    assert (stand.versions.generation, compared.share, compared.version.rankings) == (generation + 1, 0.999, 1)
    assert compared.since_generation == generation
    await stand.put("canary", 0.999, name="another")
    compared = stand.versions.compared().canary
    assert compared is not None
    assert (compared.name, compared.version.rankings) == ("another", 0)
    await stand.changing.delete("canary")
    await stand.changing.delete("canary")
    assert stand.versions.compared().canary is None
    assert (await stand.versions.rank(request("u"))).artifact == "a" * 16


class FollowingOpener(Opener):
    """Its Tritons are stand-ins, by address."""

    def __init__(self) -> None:
        metrics = Metrics()
        super().__init__(GatewaySettings(probe_s=0.05), metrics)
        self.registry = metrics.registry
        self.tritons: dict[str, StandIn] = {}

    def _triton(self, model: str, retry: Retry, address: str) -> StandIn:  # type: ignore[override]
        return self.tritons.setdefault(address, StandIn(address))


async def test_a_version_may_have_addresses_that_are_looked_up(tmp_path: Path) -> None:
    opener, file = FollowingOpener(), tmp_path / "tritons"
    opener.tritons["b:1"] = StandIn("b:1")
    opener.tritons["b:1"].failure = lambda: Unavailable("it starts")
    first = version("rank", name="first", triton=["a:1"])
    versions = Versions(Arm(first, opener.open(first, "live")), opener)
    changing = Changing(versions, opener, ready_seconds=5)
    file.write_text("b:1\nb:2\n")
    await changing.put("live", version("rank", triton=[f"file:{file}"]))
    assert opener.tritons["a:1"].is_closed
    for user in USERS[:30]:
        await versions.rank(request(user))
    assert len(opener.tritons["b:2"].asked) >= 30
    page = generate_latest(opener.registry).decode()
    assert 'replica_up{replica="b:1",version="live"} 0.0' in page
    assert 'replica_up{replica="b:2",version="live"} 1.0' in page
    with pytest.raises(NotTakenError, match="no address"):
        await Changing(versions, opener, ready_seconds=0.1).put(
            "canary", version("rank", triton=[f"file:{tmp_path / 'nowhere'}"])
        )
    await versions.close()


async def test_each_version_keeps_its_own_answers() -> None:
    stand = standing(has_cache=True)
    await stand.put("canary", 0.5)
    for _ in range(3):
        answers = await artifacts_of(stand.versions.rank, USERS[:30])
    assert set(answers) == {"a" * 16, "b" * 16}
    assert len(stand.live.asked) == 1
    assert len(stand.other.asked) == 2, "the golden request and one"
    compared = stand.versions.compared().canary
    assert compared is not None
    assert compared.version.rankings + compared.live.rankings == 90
    assert sum(compared.live.seconds) + sum(compared.version.seconds) == 2, "what was kept says nothing of speed"
