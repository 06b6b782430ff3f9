"""When requests arrive: a Poisson process whose rate may follow a day's curve or jump for a while.

A process of rate 1 is stretched: its point u arrives when the cumulative rate of the curve has reached u. The mean rate
stays what was asked for, so the curve takes requests / rate seconds, whatever its form; a day of 24 hours becomes as
short as the load test is. What comes after its end goes on with the next day.
"""

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUIETEST_HOUR = 4.0
"""Of the day; the busiest is twelve hours later."""
SPIKE_BEGINS, SPIKE_ENDS = 0.45, 0.55
"""Of the workload's length."""
DEFAULT_RATIO = 4.0
"""Of a day: the busiest moment's rate over the quietest one's. Of a spike: its rate over that around it."""
LARGEST_RATIO = 1_000.0
STEPS = 4_096
"""Points of the curve between which it is taken as straight."""
EXPECTED = "expected steady, day or spike, the last two with a ratio of rates if wanted, such as day:4 or spike:10"


def arrival_ratio(text: str) -> tuple[str, float]:
    """What ``arrivals`` stands for: steady, day or spike, and the ratio of its rates.

    Raises:
        ValueError: none of the forms, or a ratio out of range.
    """
    name, colon, number = text.partition(":")
    if name not in ("steady", "day", "spike") or (name == "steady" and colon):
        raise ValueError(EXPECTED)
    if not colon:
        return name, 1.0 if name == "steady" else DEFAULT_RATIO
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", number):
        raise ValueError(EXPECTED)
    ratio = float(number)
    if not 1 < ratio <= LARGEST_RATIO:
        raise ValueError(f"the ratio is above 1 and at most {LARGEST_RATIO:g}")
    return name, ratio


def arrival_times(
    random: "np.random.Generator", requests: int, per_second: float, arrivals: str
) -> "NDArray[np.float64]":
    """Seconds since the start, ascending, one for each request.

    Args:
        random: where the gaps come from.
        requests: how many.
        per_second: mean rate.
        arrivals: as ``arrival_ratio`` takes it.
    """
    import numpy as np

    times: NDArray[np.float64] = random.exponential(1 / per_second, requests).cumsum()
    if arrival_ratio(arrivals)[0] == "steady":
        return times
    seconds = requests / per_second
    shares = np.linspace(0, 1, STEPS + 1)
    curve = arrival_curve(shares, arrivals)
    passed = np.concatenate([[0.0], np.cumsum((curve[1:] + curve[:-1]) / 2)])
    passed /= passed[-1]  # share of the requests by share of the time
    laps, rest = np.divmod(times / seconds, 1.0)
    stretched: NDArray[np.float64] = seconds * (laps + np.interp(rest, passed, shares))
    return stretched


def arrival_curve(shares: "NDArray[np.float64]", arrivals: str) -> "NDArray[np.float64]":
    """The rate over the length, in any unit, [shares].

    Args:
        shares: of the length that have passed, 0 to 1.
        arrivals: as ``arrival_ratio`` takes it.
    """
    name, ratio = arrival_ratio(arrivals)
    return _day(shares, ratio) if name == "day" else _spike(shares, ratio)


def _day(shares: "NDArray[np.float64]", ratio: float) -> "NDArray[np.float64]":
    import numpy as np

    swing = (ratio - 1) / (ratio + 1)  # then (1 + swing) / (1 - swing) is the ratio
    curve: NDArray[np.float64] = 1 - swing * np.cos(2 * math.pi * (shares - QUIETEST_HOUR / 24))
    return curve


def _spike(shares: "NDArray[np.float64]", ratio: float) -> "NDArray[np.float64]":
    import numpy as np

    return np.where((shares >= SPIKE_BEGINS) & (shares < SPIKE_ENDS), ratio, 1.0)
