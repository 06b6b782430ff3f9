"""What goes wrong in a model of the server: the caller gets its kind, the log the rest."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from live import LEAK, wait_until
from tritonrank_runtime import backend


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the server's log, of a stand-in for what there is inside Triton alone."""
    lines: list[str] = []
    errors = SimpleNamespace(INTERNAL=1, INVALID_ARG=2, UNAVAILABLE=3, CANCELLED=4)
    errors_of = type(
        "TritonError",
        (),
        vars(errors) | {"__init__": lambda self, message, code: vars(self).update(message=message, code=code)},
    )
    module = SimpleNamespace(
        TritonError=errors_of,
        InferenceResponse=lambda error: error,
        Logger=SimpleNamespace(log_error=lines.append),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return lines


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - to have frames
        return caught


def test_the_caller_gets_the_kind_and_the_log_frames_and_words(logged: list[str]) -> None:
    answer = backend.unexpected(raised(KeyError("/srv/secret.py\nE1126 a made up line")), "tokenize")
    assert answer.code == 1
    assert answer.message.startswith("tokenize: KeyError; the server's log")
    assert not LEAK.search(answer.message)
    (line,) = logged
    assert "test_backend.py:" in line
    assert "made up line" in line
    assert "\n" not in line, "a client writes no lines into the log"


def test_what_clients_sent_is_not_logged_at_length(logged: list[str]) -> None:
    backend.unexpected(raised(ValueError("a" * 100_000)), "score")
    assert len(logged[0]) < 5_000


def test_codes_are_those_of_what_happened(logged: list[str]) -> None:
    answers: list[Any] = [backend.invalid("a"), backend.unavailable("b"), backend.cancelled()]
    assert [answer.code for answer in answers] == [2, 3, 4]
    assert [answer.message for answer in answers[:2]] == ["a", "b"]
    assert not logged


def test_nothing_is_told_where_nothing_is_counted() -> None:
    told: list[float] = []
    metric = SimpleNamespace(increment=told.append)
    for amount in (0, 2, 0.0, -1):
        backend.raise_by(metric, amount)
    assert told == [2, -1]


class Counted:
    """A metric of the server; how often it was told something is what telling costs."""

    def __init__(self) -> None:
        self.value, self.times = 0.0, 0

    def increment(self, amount: float) -> None:
        self.value, self.times = self.value + amount, self.times + 1


def test_many_counts_are_told_together() -> None:
    tally, metric = backend.Tally(), Counted()
    began = time.monotonic()
    for _ in range(100):
        for _ in range(10):
            tally.add(metric, 1)
        time.sleep(0.002)
    tally.close()
    most = 2 + (time.monotonic() - began) / backend.EVERY_SECONDS
    assert metric.value == 1_000
    assert metric.times <= most, "the first at once, and each half second's; what is left at the end"


def test_what_is_followed_is_told_until_it_is_steady() -> None:
    """The last request's end is counted before its lane is free: the gauge must not stay as it was in between."""
    tally, (waiting, busy), now = backend.Tally(), (Counted(), Counted()), [3.0, 2.0]
    tally.follow([waiting, busy], lambda: now)
    tally.add(Counted(), 1)
    wait_until(lambda: (waiting.value, busy.value) == (3, 2), "they are told with the count")
    now[:] = 1.0, 0.0
    wait_until(lambda: (waiting.value, busy.value) == (1, 0), "they are told although nothing is counted")
    tally.close()
