"""Closed and open loop, and what their latencies come to.

A closed loop has so many clients, each of which sends its next request when the last is answered: it finds the
saturation. An open loop sends at times fixed beforehand, whatever became of earlier requests, and counts latency from
the scheduled time: a server that stalls is charged for everyone who had to wait (no coordinated omission).
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tritonrank.data.arrivals import arrival_times

from loadtests.peers.cases import Case

Rank = Callable[[Case], Sequence[float]]

OPEN_LOOP_CLIENTS = 64
"""Requests that can be in flight at once; later ones still count from their scheduled time."""


@dataclass(frozen=True)
class Answer:
    """What became of one request. Times are seconds since the load began."""

    case: Case
    scheduled: float
    finished: float
    scores: list[float] | None
    error: str = ""

    @property
    def latency_seconds(self) -> float:
        return self.finished - self.scheduled


@dataclass
class Load:
    """All answers of one load."""

    answers: list[Answer] = field(default_factory=list)
    cpu_seconds: float = 0.0
    """of this process: what generating the load has cost"""

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.scores is not None]

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max((answer.finished for answer in self.answers), default=0.0)

    @property
    def candidates_per_second(self) -> float:
        """Candidates scored per second; what was refused counts nothing."""
        return sum(len(answer.case.items) for answer in self.good) / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, object]:
        """For results.json; latencies in milliseconds, of answered requests only."""
        latencies = [answer.latency_seconds * 1000 for answer in self.good]
        return {
            "requests": len(self.answers),
            "failed": len(self.answers) - len(self.good),
            "errors": sorted({answer.error for answer in self.answers if answer.error})[:5],
            "seconds": self.seconds,
            "candidates_per_second": self.candidates_per_second,
            "generator_cpu_share": self.cpu_seconds / self.seconds if self.seconds else 0.0,
            "latency_ms": latency_summary(latencies),
        }


def closed_loop(rank: Rank, cases: Iterator[Case], *, clients: int, seconds: float, requests: int) -> Load:
    """Clients that wait for their answers.

    Args:
        rank: sends one request; raises when it is not answered.
        cases: where the requests come from.
        clients: how many at once.
        seconds: no new request after this, provided that
        requests: so many were sent.
    """
    lock = threading.Lock()
    sent = 0

    def next_case() -> Case | None:
        nonlocal sent
        with lock:
            if sent >= requests and clock() >= seconds:
                return None
            sent += 1
            return next(cases)

    def client() -> None:
        while (case := next_case()) is not None:
            load.answers.append(_send(rank, case, clock(), clock))

    load = Load()
    clock = _clock()
    _run_threads([client] * clients, load)
    return load


def open_loop(rank: Rank, cases: Iterator[Case], arrivals: Sequence[float], clients: int = OPEN_LOOP_CLIENTS) -> Load:
    """Requests at given times, in seconds from now and ascending."""
    lock = threading.Lock()
    waiting = iter(arrivals)

    def next_arrival() -> tuple[float, Case] | None:
        with lock:
            arrival = next(waiting, None)
            return None if arrival is None else (arrival, next(cases))

    def client() -> None:
        while (planned := next_arrival()) is not None:
            arrival, case = planned
            time.sleep(max(0.0, arrival - clock()))
            load.answers.append(_send(rank, case, arrival, clock))

    load = Load()
    clock = _clock()
    _run_threads([client] * min(clients, len(arrivals)), load)
    return load


def poisson_arrivals(per_second: float, count: int, seed: int) -> list[float]:
    """The first ``count`` arrival times of a Poisson process: independent exponential gaps, mean 1 / per_second."""
    return [float(seconds) for seconds in arrival_times(np.random.default_rng(seed), count, per_second, "steady")]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed (nearest rank); NaN of none.

    Not interpolated: of few values p99 is the worst one, and that is what it should say.
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def latency_summary(milliseconds: Sequence[float]) -> dict[str, float | int | None]:
    """Count, p50, p90, p99, worst and mean; None where there is nothing to summarise."""
    if not milliseconds:
        return {"count": 0, "p50": None, "p90": None, "p99": None, "max": None, "mean": None}
    return {
        "count": len(milliseconds),
        "p50": percentile(milliseconds, 0.50),
        "p90": percentile(milliseconds, 0.90),
        "p99": percentile(milliseconds, 0.99),
        "max": max(milliseconds),
        "mean": sum(milliseconds) / len(milliseconds),
    }


def _send(rank: Rank, case: Case, scheduled: float, clock: Callable[[], float]) -> Answer:
    try:
        scores = [float(score) for score in rank(case)]
        if len(scores) != len(case.items) or not all(map(math.isfinite, scores)):
            raise ValueError(f"{len(scores)} scores for {len(case.items)} items, or one that is not finite")
    except Exception as error:  # noqa: BLE001 - whatever a system does wrong is a result
        return Answer(case, scheduled, clock(), None, f"{type(error).__name__}: {error}"[:300])
    return Answer(case, scheduled, clock(), scores)


def _clock() -> Callable[[], float]:
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def _run_threads(targets: Sequence[Callable[[], None]], load: Load) -> None:
    before = time.process_time()
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.cpu_seconds = time.process_time() - before
