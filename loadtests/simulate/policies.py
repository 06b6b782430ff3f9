"""Ways of steering a fleet: as many replicas as were bought, as CPU says, or as the gateways' own controllers say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tritonrank_gateway.adapt import Controller, Forecaster, Seen, ladder_of
from tritonrank_recommend.blend import LevelsFile

from loadtests.simulate.cost import Cost
from loadtests.simulate.fleet import Floats, Step
from loadtests.simulate.scaler import Autoscaler, CpuReading

FLOOR_CANDIDATES = 25
"""Fewest that are ranked, as the gateway's ``--adapt-floor`` has it."""


@dataclass(frozen=True)
class View:
    """What can be known at the end of a tick.

    Attributes:
        now: seconds.
        seconds: of the tick.
        step: what happened in it.
        unranked: requests that nobody had to rank, [gateways].
        cost: seconds of a replica for one of the others, [gateways].
        size: of the fleet, with replicas that start.
    """

    now: float
    seconds: float
    step: Step
    unranked: Floats
    cost: Floats
    size: int


@dataclass(frozen=True)
class Orders:
    """What is done until the next tick.

    Attributes:
        candidates: that a page's ranker sees, [gateways]; 0: the page is shown in retrieval's order.
        size: of the fleet; None: whatever is there.
    """

    candidates: NDArray[np.int64]
    size: int | None


class Policy(Protocol):
    """A way of steering."""

    def steer(self, view: View) -> Orders:
        """What to do after this tick."""


@dataclass(frozen=True)
class Start:
    """What a policy begins with.

    Attributes:
        gateways: that the fleet stands behind.
        size: replicas.
        least, most: replicas of an autoscaler.
        cost: of a replica.
        lists_share: of the requests, which keep all of their candidates.
        past: (second before the start, requests until the next one) at each gateway, for forecasts; may be empty.
        seconds: that are played.
    """

    gateways: int
    size: int
    least: int
    most: int
    cost: Cost
    lists_share: float
    past: list[tuple[float, float]]
    seconds: float

    @property
    def whole(self) -> NDArray[np.int64]:
        """Whole lists at every gateway, [gateways]."""
        return np.full(self.gateways, self.cost.most_candidates)


class Fixed:
    """No replica is started or stopped, every list whole."""

    def __init__(self, start: Start) -> None:
        self._orders = Orders(start.whole, None)

    def steer(self, view: View) -> Orders:
        """See `Policy`."""
        del view
        return self._orders


class ByCpu:
    """The autoscaler follows the mean CPU of the replicas; every list whole."""

    def __init__(self, start: Start) -> None:
        self._whole, self._autoscaler, self._reading = start.whole, Autoscaler(start.least, start.most), CpuReading()

    def steer(self, view: View) -> Orders:
        """See `Policy`."""
        live = view.step.live
        ready = int(live.sum())
        wished = self._reading.wished(view.now, float((view.step.busy * live).sum() / max(ready, 1)), ready)
        return Orders(self._whole, self._autoscaler.size(view.now, view.size, wished))


class Levels:
    """The gateways' own controllers choose levels, each for itself; the size stays.

    They get what a gateway sees: what came, what was done at which level, what waits, and what found no room.
    """

    def __init__(self, start: Start) -> None:
        self._start, cost = start, start.cost
        shares = {str(depth): share for depth, share in cost.ndcg_share.items() if 0 < depth < cost.most_candidates}
        file = LevelsFile(
            full=cost.most_candidates, ndcg=1.0, users=0, by_candidates=shares, retrieval=cost.ndcg_share[0]
        )
        levels = ladder_of(cost.most_candidates, FLOOR_CANDIDATES, file=file)
        self._depths = np.array([level.ranked(cost.most_candidates) for level in levels])
        self._cost = np.array([level.cost(cost.most_candidates) for level in levels])
        self._before = [0] * start.gateways
        """levels of the tick before"""
        self._controllers = [Controller(levels, forecaster=Forecaster()) for _ in range(start.gateways)]
        for controller in self._controllers:
            for second, requests in start.past:
                controller.forecaster.add(requests, _unix(second))

    def steer(self, view: View) -> Orders:
        """See `Policy`."""
        for gateway, controller in enumerate(self._controllers):
            controller.look(self._seen(gateway, controller, view))
        return Orders(self._depths[[one.level.number for one in self._controllers]], self._size(view))

    def _size(self, view: View) -> int | None:
        del view
        return None

    def _seen(self, gateway: int, controller: Controller, view: View) -> Seen:
        step, lists = view.step, self._start.lists_share
        arrived = float(step.arrived[gateway] + view.unranked[gateway])
        number, replicas = controller.level.number, max(1, int(step.live[gateway]))
        # A whole list is a unit of work, a shorter page its level's share of that.
        cost = view.cost[gateway]
        ranked = (1 - lists) * self._cost[number] + lists
        unit = ranked / (1.0 if self._depths[number] else lists)  # of a request that comes to a replica
        done = [0.0] * len(self._cost)
        done[number] = float(step.done_seconds[gateway] / cost * unit)
        waiting = float(step.queue_seconds[gateway]) * replicas / cost
        busy = float(step.busy[gateway])
        return Seen(
            at=view.now,
            unix=_unix(view.now),
            seconds=view.seconds,
            arrivals=round(arrived),
            demand=(arrived * ((1 - lists) * self._cost + lists)).tolist(),
            done=done,
            busy_seconds=view.seconds * busy,
            in_flight=replicas + waiting / busy if busy else 0.0,
            waiting=waiting * unit,
            refused=round(step.refused[gateway]),
            replicas=replicas,
        )


class LevelsAndWish(Levels):
    """The controllers choose levels, and an autoscaler follows the replicas that they wish."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._autoscaler = Autoscaler(start.least, start.most)

    def _size(self, view: View) -> int:
        wished = sum(one.wished_replicas for one in self._controllers)
        return self._autoscaler.size(view.now, view.size, wished)


POLICIES: Mapping[str, tuple[Callable[[Start], Policy], str]] = {
    "fixed size": (Fixed, "as many replicas as were bought; what they have no room for is refused"),
    "CPU": (ByCpu, "a HorizontalPodAutoscaler on the replicas' CPU"),
    "levels": (Levels, "a fixed size, and gateways with --adapt act"),
    "levels and wish": (LevelsAndWish, "gateways with --adapt act, and an autoscaler on the replicas that they wish"),
}


def _unix(second: float) -> float:
    """Second 0 is a midnight."""
    return 86_400.0 * 20_000 + second
