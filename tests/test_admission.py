"""The gate before the scorer: who may wait, for how long, and what counts as gone."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from tritonrank import admission
from tritonrank.admission import Admission, QueueFullError, StartedCounter, deadline_after, is_expired, seconds_left


def fill(gate: Admission, requests: int) -> int:
    """How many of so many requests are admitted."""
    for number in range(requests):
        try:
            gate.check_room(60)
        except QueueFullError:
            return number
        gate.admitted()
    return requests


def test_no_more_than_the_limit_wait(tmp_path: Path) -> None:
    assert fill(Admission(5, 60, folder=tmp_path), 20) == 5


def test_a_started_request_makes_room_whichever_instance_took_it(tmp_path: Path) -> None:
    gate, first, second = (
        Admission(5, 60, folder=tmp_path),
        StartedCounter("score_0", tmp_path),
        StartedCounter("s_1", tmp_path),
    )
    assert fill(gate, 5) == 5
    first.add(2)
    second.add(1)
    assert fill(gate, 9) == 3
    second.add(4)
    assert fill(gate, 9) == 4


def test_requests_that_never_passed_the_gate_do_not_make_room_later(tmp_path: Path) -> None:
    gate, scorer = Admission(3, 60, folder=tmp_path), StartedCounter("score_0", tmp_path)
    scorer.add(100)  # warm-up, or somebody asks the scorer directly
    assert fill(gate, 9) == 3


def test_a_request_lost_on_its_way_is_forgotten(tmp_path: Path) -> None:
    gate = Admission(2, 0.05, folder=tmp_path)
    assert fill(gate, 9) == 2
    time.sleep(0.06)
    assert fill(gate, 9) == 2


def test_a_scorer_that_starts_again_has_an_empty_queue(tmp_path: Path) -> None:
    gate, scorer = Admission(2, 60, folder=tmp_path), StartedCounter("score_0", tmp_path)
    scorer.add(7)
    assert fill(gate, 9) == 2
    scorer.close()
    StartedCounter("score_0", tmp_path)
    assert fill(gate, 9) == 2


def test_a_half_written_count_is_no_count(tmp_path: Path) -> None:
    (tmp_path / "score_0").write_bytes(b"\x01\x00")
    assert fill(Admission(2, 60, folder=tmp_path), 9) == 2


@pytest.mark.parametrize(("asked", "longest", "allowed"), [(0, 500, 500), (200, 500, 200), (900, 500, 500)])
def test_the_shorter_deadline_holds(asked: int, longest: int, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission.time, "monotonic_ns", lambda: 7_000_000)
    assert deadline_after(asked, longest) == 7_000 + allowed


def test_a_deadline_expires() -> None:
    assert not is_expired(deadline_after(0, 60_000_000))
    assert is_expired(deadline_after(0, 1) - 10)
    assert 59 < seconds_left(deadline_after(0, 60_000_000)) <= 60


def test_models_of_one_server_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = admission.counter_folder()
    assert folder == admission.counter_folder()
    assert str(os.getppid()) in folder.name
    assert folder.stat().st_mode & 0o077 == 0


# Time: what is before a request, and how fast the scorers are


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def is_taken(gate: Admission, seconds_left: float, tokens: int) -> bool:
    try:
        gate.check_room(seconds_left, tokens)
    except QueueFullError:
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
        while is_taken(gate, 2.0, tokens):
            gate.admitted(tokens)
            count += 1
        assert count == admitted, "the last one waits for exactly a second"
        scorer.add(count)  # all of them are started; nothing waits any more


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


def test_an_idle_scorer_takes_anything_so_that_a_wrong_estimate_mends_itself(tmp_path: Path, clock: Clock) -> None:
    gate, scorer = Admission(99, 60, 0.5, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 10, 10.0)  # one token per second: something else had all the cores
    assert is_taken(gate, 2.0, 500)
    for _ in range(40):
        clock.work(scorer, 500, 0.5)
    wait_with(gate, 500)
    assert is_taken(gate, 2.0, 500)


def test_nothing_is_estimated_before_anything_was_measured(tmp_path: Path, clock: Clock) -> None:
    gate = Admission(99, 60, 0.5, tmp_path)
    StartedCounter("score_0", tmp_path)
    wait_with(gate, 10**9)
    assert is_taken(gate, 0.001, 10**9)


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
    wait_with(gate, 1_000)
    wait_with(gate, 0)
    assert is_taken(gate, 1.01, 0)
    assert not is_taken(gate, 0.99, 0)


def test_without_a_share_only_the_number_counts(tmp_path: Path, clock: Clock) -> None:
    gate, scorer = Admission(3, 60, 0.0, tmp_path), StartedCounter("score_0", tmp_path)
    clock.work(scorer, 1, 10.0)
    wait_with(gate, 10**6)
    assert is_taken(gate, 0.001, 10**6)
    assert fill(gate, 9) == 2


def test_both_sides_count_tokens_without_padding() -> None:
    shared = {"context_ids": np.arange(5), "candidate_ids": np.array([[1, 2, 3], [0, -1, -1]])}
    assert admission.work_tokens(shared) == 5 + 3 + 1
    joint = {"input_ids": np.ones((2, 4)), "attention_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]])}
    assert admission.work_tokens(joint) == 5


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
    gate, scorer = Admission(3, 60, folder=tmp_path), StartedCounter("score_0", tmp_path)
    assert fill(gate, 5) == 3
    scorer.add(2)
    with scorer.busy():
        assert fill(gate, 5) == 2
    assert fill(gate, 5) == 0


def test_an_instance_that_is_just_starting_counts_for_nothing(tmp_path: Path) -> None:
    scorer = StartedCounter("score_0", tmp_path)
    (tmp_path / "score_1").write_bytes(b"")
    with scorer.busy() as alone:
        assert alone == 1
    assert fill(Admission(3, 60, folder=tmp_path), 5) == 3
