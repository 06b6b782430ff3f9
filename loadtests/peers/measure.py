"""Everything that is measured of one system.

A full turn, in this order: warm-up; closed loops with 1, 2, 4 ... clients until throughput stops growing, of which the
first is the single-client latency; an open loop at half of the saturation found; the Zipf workload at the saturation's
number of clients; memory; and the judged requests that none of these has sent. The other turns start the system again
and measure the single client only: the machine drifts, and ratios of figures that were taken close together drift less.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tritonrank.judge.metrics import interval, ndcg
from tritonrank.rankers.agreement import largest_difference

from loadtests.peers import load
from loadtests.peers.cases import Case, Fresh, zipf_cases
from loadtests.peers.libraries import LibrarySystem
from loadtests.peers.load import Load, closed_loop, open_loop, poisson_arrivals
from loadtests.peers.system import System
from loadtests.processes import SystemFaultError

GROWTH_WORTH_MORE_CLIENTS = 1.05
MOST_CLIENTS = 16
TOLERATED_FAILURES = 0.01
"""Share of refused requests up to which a number of clients counts as sustained."""
SHARE_OF_SATURATION = 0.5
FEWEST_ARRIVALS = 5

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How long to measure. Seconds are per load, requests are the least number of them."""

    turns: int
    warm_up_requests: int
    single_seconds: float
    single_requests: int
    closed_seconds: float
    closed_requests: int
    open_seconds: float
    open_requests: int
    open_most_seconds: float
    zipf_seconds: float
    judged: int
    later_turn_requests: int

    def settings(self) -> dict[str, object]:
        return asdict(self)


FULL = Effort(
    turns=3,
    warm_up_requests=5,
    single_seconds=30.0,
    single_requests=30,
    closed_seconds=20.0,
    closed_requests=20,
    open_seconds=60.0,
    open_requests=50,
    open_most_seconds=180.0,
    zipf_seconds=20.0,
    judged=250,
    later_turn_requests=10,
)
SHORT = Effort(
    turns=1,
    warm_up_requests=2,
    single_seconds=5.0,
    single_requests=5,
    closed_seconds=4.0,
    closed_requests=4,
    open_seconds=8.0,
    open_requests=5,
    open_most_seconds=20.0,
    zipf_seconds=3.0,
    judged=15,
    later_turn_requests=0,
)


def measure_turn(
    system: System, cases: Sequence[Case], effort: Effort, turn: int, seed: int, tell: Tell
) -> dict[str, Any]:
    """Start the system, measure, stop it. Never raises for what the system does wrong: that is a result.

    Returns:
        The figures; with ``failed``, the reason, where it came to nothing.
    """
    figures: dict[str, Any] = {}
    try:
        if turn == 0:
            tell("preparing")
            system.prepare()
            figures["versions"] = system.versions()
        tell("starting")
        system.start()
        if turn == 0:
            _full_turn(system, cases, effort, seed, tell, figures)
        else:
            fresh = Fresh(cases)
            _warm_up(system, fresh, effort)
            figures["single"] = closed_loop(
                system.rank, fresh, clients=1, seconds=0.0, requests=effort.later_turn_requests
            ).summary()
    except Exception as error:  # noqa: BLE001 - a peer can fail in any way, and the others must still be measured
        figures["failed"] = f"{type(error).__name__}: {error}"
    finally:
        tell("stopping")
        try:
            system.stop()
        except Exception as error:  # noqa: BLE001 - a peer that cannot be stopped has failed too
            figures.setdefault("failed", f"stop: {type(error).__name__}: {error}")
    return figures


def _full_turn(
    system: System, cases: Sequence[Case], effort: Effort, seed: int, tell: Tell, figures: dict[str, Any]
) -> None:
    fresh = Fresh(cases)
    loads: list[Load] = []

    def kept(done: Load) -> Load:
        loads.append(done)
        return done

    tell("warming up")
    _warm_up(system, fresh, effort)
    tell("one client")
    single = kept(
        closed_loop(system.rank, fresh, clients=1, seconds=effort.single_seconds, requests=effort.single_requests)
    )
    figures["single"] = anything_answered("one client", single).summary()
    figures["closed"], clients, saturation = _saturation(system, fresh, single, effort, kept, tell)
    figures["saturation"] = {"clients": clients, "candidates_per_second": saturation}

    per_second = SHARE_OF_SATURATION * saturation / len(cases[0].items)
    seconds = min(effort.open_most_seconds, max(effort.open_seconds, effort.open_requests / per_second))
    arrivals = poisson_arrivals(per_second, max(FEWEST_ARRIVALS, round(per_second * seconds)), seed)
    tell(f"open loop: {len(arrivals)} requests in {arrivals[-1]:.0f} s")
    half_load = anything_answered("open loop", kept(open_loop(system.rank, fresh, arrivals)))
    figures["half_load"] = {"per_second": per_second} | half_load.summary()

    tell("Zipf")
    repeating = zipf_cases(cases, seed)
    zipf = closed_loop(
        system.rank, repeating, clients=clients, seconds=effort.zipf_seconds, requests=effort.warm_up_requests
    )
    figures["zipf"] = anything_answered("Zipf", zipf).summary()
    figures["memory_mb"] = system.memory_bytes() / 1e6

    tell("judged requests")
    figures["quality"], figures["judged_answers"] = _judge(system, cases, loads, effort, clients)
    figures["contexts_repeated"] = fresh.repeated
    if isinstance(system, LibrarySystem):
        figures["pipe_ms"] = _pipe_milliseconds(system, cases)


