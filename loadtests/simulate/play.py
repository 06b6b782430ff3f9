"""Plays a scenario on a fleet under a policy, and keeps the accounts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loadtests.simulate.cost import Cost
from loadtests.simulate.fleet import Fleet, Floats, Step
from loadtests.simulate.policies import POLICIES, Orders, Start, View
from loadtests.simulate.scenarios import Scenario

GATEWAYS = 4
MOST_SIZE = 2.0
LEAST_SIZE = 0.2
"""Of the fleet: what an autoscaler may make of it. Twice is what a cluster has room for."""
LISTS_SHARE = 0.2
"""Of the requests that bring their own candidates (the rerank dialects); the others are pages. A page without the
ranker is shown in retrieval's order, a list without it is refused."""
POINTS = 300
"""Of a curve on the page."""


@dataclass(frozen=True)
class Course:
    """Means over stretches of a run, for its plots; each [points]."""

    seconds: Floats
    arrived: Floats
    """requests per second"""
    refused: Floats
    """of them, without room at a replica, share"""
    ndcg_share: Floats
    replicas: Floats


@dataclass(frozen=True)
class Result:
    """A scenario under a policy, in one row.

    Attributes:
        scenario, policy, replicas: what was played.
        requests: that came, in the part that counts.
        refused: lists that got no ranking, share of all lists.
        degraded: pages in retrieval's order, share of all pages.
        shortened: pages that the ranker saw fewer candidates of, share of all pages.
        ndcg_lost: by pages, share of the NDCG of whole lists.
        queue_p99_seconds: of work that waited at a replica, over ticks and gateways.
        replica_hours: that were paid for, starting replicas too.
        most_replicas: at once.
        course: for plots.
    """

    scenario: str
    policy: str
    replicas: int
    requests: float
    refused: float
    degraded: float
    shortened: float
    ndcg_lost: float
    queue_p99_seconds: float
    replica_hours: float
    most_replicas: int
    course: Course

    def row(self) -> Mapping[str, float | str]:
        """Without the course."""
        return {name: value for name, value in vars(self).items() if name != "course"}


def play(scenario: Scenario, policy: str, replicas: int, cost: Cost, seed: int = 0) -> Result:
    """Play it.

    Args:
        scenario: what happens.
        policy: name of one of POLICIES.
        replicas: of the fleet at the start, whose throughput the scenario's loads are shares of.
        cost: of a replica.
        seed: of arrivals.
    """
    gateways = min(GATEWAYS, replicas)
    least, most = max(gateways, round(LEAST_SIZE * replicas)), round(MOST_SIZE * replicas)
    fleet = Fleet(
        gateways,
        replicas,
        most + gateways,
        start_seconds=cost.start_seconds,
        queue_seconds=cost.queue_seconds,
        random=np.random.default_rng(seed),
    )
    tick, loads = scenario.tick_seconds, scenario.loads()
    seconds_of = np.array([cost.seconds(depth) for depth in range(cost.most_candidates + 1)])
    whole = seconds_of[-1]
    each_load = replicas / whole / gateways  # requests per second at each gateway, at a load of 1
    steering = POLICIES[policy][0](
        Start(gateways, replicas, least, most, cost, LISTS_SHARE, scenario.past(each_load), len(loads) * tick)
    )
    accounts = _Accounts(len(loads), gateways)
    orders = Orders(np.full(gateways, cost.most_candidates), None)
    for number, load in enumerate(loads):
        now = number * tick
        _lose(fleet, scenario, now, tick)
        coming = np.full(gateways, load * each_load * tick)
        # Lists keep all of their candidates: their order is the caller's, not that of retrieval.
        pages = np.where(orders.candidates > 0, 1 - LISTS_SHARE, 0.0)
        ranked = pages + LISTS_SHARE
        mean_cost = (pages * seconds_of[orders.candidates] + LISTS_SHARE * whole) / ranked
        step = fleet.step(now, tick, coming * ranked, mean_cost)
        unranked = fleet.count(coming * (1 - ranked))
        size = fleet.size
        accounts.put(number, step, orders, unranked, pages / ranked, size)
        orders = steering.steer(View(now + tick, tick, step, unranked, mean_cost, size))
        if orders.size is not None and orders.size != size:
            fleet.resize(orders.size, now + tick)
    return accounts.result(scenario, policy, replicas, cost)


