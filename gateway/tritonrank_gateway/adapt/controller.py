"""Which level now: the best one at which what comes can be done without a queue that grows.

Looked at several times a second, with numbers alone and the clock given, so that a simulation asks the same object.

    demand     units of work per second that come, at each level (see ``Level.cost``), smoothed over a second or two
    speed      units per second that were done at each level while work was waiting all the time, as it was measured
    queue      seconds of work that wait now

A level fits when its queue, a little ahead, is below a bound. To a cheaper level it goes at once, over several where
it must; what was refused counts as one step down. To a better one it goes when that has left room to spare for a while;
a climb that had to be taken back makes the next one wait longer, so that levels do not take turns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tritonrank_gateway.adapt.forecast import Forecaster
from tritonrank_gateway.adapt.ladder import Level

AHEAD_SECONDS = 1.5
"""How far the queue is predicted: a level that is wrong by then is left again."""
DEMAND_SECONDS = 1.5
"""Of smoothing: shorter takes chance for a spike, longer sees a spike late."""
QUICK_SECONDS = 0.5
"""Of smoothing where that is no chance any more: something was refused, or the queue is well beyond its bound."""
WELL_BEYOND = 2.0
BEYOND, FEWEST_BEYOND = 1.5, 2.0
"""Times its bound, of the queue: from the first a list is ranked more cheaply than the level that holds, from the
second with the fewest candidates. From 1 on, chance alone did it to 6% of lists at half of saturation."""
ROOM = 0.8
"""Of its speed, that a better level may need before it is taken."""
HOPELESS = 1.15
"""Of its speed, that the cheapest ranking may need before nobody is ranked; it is taken again at 1."""
HOLD_SECONDS = 1.0
"""For so long it must have had the room."""
LONGEST_HOLD_SECONDS = 4.0
REGRETTED_SECONDS = 5.0
"""A climb that is taken back sooner was one too early."""
WINDOW_SECONDS = 1.0
"""Of work over which a speed is measured: requests are finished one by one."""
SPEED_GAIN = 0.4
"""Weight of the newest such measurement."""
ALONE = 0.9
"""Of the work of a window, which one level must have had to be measured by it."""
SATURATED_IN_FLIGHT = 2.0
"""Requests at once, on average, from which on what is done is all that can be done."""
WISH_AHEAD_SECONDS = 300.0
"""For so long a replica that is started now must be enough."""
WISH_ROOM = 0.6
"""Of its speed, that a replica should have to do at full quality: half of saturation and some."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the controller keeps to; may be replaced while it runs.

    Attributes:
        queue_s: seconds of waiting work above which a cheaper level is taken.
    """

    queue_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened since the last look.

    Attributes:
        at: seconds of a clock that does not go back.
        unix: seconds, UTC; for the hour of the day.
        seconds: since the last look.
        arrivals: requests that came.
        demand: [levels] units of work that these are at each level.
        done: [levels] units that were finished at each.
        busy_seconds: of ``seconds``, during which any request was worked on.
        in_flight: requests at once during these, on average.
        waiting: units that wait or are in work now.
        refused: requests for which there was no room at their level.
        replicas: that do the work.
    """

    at: float
    unix: float
    seconds: float
    arrivals: int
    demand: Sequence[float]
    done: Sequence[float]
    busy_seconds: float
    in_flight: float
    waiting: float
    refused: int = 0
    replicas: int = 1


@dataclass(slots=True)
class _Window:
    """Over which a speed is measured."""

    busy_seconds: float = 0.0
    request_seconds: float = 0.0
    done: dict[int, float] = field(default_factory=dict)

    def add(self, seen: Seen) -> None:
        self.busy_seconds += seen.busy_seconds
        self.request_seconds += seen.busy_seconds * seen.in_flight
        for number, units in enumerate(seen.done):
            self.done[number] = self.done.get(number, 0.0) + units


