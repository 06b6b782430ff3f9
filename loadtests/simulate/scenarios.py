"""What happens to a fleet: a day with its curve, a spike of five times the rate, the loss of a third of the replicas.

A rate is told as a share of what the fleet can do when it ranks every list whole, so that one scenario fits fleets of
any size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonrank.data.arrivals import DEFAULT_RATIO, arrival_curve

DAY_SECONDS = 86_400.0
PEAK_SHARE = 0.75
"""Of the fleet's throughput at the busiest moment of its day: what a fleet of fixed size is bought for."""
STEADY_SHARE = 0.5
SPIKE = 5.0
SPIKE_SECONDS = (300.0, 480.0)
"""Begin and end of the spike."""
LOSS_SECONDS = (300.0, 900.0)
"""When a third goes, and when the machines that it ran on are back."""
LOST_SHARE = 1 / 3
PAST_SECONDS = 30.0


@dataclass(frozen=True)
class Scenario:
    """A course of events.

    Attributes:
        name: for the table.
        said: in words.
        seconds: of the whole.
        counts_from: the second from which it is counted.
        tick_seconds: between two looks at the fleet.
        load: second -> requests' work as a share of the fleet's throughput at whole lists.
        past_days: alike, that a forecast has seen before.
        lost: (from, to, share of the fleet): replicas that are gone meanwhile and cannot be started again.
    """

    name: str
    said: str
    seconds: float
    counts_from: float
    tick_seconds: float
    load: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    past_days: int = 0
    lost: tuple[float, float, float] | None = None

    def loads(self) -> NDArray[np.float64]:
        """The load of each tick, [ticks]."""
        return self.load(np.arange(0.0, self.seconds, self.tick_seconds))

    def past(self, requests_per_second: float) -> list[tuple[float, float]]:
        """(second, requests since the one before) of the days before the start.

        Args:
            requests_per_second: at a load of 1.
        """
        at = np.arange(-self.past_days * DAY_SECONDS, 0.0, PAST_SECONDS)
        return list(zip(at.tolist(), (self.load(at) * requests_per_second * PAST_SECONDS).tolist(), strict=True))


def scenarios(tick_seconds: float = 0.0) -> Mapping[str, Scenario]:
    """All of them by name.

    Args:
        tick_seconds: of each; 0: each its own.
    """
    every = [
        Scenario(
            "day",
            f"a day like those before, busiest moment {DEFAULT_RATIO:g} times the quietest and "
            f"{PEAK_SHARE:.0%} of the fleet's throughput",
            DAY_SECONDS,
            0.0,
            tick_seconds or 2.0,
            day_load,
            past_days=2,
        ),
        Scenario(
            "spike",
            f"{SPIKE:g} times a steady {STEADY_SHARE:.0%} for {SPIKE_SECONDS[1] - SPIKE_SECONDS[0]:g} s",
            SPIKE_SECONDS[1] + 600,
            60.0,
            tick_seconds or 0.25,
            spike_load,
        ),
        Scenario(
            "loss",
            f"a third of the replicas is gone for {(LOSS_SECONDS[1] - LOSS_SECONDS[0]) / 60:g} minutes, at a steady "
            f"{PEAK_SHARE:.0%}",
            LOSS_SECONDS[1] + 300,
            60.0,
            tick_seconds or 0.25,
            lambda at: np.full(len(at), PEAK_SHARE),
            lost=(*LOSS_SECONDS, LOST_SHARE),
        ),
    ]
    return {one.name: one for one in every}


def day_load(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The day's curve of `tritonrank workload --arrivals day`, its busiest moment at PEAK_SHARE."""
    curve = arrival_curve((at / DAY_SECONDS) % 1.0, "day")
    return np.asarray(PEAK_SHARE * curve / arrival_curve(np.linspace(0, 1, 1_441), "day").max())


def spike_load(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steady, five times that, steady."""
    begins, ends = SPIKE_SECONDS
    return np.where((at >= begins) & (at < ends), SPIKE * STEADY_SHARE, STEADY_SHARE)