def anything_answered(name: str, load: Load) -> Load:
    """The load, of which something was answered.

    Raises:
        SystemFaultError: nothing was; with the first reason.
    """
    if not load.good:
        reason = load.answers[0].error if load.answers else "none was sent"
        raise SystemFaultError(f"{name}: no request was answered: {reason}")
    return load


def _warm_up(system: System, fresh: Iterator[Case], effort: Effort) -> None:
    closed_loop(system.rank, fresh, clients=1, seconds=0.0, requests=effort.warm_up_requests)


def _saturation(
    system: System, fresh: Iterator[Case], single: Load, effort: Effort, kept: Callable[[Load], Load], tell: Tell
) -> tuple[dict[str, Any], int, float]:
    """Double the clients until it no longer pays; all loads by number of clients, the best number, its throughput."""
    tried = {1: single}
    best = 1
    for clients in itertools.takewhile(lambda clients: clients <= MOST_CLIENTS, (2**power for power in range(1, 10))):
        tell(f"{clients} clients")
        requests = max(effort.closed_requests, 2 * clients)
        done = kept(closed_loop(system.rank, fresh, clients=clients, seconds=effort.closed_seconds, requests=requests))
        tried[clients] = done
        is_sustained = len(done.answers) - len(done.good) <= TOLERATED_FAILURES * len(done.answers)
        grew_by = done.candidates_per_second / tried[best].candidates_per_second
        if is_sustained and grew_by > 1:
            best = clients
        if not is_sustained or grew_by < GROWTH_WORTH_MORE_CLIENTS:
            break
    summaries = {str(clients): done.summary() for clients, done in tried.items()}
    return summaries, best, tried[best].candidates_per_second


def _judge(
    system: System, cases: Sequence[Case], loads: Sequence[Load], effort: Effort, clients: int
) -> tuple[dict[str, Any], "Judged"]:
    """NDCG@10 over the first judged requests, the same ones for every system.

    Answers that the loads got already are used; a request that is refused now is asked again once, alone.
    """
    judged = {case.number: case for case in cases if case.labels is not None}
    judged = dict(itertools.islice(judged.items(), effort.judged))
    scores: dict[int, list[float]] = {}

    def keep(done: Load) -> None:
        scores.update({a.case.number: a.scores for a in done.good if a.scores is not None and a.case.number in judged})

    for done in loads:
        keep(done)
    for at_once in (clients, 1):
        missing = [case for number, case in judged.items() if number not in scores]
        keep(closed_loop(system.rank, iter(missing), clients=at_once, seconds=0.0, requests=len(missing)))
    values = {n: ndcg(scores[n], case.labels or []) for n, case in judged.items() if n in scores}
    quality = {
        "ndcg@10": statistics.fmean(values.values()) if values else None,
        "judged": len(values),
        "unanswered": len(judged) - len(values),
    }
    return quality, Judged(scores, values)


@dataclass(frozen=True)
class Judged:
    """Scores and NDCG@10 of the judged requests by number."""

    scores: dict[int, list[float]]
    ndcg: dict[int, float]


def compare_with_first(systems: list[dict[str, Any]], first: str) -> None:
    """Say how far each system's judged answers are from the first's, and drop the answers themselves."""
    reference: Judged | None = next((s.get("judged_answers") for s in systems if s["name"] == first), None)
    for system in systems:
        judged: Judged | None = system.pop("judged_answers", None)
        common = [number for number in judged.scores if number in reference.scores] if judged and reference else []
        if judged and reference and common:
            system["quality"]["largest_score_difference"] = largest_difference(
                *([np.array(one.scores[number], dtype=np.float32) for number in common] for one in (judged, reference))
            )
            system["quality"]["ndcg@10_difference"] = vars(
                interval([judged.ndcg[number] - reference.ndcg[number] for number in common])
            )


def _pipe_milliseconds(system: LibrarySystem, cases: Sequence[Case]) -> float:
    """What the pipe adds to a request: our time less the worker's own, median of a few."""
    extra = []
    for case in cases[:3]:
        own_seconds: list[float] = []

        def rank(asked: Case, seconds: list[float] = own_seconds) -> list[float]:
            answer = system.ask(asked)
            seconds.append(answer["seconds"])
            return [float(score) for score in answer["scores"]]

        done = closed_loop(rank, iter([case]), clients=1, seconds=0.0, requests=1)
        extra += [answer.latency_seconds - seconds for answer, seconds in zip(done.answers, own_seconds, strict=True)]
    return load.percentile(extra, 0.5) * 1000