class Controller:
    """Chooses a level; used from one thread.

    Attributes:
        level: the one now.
        reason: why it is this one: load, queue, refused, room, or start.

    Args:
        levels: best first, the last one costs nothing.
        bounds: what it keeps to.
        forecaster: of arrivals.
    """

    def __init__(
        self, levels: Sequence[Level], bounds: Bounds | None = None, forecaster: Forecaster | None = None
    ) -> None:
        self.levels, self.bounds = list(levels), bounds or Bounds()
        self.forecaster = forecaster or Forecaster()
        self.level, self.reason = self.levels[0], "start"
        self.queue_seconds = 0.0
        self._demand, self._quick = [0.0] * len(self.levels), [0.0] * len(self.levels)
        self._arrivals = 0.0
        self._speed: dict[int, float] = {}
        self._window = _Window()
        self._hold = HOLD_SECONDS
        self._roomy_since = math.inf
        self._climbed_at = self._changed_at = -math.inf
        self._replicas = 1

    def replace_levels(self, levels: Sequence[Level]) -> None:
        """Other levels from here on, such as of another number of candidates; what was measured of levels of the same
        name stays."""
        speeds = {self.levels[number].name: speed for number, speed in self._speed.items()}
        self._speed = {level.number: speeds[level.name] for level in levels if level.name in speeds}
        self._window = _Window()
        self.levels = list(levels)
        # Too much for the cheaper ones, for a second.
        self._demand, self._quick = ([full] * len(self.levels) for full in (self._demand[0], self._quick[0]))
        self.level = self.levels[min(self.level.number, len(self.levels) - 1)]

    def look(self, seen: Seen) -> Level:
        """The level from here on."""
        self._measure(seen)
        speed = self._speed_of(self.level.number)
        self.queue_seconds = seen.waiting / speed if speed else 0.0
        now, was = seen.at, self.level.number
        wanted, reason = self._fitting(seen)
        if wanted > was:
            if now - self._climbed_at < REGRETTED_SECONDS:
                self._hold = min(LONGEST_HOLD_SECONDS, 2 * self._hold)
            self._go(wanted, reason, now)
            self._roomy_since = math.inf
        elif was and (better := self._roomy(was)) < was:
            self._roomy_since = min(self._roomy_since, now)
            if now - max(self._roomy_since, self._changed_at) >= self._hold - 1e-9:
                self._climbed_at = now
                self._go(better, "room", now)
                self._roomy_since = math.inf
        else:
            self._roomy_since = math.inf
        if not self.level.number and now - self._changed_at > 2 * LONGEST_HOLD_SECONDS:
            self._hold = HOLD_SECONDS
        return self.level

    def level_behind(self, waiting: float, items: int) -> Level:
        """The level for one list that comes now, behind so much work: the one that holds, or a cheaper one while the
        queue is beyond its bound. Never one at which nobody is ranked.

        Args:
            waiting: units that wait or are in work.
            items: of the list, at least one.
        """
        speed, bound = self._speed_of(self.level.number), self.bounds.queue_s
        cheaper = [one for one in self.levels[self.level.number + 1 :] if one.model == self.level.model]
        if not speed or not cheaper or waiting <= speed * bound * BEYOND:
            return self.level
        # Of the work of a full list, what it may still add: all of it at BEYOND, nothing at FEWEST_BEYOND.
        share = (FEWEST_BEYOND - waiting / speed / bound) / (FEWEST_BEYOND - BEYOND)
        return next((level for level in cheaper if level.cost(items) <= share), cheaper[-1])

    def utilisation(self, number: int) -> float:
        """Of the speed at a level, what now comes; 0 while nothing is known."""
        speed = self._speed_of(number)
        return self._demand[number] / speed if speed else 0.0

    @property
    def arrivals_per_second(self) -> float:
        """That come now."""
        return self._arrivals

    @property
    def wished_replicas(self) -> int:
        """That do at full quality what will come in the next minutes; at least one."""
        speed = self._speed_of(0)
        if not speed:
            return self._replicas
        forecast = max(self.forecaster.highest(WISH_AHEAD_SECONDS), self._arrivals)
        per_request = self._demand[0] / self._arrivals if self._arrivals else 0.0
        return max(1, math.ceil(forecast * per_request * self._replicas / (speed * WISH_ROOM) - 1e-9))

    def _measure(self, seen: Seen) -> None:
        self.forecaster.add(seen.arrivals, seen.unix)
        if seen.seconds <= 0:
            return
        if seen.replicas != self._replicas:
            # What was measured is of all replicas together.
            self._speed = {number: speed * seen.replicas / self._replicas for number, speed in self._speed.items()}
            self._replicas = seen.replicas
        gain, quick = (1.0 - math.exp(-seen.seconds / over) for over in (DEMAND_SECONDS, QUICK_SECONDS))
        for number, units in enumerate(seen.demand):
            self._demand[number] += gain * (units / seen.seconds - self._demand[number])
            self._quick[number] += quick * (units / seen.seconds - self._quick[number])
        self._arrivals += gain * (seen.arrivals / seen.seconds - self._arrivals)
        self._measure_speed(seen)

    def _measure_speed(self, seen: Seen) -> None:
        self._window.add(seen)
        if self._window.busy_seconds < WINDOW_SECONDS:
            return
        window, self._window = self._window, _Window()
        all_done = sum(window.done.values())
        number = max(window.done, key=window.done.__getitem__, default=0)
        if not all_done or window.done[number] < ALONE * all_done:
            return  # just after a change: it says nothing of either
        found, known = all_done / window.busy_seconds, self._speed.get(number, 0.0)
        in_flight = window.request_seconds / window.busy_seconds
        if not known:
            self._speed[number] = found
        elif in_flight >= SATURATED_IN_FLIGHT * seen.replicas or found > known:
            # One request at a time may leave cores idle: that is a lower bound.
            self._speed[number] += SPEED_GAIN * (found - known)

    def _speed_of(self, number: int) -> float:
        """Units per second at a level; of one that was never measured, that of the nearest one. 0: nothing is known."""
        if not self._speed:
            return 0.0
        return self._speed[min(self._speed, key=lambda other: (abs(other - number), other))]

    def _fitting(self, seen: Seen) -> tuple[int, str]:
        """The best level, from this one on, whose queue stays in bounds; and why."""
        now, last = self.level.number, len(self.levels) - 1
        least, reason = now, "load"
        if seen.refused and now < last - 1:  # what is refused at the cheapest one finds room in a moment
            least, reason = now + 1, "refused"
        elif self.queue_seconds > self.bounds.queue_s:
            reason = "queue"
        is_late = bool(seen.refused) or self.queue_seconds > WELL_BEYOND * self.bounds.queue_s
        for number in range(least, last):
            speed = self._speed_of(number)
            demand = max(self._demand[number], self._quick[number]) if is_late else self._demand[number]
            growing = AHEAD_SECONDS * (demand / speed - 1.0) if speed else -math.inf
            if self.queue_seconds + growing <= self.bounds.queue_s:
                return number, reason
        # Where all but a few could be ranked, those few alone go without: each request tries, see ``Pace.cheaper``.
        cheapest = max(0, last - 1)
        return (max(now, cheapest) if 0 < self.utilisation(cheapest) <= HOPELESS else last), reason

    def _roomy(self, now: int) -> int:
        """The best level that leaves room; this one where there is none."""
        # Who is served without waiting is no queue, however long a request takes beside the bound.
        if self.queue_seconds - self._seconds_of_one(now) > self.bounds.queue_s / 2:
            return now
        cheapest = len(self.levels) - 2
        better = (one for one in range(now) if self.utilisation(one) <= (1.0 if now > cheapest == one else ROOM))
        return next(better, now)

    def _seconds_of_one(self, number: int) -> float:
        """That a request takes at a level, on average; 0 while nothing is known."""
        speed = self._speed_of(number)
        return self._demand[number] / self._arrivals / speed if speed and self._arrivals else 0.0

    def _go(self, number: int, reason: str, now: float) -> None:
        self.level, self.reason, self._changed_at = self.levels[number], reason, now
