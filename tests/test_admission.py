"""The gate before the scorer: who may wait, for how long, and what counts as gone."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tritonrank_runtime import admission, scorer_counts
from tritonrank_runtime.admission import (
    EXPIRED,
    FAR_BEYOND,
    ON_ITS_WAY_SECONDS,
    TRUSTED_SECONDS,
    Admission,
    QueueFullError,
    RefusedError,
    TooLongError,
)
from tritonrank_runtime.deadlines import deadline_after, is_expired, seconds_left
from tritonrank_runtime.scorer_counts import LARGER_CLASSES, ScorerState, Speed, StartedCounter


class Clock:
    """The monotonic clock, which goes on only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1_000.0
        monkeypatch.setattr(admission.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(admission.time, "monotonic_ns", lambda: int(self.seconds * 1e9))

    def work(self, scorer: StartedCounter, tokens: int, seconds: float) -> None:
        """The scorer takes one request and computes it."""
        scorer.add(1, tokens)
        with scorer.busy(tokens):
            self.seconds += seconds
        scorer.rest()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def fill(gate: Admission, requests: int) -> int:
    """How many of so many requests are admitted."""
    return len(tickets_of(gate, requests))


def tickets_of(gate: Admission, requests: int) -> list[int]:
    """The tickets of those of so many requests that are admitted before one is refused."""
    tickets = []
    with suppress(QueueFullError):
        for _ in range(requests):
            gate.check_room(60)
            tickets.append(gate.admitted())
    return tickets


def busy_scorers(folder: Path, *names: str) -> list[StartedCounter]:
    """Instances that work on something, so that what is admitted waits."""
    scorers = [StartedCounter(name, folder) for name in names]
    for scorer in scorers:
        scorer.add(1, 1)
    return scorers


def test_no_more_than_the_limit_wait(tmp_path: Path) -> None:
    busy_scorers(tmp_path, "score_0")
    assert fill(Admission(5, 60, folder=tmp_path), 20) == 5


def test_a_started_request_makes_room_whichever_instance_took_it(tmp_path: Path) -> None:
    gate = Admission(5, 60, folder=tmp_path)
    first, second = busy_scorers(tmp_path, "score_0", "score_1")
    tickets = tickets_of(gate, 5)
    assert len(tickets) == len(set(tickets)) == 5
    assert tickets == sorted(tickets)
    first.add(2, 1, tickets[1])
    second.add(1, 1, tickets[2])
    assert fill(gate, 9) == 3
    second.add(4, 1, tickets[4])
    assert fill(gate, 9) == 2


def test_the_queue_is_told_as_the_gate_sees_it(clock: Clock, tmp_path: Path) -> None:
    """Requests that wait, seconds of all work by the measured speed, scorers; asking changes nothing."""
    gate, scorer = Admission(10, 60, folder=tmp_path), StartedCounter("score_0", tmp_path)
    assert gate.queue() == (0, 0.0, 1, 0)
    clock.work(scorer, 1_000, 0.5)  # 2,000 tokens in a second
    scorer.add(1, 600)
    tickets = [gate.admitted(tokens, left) for tokens, left in ((400, 60), (100, 60), (300, 0.1))]
    with scorer.busy(600):
        assert gate.queue() == (3, 0.7, 1, 1)
        clock.seconds += 0.2
        assert gate.queue() == (2, pytest.approx(0.55), 1, 1), "the deadline of one has passed"
    scorer.add(1, 400, tickets[0])
    assert gate.queue()[0] == 1
    assert [gate.queue() for _ in range(2)] == [gate.queue()] * 2


def test_what_newer_tickets_have_overtaken_waits_no_more(tmp_path: Path) -> None:
    gate = Admission(3, 60, folder=tmp_path)
    first, second = busy_scorers(tmp_path, "score_0", "score_1")
    tickets = tickets_of(gate, 3)
    second.add(1, 1, tickets[2])
    first.add(1, 1, tickets[0])
    assert fill(gate, 9) == 3, "the one between was lost"


def test_requests_without_a_ticket_make_no_room(tmp_path: Path) -> None:
    gate = Admission(3, 60, folder=tmp_path)
    (scorer,) = busy_scorers(tmp_path, "score_0")
    scorer.add(100, 1)  # warm-up, or somebody asks the scorer directly
    assert fill(gate, 9) == 3
    scorer.add(100, 1)
    assert fill(gate, 9) == 0


def test_a_made_up_ticket_lets_nobody_pass_who_comes_later(tmp_path: Path) -> None:
    gate = Admission(3, 60, folder=tmp_path)
    (scorer,) = busy_scorers(tmp_path, "score_0")
    scorer.add(1, 1, 2**62)
    assert fill(gate, 9) == 3


def test_what_an_idle_scorer_leaves_lying_is_not_coming(tmp_path: Path, clock: Clock) -> None:
    gate = Admission(3, 60, folder=tmp_path, batching_seconds=0.1)
    first, second = busy_scorers(tmp_path, "score_0", "score_1")
    assert fill(gate, 9) == 3
    clock.seconds += 10
    assert fill(gate, 9) == 0, "both work, so it may well wait"
    second.rest()
    clock.seconds += 0.1 + ON_ITS_WAY_SECONDS - 0.001
    assert fill(gate, 9) == 0, "it may still be on its way to the one that is free"
    clock.seconds += 0.002
    assert fill(gate, 9) == 3
    clock.seconds += 0.1 + ON_ITS_WAY_SECONDS - 0.001
    assert fill(gate, 9) == 0, "these are new"
    first.rest()
    second.add(1, 1)
    clock.seconds += 0.1
    assert fill(gate, 9) == 0, "the other one has just become free"


def test_a_request_lost_on_its_way_is_forgotten(tmp_path: Path) -> None:
    busy_scorers(tmp_path, "score_0")
    gate = Admission(2, 0.05, folder=tmp_path)
    assert fill(gate, 9) == 2
    time.sleep(0.06)
    assert fill(gate, 9) == 2


def test_a_scorer_that_starts_again_has_an_empty_queue(tmp_path: Path, clock: Clock) -> None:
    gate = Admission(2, 60, folder=tmp_path)
    (scorer,) = busy_scorers(tmp_path, "score_0")
    assert fill(gate, 9) == 2
    scorer.close()
    StartedCounter("score_0", tmp_path)
    clock.seconds += 2 * ON_ITS_WAY_SECONDS
    assert fill(gate, 9) == 2


def test_tickets_of_a_gate_that_starts_again_are_newer(tmp_path: Path) -> None:
    before = tickets_of(Admission(3, 60, folder=tmp_path), 3)
    assert min(tickets_of(Admission(3, 60, folder=tmp_path), 3)) > max(before)


# A folder that somebody cleans up


def test_without_the_folder_everybody_goes_on_and_it_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "queue"
    scorer = StartedCounter("score_0", folder)
    gate = Admission(2, 60, folder=folder)
    scorer.add(1, 5)
    shutil.rmtree(tmp_path / "run")
    assert fill(gate, 9) == 2
    with scorer.busy(5) as instances:
        assert instances == 1
        assert ScorerState.unpacked((folder / "score_0").read_bytes()).is_busy
    shutil.rmtree(tmp_path / "run")
    scorer.rest()
    assert [path.name for path in folder.iterdir()] == ["score_0"]
    assert folder.stat().st_mode & 0o077 == 0
    shutil.rmtree(folder)
    scorer.close()


def test_where_no_folder_can_be_made_nothing_is_counted_and_nothing_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "queue"
    gate, scorer = Admission(2, 60, 0.5, folder), StartedCounter("score_0", folder)
    scorer.add(1, 5)
    with scorer.busy(5) as instances:
        assert instances == 1
    assert fill(gate, 9) == 2
    scorer.close()


@pytest.mark.parametrize("content", [b"", b"\x01\x00", b"x" * 500])
def test_a_half_written_state_is_no_state(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "score_0").write_bytes(content)
    assert fill(Admission(2, 60, folder=tmp_path), 9) == 2


def test_a_state_travels_whole() -> None:
    speeds = tuple(Speed(float(place), place + 0.5) for place in range(len(LARGER_CLASSES) + 1))
    state = ScorerState(7, 8, 2**62, 9.5, True, 0.25, speeds)
    assert ScorerState.unpacked(state.packed()) == state


@pytest.mark.parametrize(("asked", "longest", "allowed"), [(0, 500, 500), (200, 500, 200), (900, 500, 500)])
def test_the_shorter_deadline_holds(asked: int, longest: int, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission.time, "monotonic_ns", lambda: 7_000_000)
    assert deadline_after(asked, longest) == 7_000 + allowed


def test_a_deadline_expires() -> None:
    assert not is_expired(deadline_after(0, 60_000_000))
    assert is_expired(deadline_after(0, 1) - 10)
    assert 59 < seconds_left(deadline_after(0, 60_000_000)) <= 60


def test_models_of_one_server_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_counts.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = scorer_counts.counter_folder("rank")
    assert folder == scorer_counts.counter_folder("rank") != scorer_counts.counter_folder("other")
    assert str(os.getppid()) in folder.parent.name
    for one in (folder, folder.parent):
        assert one.stat().st_mode & 0o077 == 0


# Time: what is before a request, and how fast the scorers are


def is_taken(gate: Admission, seconds_left: float, tokens: int) -> bool:
    try:
        gate.check_room(seconds_left, tokens)
    except RefusedError:
        return False
    return True


def wait_with(gate: Admission, tokens: int) -> None:
    """A request of so many tokens waits, whatever is thought of its chances."""
    gate.check_room(1e9)
    gate.admitted(tokens)


def test_a_queue_is_as_long_as_a_share_of_the_deadline(tmp_path: Path, clock: Clock) -> None:
    """At 1,000 tokens/s and half of two seconds: waits of up to a second, whatever the requests' size."""
    gate, scorer = Admission(99, 60, 0.5, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 500, 0.5)
    for tokens, admitted in ((100, 11), (250, 5)):
        count = 0
        scorer.add(1, 0)
        newest = 0
        while is_taken(gate, 2.0, tokens):
            newest = gate.admitted(tokens)
            count += 1
        assert count == admitted, "the last one waits for exactly a second"
        clock.seconds += 0.001
        scorer.add(count, 0, newest)  # all of them are started; nothing waits any more


def test_work_in_progress_counts_until_it_is_done(tmp_path: Path, clock: Clock) -> None:
    gate, scorer = Admission(99, 60, 0.5, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 500, 0.5)
    scorer.add(2, 1_800)
    assert not is_taken(gate, 2.0, 1)
    with scorer.busy(900):
        assert not is_taken(gate, 2.0, 1)
        clock.seconds += 0.9
    assert is_taken(gate, 2.0, 1), "900 tokens are left"
    scorer.skip(900)
    assert is_taken(gate, 0.1, 1), "an expired one is no work"


def test_a_request_that_cannot_be_done_within_its_own_deadline_is_refused(tmp_path: Path, clock: Clock) -> None:
    gate, scorer = Admission(99, 60, 1.0, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 500, 0.5)
    wait_with(gate, 200)
    assert is_taken(gate, 1.0, 799)
    assert not is_taken(gate, 1.0, 801)
    with pytest.raises(QueueFullError, match=r"^Exceeds maximum queue size: a wait of 200 ms"):
        gate.check_room(0.19, 1)  # the client knows it by Triton's words


def test_a_request_that_by_far_cannot_be_done_in_time_is_refused_by_an_idle_server(
    tmp_path: Path, clock: Clock
) -> None:
    gate, scorer = Admission(99, 60, 0.5, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 2_000, 2.0)
    assert is_taken(gate, 2.0, int(2_000 * FAR_BEYOND))
    with pytest.raises(TooLongError, match=rf"^{EXPIRED}: about 7000 ms of work, with 2000 ms left; send fewer"):
        gate.check_room(2.0, 7_000)
    assert is_taken(gate, 2.0, 999), "small ones take more or less for a token, and none was measured"
    assert is_taken(gate, 2.0, 10**6), "nor was a larger one"


def test_a_wrong_estimate_mends_itself(tmp_path: Path, clock: Clock) -> None:
    gate, scorer = Admission(99, 60, 0.5, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 1_000, 100.0)  # something else had all the cores
    clock.work(scorer, 10, 0.01)  # small ones say nothing about large ones
    assert not is_taken(gate, 2.0, 1_000)
    clock.seconds += TRUSTED_SECONDS + 1
    assert is_taken(gate, 2.0, 1_000), "the estimate is old: somebody has to try"
    assert not is_taken(gate, 2.0, 1_000), "one at a time"
    for _ in range(40):
        clock.work(scorer, 1_000, 1.0)
    assert is_taken(gate, 2.0, 1_000)


def test_the_speed_of_work_that_was_stopped_is_that_of_what_was_done(tmp_path: Path, clock: Clock) -> None:
    gate, scorer = Admission(99, 60, 1.0, tmp_path), StartedCounter("score_0", tmp_path)
    scorer.add(1, 5_000)
    with scorer.busy(5_000, done=lambda: 500):
        clock.seconds += 0.5
    scorer.rest()
    assert not is_taken(gate, 1.0, 5_000)
    assert is_taken(gate, 5.0, 5_000), "1,000 tokens/s"


def test_nothing_is_estimated_before_anything_was_measured(tmp_path: Path, clock: Clock) -> None:
    gate = Admission(99, 60, 0.5, tmp_path)
    StartedCounter("score_0", tmp_path)
    wait_with(gate, 10**9)
    assert is_taken(gate, 0.001, 10**9)


def test_what_waits_goes_to_the_scorer_that_is_free_first(tmp_path: Path, clock: Clock) -> None:
    """Two at 1,000 tokens/s together: a large request on its way to one leaves the other for who comes next."""
    gate = Admission(99, 60, 0.5, tmp_path)
    for number in range(2):
        clock.work(StartedCounter(f"score_{number}", tmp_path), 500, 0.5)
    wait_with(gate, 10_000)
    assert is_taken(gate, 1.0, 100)
    for tokens in (100, 100):
        wait_with(gate, tokens)
    assert is_taken(gate, 1.0, 100), "0.4 s behind two small ones"
    wait_with(gate, 100)
    assert not is_taken(gate, 1.0, 100)


def test_what_expires_while_it_waits_is_no_work(tmp_path: Path, clock: Clock) -> None:
    gate, scorer = Admission(3, 60, 0.5, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 500, 0.5)
    scorer.add(1, 10)
    for _ in range(3):
        gate.admitted(9_000, seconds_left=0.1)
    assert not is_taken(gate, 1.0, 10)
    clock.seconds += 0.11
    assert is_taken(gate, 1.0, 10)


def test_a_large_request_in_one_scorer_keeps_nobody_from_the_other(tmp_path: Path, clock: Clock) -> None:
    """1,000 tokens/s together, 10,000 tokens in work: whoever comes waits for the scorer that is free first."""
    gate = Admission(99, 60, 0.5, tmp_path)
    scorers = [StartedCounter(f"score_{number}", tmp_path) for number in range(2)]
    for scorer in scorers:
        clock.work(scorer, 1_000, 1.0)
    scorers[0].add(1, 10_000)
    assert is_taken(gate, 2.0, 100), "the other one is idle"
    scorers[1].add(1, 100)
    assert is_taken(gate, 2.0, 100), "the other one is free in 0.2 s"
    scorers[1].add(1, 10_000)
    assert not is_taken(gate, 2.0, 100), "both are busy for ten seconds and more"


def test_busy_instances_add_up_to_the_speed_of_all(tmp_path: Path, clock: Clock) -> None:
    """Two at a time do 500 tokens/s each; 1,000 tokens before a request are then one second."""
    gate = Admission(99, 60, 1.0, tmp_path)
    first, second = (StartedCounter(name, tmp_path) for name in ("score_0", "score_1"))
    with first.busy():
        clock.work(second, 500, 1.0)
    for _ in range(2):
        wait_with(gate, 500)
    assert is_taken(gate, 1.01, 0)
    assert not is_taken(gate, 0.99, 0)


def test_without_a_share_only_the_number_counts(tmp_path: Path, clock: Clock) -> None:
    gate, scorer = Admission(3, 60, 0.0, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 1, 10.0)
    wait_with(gate, 10**6)
    assert is_taken(gate, 0.001, 10**6)
    assert fill(gate, 9) == 2


# Sharing out the cores


def test_busy_instances_know_how_many_they_are(tmp_path: Path) -> None:
    first, second, third = (StartedCounter(name, tmp_path) for name in ("score_0", "score_1", "score_2"))
    with first.busy() as alone:
        assert alone == 1
        with second.busy() as two:
            assert two == 2
            with third.busy() as three:
                assert three == 3
        with third.busy() as two_again:
            assert two_again == 2
    with third.busy() as alone:
        assert alone == 1


def test_an_instance_that_failed_is_not_busy_for_ever(tmp_path: Path) -> None:
    first, second = StartedCounter("score_0", tmp_path), StartedCounter("score_1", tmp_path)
    with pytest.raises(RuntimeError, match="on purpose"), first.busy():
        raise RuntimeError("on purpose")
    with second.busy() as alone:
        assert alone == 1


def test_working_changes_no_count(tmp_path: Path) -> None:
    gate = Admission(3, 60, folder=tmp_path)
    (scorer,) = busy_scorers(tmp_path, "score_0")
    tickets = tickets_of(gate, 5)
    assert len(tickets) == 3
    scorer.add(2, 1, tickets[1])
    with scorer.busy():
        assert fill(gate, 5) == 2
    assert fill(gate, 5) == 0


def test_an_instance_that_is_just_starting_counts_for_nothing(tmp_path: Path) -> None:
    scorer = StartedCounter("score_0", tmp_path)
    (tmp_path / "score_1").write_bytes(b"")
    with scorer.busy() as alone:
        assert alone == 1
    assert fill(Admission(3, 60, folder=tmp_path), 5) == 3
