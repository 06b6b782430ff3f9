"""A fleet of replicas behind gateways, step by step: work comes, is spread, waits, is done or finds no room.

Replicas are numbers in arrays [gateways, places], so a step costs the same few operations for 10 and for 1,000.
Arrivals are Poisson at each replica, because a user's requests go to the same one; what is too much for one goes to
others of the same gateway, as `tritonrank_gateway.replicas` does it (at most ``LOAD_BOUND`` times the even share), and
what finds more than ``queue_seconds`` of work everywhere is refused. Within a tick work flows evenly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LOAD_BOUND = 1.25
"""As ``PoolSettings.load_bound`` of the gateway."""
TINY = 1e-12


@dataclass(frozen=True)
class Step:
    """What happened in a tick, each [gateways].

    Attributes:
        arrived: requests.
        refused: of them, without room.
        busy: mean share of the time in which a live replica computed.
        queue_seconds: of work, mean over live replicas, at the end.
        done_seconds: of work, all replicas together.
        live: replicas that answer.
    """

    arrived: Floats
    refused: Floats
    busy: Floats
    queue_seconds: Floats
    done_seconds: Floats
    live: Floats


class Fleet:
    """See the module.

    Args:
        gateways: each before an equal share of the replicas.
        size: replicas at the start, all of them ready.
        most: replicas that there can ever be.
        start_seconds: until a new replica answers.
        queue_seconds: of work that may wait at a replica.
        random: of arrivals.
    """

    def __init__(
        self,
        gateways: int,
        size: int,
        most: int,
        *,
        start_seconds: float,
        queue_seconds: float,
        random: np.random.Generator,
    ) -> None:
        places = -(-most // gateways)
        self._start_seconds, self._queue_seconds, self._random = start_seconds, queue_seconds, random
        self._backlog = np.zeros((gateways, places))
        self._ready_at = np.full((gateways, places), np.inf)
        """second from which a replica answers; inf: there is none"""
        self._is_gone = np.zeros((gateways, places), dtype=bool)
        self._homeless = np.zeros((gateways, 1))
        """seconds of work of replicas that went away"""
        self.resize(size, now=-start_seconds)

    @property
    def size(self) -> int:
        """Replicas that are paid for: those that start, too."""
        return int(np.isfinite(self._ready_at).sum())

    def live(self, now: float) -> NDArray[np.bool_]:
        """Which replicas answer, [gateways, places]."""
        return np.asarray(self._ready_at <= now)

    def resize(self, size: int, now: float) -> None:
        """Start or stop replicas until there are so many, evenly over the gateways."""
        gateways = len(self._backlog)
        for gateway in range(gateways):
            wanted = size // gateways + (gateway < size % gateways)
            ready_at = self._ready_at[gateway]
            there = np.flatnonzero(np.isfinite(ready_at))
            if len(there) < wanted:
                free = np.flatnonzero(~np.isfinite(ready_at) & ~self._is_gone[gateway])
                ready_at[free[: wanted - len(there)]] = now + self._start_seconds
            elif len(there) > wanted:
                newest_first = there[np.argsort(-ready_at[there], kind="stable")]
                self._stop(gateway, newest_first[: len(there) - wanted])

    def lose(self, share: float) -> None:
        """So large a share of each gateway's replicas goes at once; what waited there goes to the others."""
        for gateway in range(len(self._backlog)):
            there = np.flatnonzero(np.isfinite(self._ready_at[gateway]))
            places = there[: round(share * len(there))]
            self._stop(gateway, places)
            self._is_gone[gateway, places] = True

    def give_back(self, now: float) -> int:
        """The lost machines are there again, and their replicas start; how many."""
        back = self._is_gone
        self._ready_at[back] = now + self._start_seconds
        self._is_gone = np.zeros_like(back)
        return int(back.sum())

    def step(self, now: float, seconds: float, arriving: Floats, cost: Floats) -> Step:
        """Let a tick pass.

        Args:
            now: at its begin.
            seconds: that it takes.
            arriving: expected requests at each gateway that a replica has to work for, [gateways].
            cost: seconds of a replica for one of them, [gateways].
        """
        live = self.live(now)
        count = live.sum(axis=1, keepdims=True)
        each = np.where(live, arriving[:, None] / np.maximum(count, 1), 0.0)
        requests = self._random.poisson(each).astype(np.float64)
        lost = np.where(count[:, 0] == 0, arriving, 0.0)
        cost_column = np.maximum(cost[:, None], TINY)
        work = requests * cost_column + np.where(live, self._homeless / np.maximum(count, 1), 0.0)
        load = _evened(self._backlog + work, work, live, count)
        load, refused_seconds = _bounded(load, self._queue_seconds + seconds, live)
        done = np.minimum(load, seconds)
        self._backlog = load - done
        self._homeless[:] = 0.0
        # Work of replicas that went away is refused last; it is of requests that were counted when they arrived.
        refused = np.minimum(refused_seconds / cost_column[:, 0], requests.sum(axis=1))
        live_count = np.maximum(count[:, 0], 1).astype(np.float64)
        return Step(
            arrived=requests.sum(axis=1) + lost,
            refused=refused + lost,
            busy=done.sum(axis=1) / live_count / seconds,
            queue_seconds=self._backlog.sum(axis=1) / live_count,
            done_seconds=done.sum(axis=1),
            live=count[:, 0].astype(np.float64),
        )

    def count(self, expected: Floats) -> Floats:
        """How many came of what no replica has to work for, [gateways]."""
        return self._random.poisson(expected).astype(np.float64)

    def _stop(self, gateway: int, places: NDArray[np.intp]) -> None:
        self._homeless[gateway] += self._backlog[gateway, places].sum()
        self._backlog[gateway, places] = 0.0
        self._ready_at[gateway, places] = np.inf


def _evened(load: Floats, movable: Floats, live: NDArray[np.bool_], count: NDArray[np.int64]) -> Floats:
    """What is more than a replica's bound goes to those below it, as far as it has just arrived."""
    bound = LOAD_BOUND * load.sum(axis=1, keepdims=True) / np.maximum(count, 1)
    over = np.minimum(np.maximum(load - bound, 0.0), movable)
    room = np.where(live, np.maximum(bound - load, 0.0), 0.0)
    return np.asarray(load - over + room * _share(over.sum(axis=1), room.sum(axis=1))[:, None])


def _bounded(load: Floats, most: float, live: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Loads of at most so much, and what found no room at any replica of the gateway, in seconds."""
    over = np.maximum(load - most, 0.0)
    room = np.where(live, np.maximum(most - load, 0.0), 0.0)
    wanted, there = over.sum(axis=1), room.sum(axis=1)
    moved = np.minimum(wanted, there)
    return np.asarray(load - over + room * _share(moved, there)[:, None]), np.asarray(wanted - moved)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.where(whole > 0, part / np.maximum(whole, TINY), 0.0))