def _lose(fleet: Fleet, scenario: Scenario, now: float, tick: float) -> None:
    if scenario.lost is None:
        return
    begins, ends, share = scenario.lost
    if begins <= now < begins + tick:
        fleet.lose(share)
    if ends <= now < ends + tick:
        fleet.give_back(now)


class _Accounts:
    """What happened in each tick at each gateway."""

    def __init__(self, ticks: int, gateways: int) -> None:
        shape = (ticks, gateways)
        self._arrived, self._refused, self._unranked = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._pages_share, self._queues = np.zeros(shape), np.zeros(shape)
        self._candidates = np.zeros(shape, dtype=np.int64)
        self._size = np.zeros(ticks, dtype=np.int64)

    def put(self, tick: int, step: Step, orders: Orders, unranked: Floats, pages_share: Floats, size: int) -> None:
        """Add a tick.

        Args:
            tick: its number.
            step: what happened.
            orders: under which.
            unranked: pages that no replica was asked for, [gateways].
            pages_share: of the requests that came to replicas, [gateways].
            size: replicas that are paid for.
        """
        self._arrived[tick], self._refused[tick], self._unranked[tick] = step.arrived, step.refused, unranked
        self._pages_share[tick], self._queues[tick] = pages_share, step.queue_seconds
        self._candidates[tick], self._size[tick] = orders.candidates, size

    def result(self, scenario: Scenario, policy: str, replicas: int, cost: Cost) -> Result:
        """Of the part that counts."""
        tick = scenario.tick_seconds
        first = round(scenario.counts_from / tick)
        share_of = np.array([cost.share(depth) for depth in range(cost.most_candidates + 1)])
        pages_asked, refused_pages = self._arrived * self._pages_share, self._refused * self._pages_share
        ranked, degraded = pages_asked - refused_pages, refused_pages + self._unranked
        is_short = (self._candidates > 0) & (self._candidates < cost.most_candidates)
        by_tick = {
            "pages": pages_asked + self._unranked,
            "lists": self._arrived - pages_asked,
            "refused": self._refused - refused_pages,
            "degraded": degraded,
            "shortened": ranked * is_short,
            "quality": ranked * share_of[self._candidates] + degraded * share_of[0],
        }
        part = {name: values[first:].sum(axis=1) for name, values in by_tick.items()}
        part["replicas"] = self._size[first:].astype(np.float64)
        total = {name: float(values.sum()) for name, values in part.items()}
        pages, lists = max(total["pages"], 1.0), max(total["lists"], 1.0)
        return Result(
            scenario=scenario.name,
            policy=policy,
            replicas=replicas,
            requests=round(pages + lists),
            refused=total["refused"] / lists,
            degraded=total["degraded"] / pages,
            shortened=total["shortened"] / pages,
            ndcg_lost=1 - total["quality"] / pages,
            queue_p99_seconds=float(np.quantile(self._queues[first:], 0.99)),
            replica_hours=total["replicas"] * tick / 3_600,
            most_replicas=int(self._size[first:].max()),
            course=_course(part, scenario.counts_from, tick),
        )


def _course(part: Mapping[str, Floats], begins: float, tick: float) -> Course:
    ticks = len(part["pages"])
    edges = np.linspace(0, ticks, min(POINTS, ticks) + 1).astype(int)[:-1]
    count = np.diff([*edges, ticks])
    total = {name: np.add.reduceat(values, edges) for name, values in part.items()}
    pages, lists = np.maximum(total["pages"], 1e-9), np.maximum(total["lists"], 1e-9)
    return Course(
        seconds=begins + tick * (edges + count / 2),
        arrived=(total["pages"] + total["lists"]) / count / tick,
        refused=total["refused"] / lists,
        ndcg_share=total["quality"] / pages,
        replicas=total["replicas"] / count,
    )
