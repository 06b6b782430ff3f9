"""Outcomes that are known by construction, and the figures that they have to give."""

import math
from collections.abc import Sequence

import pytest

from loadtests.accounting import LARGEST_LAG_MS, Accounts, Outcome, Recorder
from loadtests.results import FailureKind
from loadtests.shapes import Plan, PlannedPhase, plan_of


def outcome(
    number: int, due: float, *, lag: float = 0.0, took: float = 0.1, kind: FailureKind | None = None
) -> Outcome:
    return Outcome(number, due, due + lag, due + lag + took, kind, candidates=10, bytes=100)


def accounts(outcomes: Sequence[Outcome], *, seconds: float = 10.0, due: Sequence[float] | None = None) -> Accounts:
    plan = plan_of("steady", rate=10, seconds=seconds)
    return Accounts(plan, [one.due for one in outcomes] if due is None else due, outcomes, deadline_seconds=1.0)


def test_latency_counts_from_when_a_request_was_due() -> None:
    totals = accounts([outcome(place, place / 10, lag=0.2, took=0.1) for place in range(100)]).totals()
    assert totals.latency.p50 == pytest.approx(300, abs=0.01)
    assert totals.service.p50 == pytest.approx(100, abs=0.01)
    assert (totals.offered, totals.answered, totals.good) == (100, 100, 100)
    assert totals.offered_per_second == totals.goodput_per_second == 10
    assert totals.candidates_per_second == 100


def test_a_stall_shows_in_all_requests_that_were_due_in_it() -> None:
    """From second 3 to 4 nothing is answered: what is due at 3 + x waits 1 - x. A client that waits for its answer
    would have sent one request in that second, and called it an outlier."""
    due = [place / 20 for place in range(200)]
    found = accounts([outcome(n, t, took=4 - t if 3 <= t < 4 else 0.01) for n, t in enumerate(due)], due=due)
    row = found.per_second()[3]
    assert (row.offered, row.answered) == (20, 20)
    assert row.latency.max == pytest.approx(1_000)
    assert row.latency.p50 == pytest.approx(500)
    assert found.totals().latency.p99 == pytest.approx(900)
    closed = [outcome(0, 3.0, took=1.0), *(outcome(n, 0.05 * n, took=0.01) for n in range(1, 100))]
    assert accounts(closed).totals().latency.p99 == pytest.approx(10), "what a closed loop would have said"


def test_late_answers_are_answered_but_no_good() -> None:
    totals = accounts([outcome(0, 1, took=0.9), outcome(1, 2, took=1.1), outcome(2, 3, lag=0.5, took=0.6)]).totals()
    assert (totals.answered, totals.good, totals.error_rate) == (3, 1, 0)


def test_failures_are_told_apart_and_have_no_latency() -> None:
    kinds: list[FailureKind | None] = ["wrong", "rejected", "rejected", "expired", None]
    totals = accounts([outcome(n, n, took=0.1 * (n + 1), kind=kind) for n, kind in enumerate(kinds)]).totals()
    assert totals.failed == {"wrong": 1, "rejected": 2, "expired": 1}
    assert totals.error_rate == 0.8
    assert totals.latency.max == pytest.approx(500)
    assert totals.rejection.max == pytest.approx(300)


def test_what_never_came_back_is_a_failure() -> None:
    found = accounts([outcome(0, 0.5)], due=[0.5, 1.5, 2.5])
    assert found.totals().failed == {"unanswered": 2}
    assert [row.offered for row in found.per_second()[:4]] == [1, 1, 1, 0]
    health = found.health(senders=4, processes=1, cpu_seconds=None)
    assert not health.valid
    assert "2 requests were due and never sent" in health.why


def test_golden_requests_count_only_when_they_are_wrong() -> None:
    golden = [outcome(-1, 1, took=0.5), outcome(-1, 2, kind="rejected"), outcome(-1, 3, kind="wrong")]
    totals = accounts([outcome(0, 0.5), *golden], due=[0.5]).totals()
    assert (totals.offered, totals.answered, totals.failed) == (2, 1, {"wrong": 1})
    assert totals.latency.max == pytest.approx(100)


def test_the_warm_up_counts_for_nothing_but_is_shown() -> None:
    phases = [
        PlannedPhase(name="warm-up", seconds=2, rate=1, counts=False),
        PlannedPhase(name="steady", seconds=3, rate=1),
    ]
    slow_start = [outcome(0, 0.5, took=0.9), outcome(1, 1.5, kind="fault"), outcome(2, 2.5), outcome(3, 4.5)]
    found = Accounts(Plan(shape="steady", phases=phases), [0.5, 1.5, 2.5, 4.5], slow_start, 1.0)
    assert (found.totals().offered, found.totals().seconds, found.totals().failed) == (2, 3, {})
    warm_up, steady = found.phases()
    assert (warm_up.counts, warm_up.totals.failed, steady.totals.answered) == (False, {"fault": 1}, 2)
    assert [row.phase for row in found.per_second()] == ["warm-up"] * 2 + ["steady"] * 3


def test_in_flight_is_what_was_sent_and_not_yet_answered() -> None:
    found = accounts([outcome(n, n, took=2.5) for n in range(6)])
    assert [row.in_flight for row in found.per_second()] == [2, 3, 3, 3, 3, 2, 1, 0, 0, 0]
    assert found.health(senders=9, processes=1, cpu_seconds=1.0).most_in_flight == 3


def test_a_generator_that_falls_behind_makes_the_run_invalid() -> None:
    late = [outcome(n, n / 20, lag=0.0 if n < 190 else 2 * LARGEST_LAG_MS / 1_000) for n in range(200)]
    health = accounts(late).health(senders=4, processes=1, cpu_seconds=5.0)
    assert not health.valid
    assert "too slow for this rate" in health.why
    assert health.cpu_share == 0.5
    in_time = [outcome(n, n / 20, lag=0.002, took=3) for n in range(200)]
    assert accounts(in_time).health(senders=99, processes=1, cpu_seconds=None).valid, "a slow server is no such fault"
    assert not accounts([], due=[]).health(senders=1, processes=1, cpu_seconds=None).valid


def test_a_run_that_was_stopped_ends_where_it_was_stopped() -> None:
    due = [n / 10 for n in range(100)]
    found = Accounts(
        plan_of("steady", rate=10, seconds=10),
        due,
        [outcome(n, t) for n, t in enumerate(due) if t < 6],
        deadline_seconds=1.0,
        stopped_at=5.0,
    )
    assert found.seconds == 5
    assert found.totals().offered == found.totals().good == 50
    assert len(found.per_second()) == 5


def test_outcomes_survive_the_way_from_a_worker() -> None:
    worker, master = Recorder(), Recorder()
    worker.add(outcome(0, 1.0))
    worker.add(outcome(-1, 2.0, kind="wrong"), "a score differs")
    worker.artifact = "abc"
    for _ in range(2):  # what was taken is not sent twice
        report = worker.take()
        master.put(**{name: _as_sent(value) for name, value in report.items()})
    assert master.outcomes == [outcome(0, 1.0), outcome(-1, 2.0, kind="wrong")]
    assert master.answered == 1
    assert master.failures() == ["wrong: a score differs"]
    assert master.artifact == "abc"


def _as_sent(value: object) -> object:
    import msgpack

    return msgpack.loads(msgpack.dumps(value))


def test_of_many_messages_the_first_are_kept() -> None:
    recorder = Recorder()
    for number in range(100):
        recorder.add(outcome(number, 1.0, kind="fault"), f"broken {number}")
    assert len(recorder.failures()) == 5
    assert math.isclose(len(recorder.outcomes), 100)
