"""The gate before two scorers that share the cores, under random arrivals, on a clock of its own."""

import random
from collections import deque
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from tritonrank_runtime import admission
from tritonrank_runtime.admission import Admission, RefusedError
from tritonrank_runtime.scorer_counts import StartedCounter

TOKENS = 4_400
ALONE_SECONDS = 0.2
"""A page of 200 candidates, with all cores."""
PER_SECOND = 1 / ALONE_SECONDS
DEADLINE = 0.9


class Counts(NamedTuple):
    offered: int
    refused: int
    late: int

    @property
    def good(self) -> int:
        return self.offered - self.refused - self.late


class Working:
    """A request in a scorer: takes a ticket, computes, and stops at its deadline."""

    def __init__(self, scorer: StartedCounter, ticket: int, expires: float) -> None:
        self.scorer, self.expires, self.left = scorer, expires, ALONE_SECONDS
        scorer.add(1, TOKENS, ticket)
        self.block: AbstractContextManager[int] = scorer.busy(TOKENS, lambda: self.done_tokens)
        self.block.__enter__()

    @property
    def done_tokens(self) -> int:
        return int(TOKENS * (1 - self.left / ALONE_SECONDS))

    def end(self) -> None:
        self.block.__exit__(None, None, None)
        self.scorer.rest()


def counts_at(rate: float, requests: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Poisson arrivals of equal requests; a scorer alone has all cores, and two have half of them each."""
    now = [1_000.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(admission.time, "monotonic_ns", lambda: int(now[0] * 1e9))
    chance = random.Random(17)
    gate = Admission(64, 60, 0.75, folder)
    idle = [StartedCounter(f"score_{number}", folder) for number in range(2)]
    waiting: deque[tuple[int, float]] = deque()
    working: list[Working] = []
    refused = late = 0
    due = now[0]
    offered = 0
    while offered < requests or working:
        if not working and due > now[0]:
            now[0] = due
        next_end = min((min(one.left * len(working), one.expires - now[0]) for one in working), default=0.0)
        step = min(next_end, max(0.0, due - now[0])) if offered < requests else next_end
        for one in working:
            one.left -= step / len(working)
        now[0] += step
        for one in [one for one in working if one.left < 1e-9 or one.expires <= now[0] + 1e-9]:
            late += one.left > 1e-6
            one.end()
            working.remove(one)
            idle.append(one.scorer)
        if due <= now[0] + 1e-9 and offered < requests:
            offered += 1
            due += chance.expovariate(rate)
            try:
                gate.check_room(DEADLINE, TOKENS)
            except RefusedError:
                refused += 1
            else:
                waiting.append((gate.admitted(TOKENS, DEADLINE), now[0] + DEADLINE))
        while waiting and idle:
            ticket, expires = waiting.popleft()
            if expires <= now[0]:
                late += 1
            else:
                working.append(Working(idle.pop(0), ticket, expires))
    for scorer in idle:
        with suppress(OSError):
            scorer.close()
    return Counts(offered, refused, late)


def test_at_half_of_what_can_be_done_everybody_is_taken_and_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counts_at(PER_SECOND / 2, 2_000, tmp_path, monkeypatch)
    assert counts.refused <= 0.01 * counts.offered
    assert counts.late == 0


def test_at_three_times_what_can_be_done_the_queue_is_bounded_and_who_was_taken_is_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counts_at(3 * PER_SECOND, 1_500, tmp_path, monkeypatch)
    assert counts.late <= 0.01 * counts.offered
    assert 0.9 / 3 <= counts.good / counts.offered <= 1.1 / 3
