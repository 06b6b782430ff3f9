"""The gate before the scorer: who may wait, for how long, and what counts as gone."""

import os
import time
from pathlib import Path

import pytest
from tritonrank import admission
from tritonrank.admission import Admission, QueueFullError, StartedCounter, deadline_after, is_expired


def fill(gate: Admission, requests: int) -> int:
    """How many of so many requests are admitted."""
    for number in range(requests):
        try:
            gate.check_room()
        except QueueFullError:
            return number
        gate.admitted()
    return requests


def test_no_more_than_the_limit_wait(tmp_path: Path) -> None:
    assert fill(Admission(5, 60, tmp_path), 20) == 5


def test_a_started_request_makes_room_whichever_instance_took_it(tmp_path: Path) -> None:
    gate, first, second = (
        Admission(5, 60, tmp_path),
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
    gate, scorer = Admission(3, 60, tmp_path), StartedCounter("score_0", tmp_path)
    scorer.add(100)  # warm-up, or somebody asks the scorer directly
    assert fill(gate, 9) == 3


def test_a_request_lost_on_its_way_is_forgotten(tmp_path: Path) -> None:
    gate = Admission(2, 0.05, tmp_path)
    assert fill(gate, 9) == 2
    time.sleep(0.06)
    assert fill(gate, 9) == 2


def test_a_scorer_that_starts_again_has_an_empty_queue(tmp_path: Path) -> None:
    gate, scorer = Admission(2, 60, tmp_path), StartedCounter("score_0", tmp_path)
    scorer.add(7)
    assert fill(gate, 9) == 2
    scorer.close()
    StartedCounter("score_0", tmp_path)
    assert fill(gate, 9) == 2


def test_a_half_written_count_is_no_count(tmp_path: Path) -> None:
    (tmp_path / "score_0").write_bytes(b"\x01\x00")
    assert fill(Admission(2, 60, tmp_path), 9) == 2


@pytest.mark.parametrize(("asked", "longest", "allowed"), [(0, 500, 500), (200, 500, 200), (900, 500, 500)])
def test_the_shorter_deadline_holds(asked: int, longest: int, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission.time, "monotonic_ns", lambda: 7_000_000)
    assert deadline_after(asked, longest) == 7_000 + allowed


def test_a_deadline_expires() -> None:
    assert not is_expired(deadline_after(0, 60_000_000))
    assert is_expired(deadline_after(0, 1) - 10)


def test_models_of_one_server_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = admission.counter_folder()
    assert folder == admission.counter_folder()
    assert str(os.getppid()) in folder.name
    assert folder.stat().st_mode & 0o077 == 0


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
    gate, scorer = Admission(3, 60, tmp_path), StartedCounter("score_0", tmp_path)
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
    assert fill(Admission(3, 60, tmp_path), 5) == 3
