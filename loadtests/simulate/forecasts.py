"""The verb ``forecast``: is the gateways' forecast of arrivals better than saying that all stays as it is?

Days are made with the curve of `tritonrank workload --arrivals day`. The first ones are for learning; on the others the
forecast of each minute is held against what came. MASE (Hyndman and Koehler 2006,
https://doi.org/10.1016/j.ijforecast.2006.03.001) is the mean absolute error in that of the naive forecast, "as in the
last minute", over the days of learning, at the same number of minutes ahead: below 1 is better than naive.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table
from tritonrank.data.arrivals import arrival_curve
from tritonrank_gateway.adapt import Forecaster

Floats = NDArray[np.float64]
BUCKET_SECONDS = 60.0
DAY_MINUTES = 1_440
LEARNED_DAYS, JUDGED_DAYS = 7, 7
AHEAD_MINUTES = (1, 5, 10)
RATES = (1.0, 10.0, 100.0)
DAY_LEVEL, WEEKEND = 0.15, 0.75
"""Of a restless week: how much days differ (standard deviation), and what a weekend's day has of a working day's."""
DRIFT, DRIFT_MINUTES = 0.1, 120.0
"""How far the rate wanders from its curve (standard deviation), and for how long."""
BURST, BURST_MINUTES, BURSTS_PER_DAY = 2.0, 15, 0.5


@dataclass(frozen=True)
class Judged:
    """One world at one rate and distance.

    Attributes:
        world, rate, minutes: what was forecast.
        mase: of the forecast.
        naive, seasonal: MASE of "as in the last minute" and of "as at this time yesterday", on the same days.
    """

    world: str
    rate: float
    minutes: int
    mase: float
    naive: float
    seasonal: float


def alike(random: np.random.Generator, rate: float, days: int) -> Floats:
    """Requests of each minute, [minutes]: the workload's day again and again."""
    return np.asarray(random.poisson(60 * rate * _curve(days)), np.float64)


def restless(random: np.random.Generator, rate: float, days: int) -> Floats:
    """Requests of each minute, [minutes]: days of different height, quieter weekends, a rate that wanders, bursts."""
    minutes = days * DAY_MINUTES
    levels = np.exp(DAY_LEVEL * random.standard_normal(days)) * np.where(np.arange(days) % 7 < 5, 1.0, WEEKEND)
    kept = np.exp(-1.0 / DRIFT_MINUTES)
    steps = random.standard_normal(minutes) * DRIFT * np.sqrt(1 - kept**2)
    wander = np.zeros(minutes)
    for minute in range(1, minutes):
        wander[minute] = kept * wander[minute - 1] + steps[minute]
    rates = rate * _curve(days) * np.repeat(levels, DAY_MINUTES) * np.exp(wander)
    for begins in random.integers(0, minutes, random.poisson(BURSTS_PER_DAY * days)):
        rates[begins : begins + BURST_MINUTES] *= BURST
    return np.asarray(random.poisson(60 * rates), np.float64)


def _curve(days: int) -> Floats:
    """Of each minute, [minutes], 1 on average."""
    curve = arrival_curve(np.arange(days * DAY_MINUTES) % DAY_MINUTES / DAY_MINUTES, "day")
    return np.asarray(curve / curve.mean())


WORLDS: Mapping[str, Callable[[np.random.Generator, float, int], Floats]] = {"alike": alike, "restless": restless}


def judge_forecast(counts: Floats, learned: int, ahead: int, world: str = "", rate: float = 0.0) -> Judged:
    """Hold forecasts against what came.

    Args:
        counts: requests of each minute, [minutes].
        learned: minutes of them that are not judged.
        ahead: minutes from the last whole one to the one that is forecast.
        world, rate: for the answer.
    """
    forecaster, found = Forecaster(BUCKET_SECONDS), np.zeros(len(counts))
    for minute, count in enumerate(counts.tolist()):
        forecaster.add(count, minute * BUCKET_SECONDS)
        forecaster.add(0, (minute + 1) * BUCKET_SECONDS)  # this minute is over
        if minute + ahead < len(counts) and minute + ahead >= learned:
            found[minute + ahead] = BUCKET_SECONDS * forecaster.forecast(ahead * BUCKET_SECONDS)
    scale = float(np.abs(counts[ahead:learned] - counts[: learned - ahead]).mean())

    def scaled(forecasts: Floats) -> float:
        return float(np.abs(forecasts - counts[learned:]).mean()) / scale

    last, yesterday = counts[learned - ahead : len(counts) - ahead], counts[learned - DAY_MINUTES : -DAY_MINUTES]
    return Judged(world, rate, ahead, scaled(found[learned:]), scaled(last), scaled(yesterday))


def forecast(seed: Annotated[int, typer.Option(min=0, help="Of the days that are made")] = 0) -> None:
    """Judge the forecast of arrivals on held-out days. Exits with 1 where its MASE is not below 1."""
    days, learned = LEARNED_DAYS + JUDGED_DAYS, LEARNED_DAYS * DAY_MINUTES
    judged = [
        judge_forecast(counts, learned, ahead, world, rate)
        for world, make in WORLDS.items()
        for rate in RATES
        for counts in (make(np.random.default_rng(seed), rate, days),)
        for ahead in AHEAD_MINUTES
    ]
    numbers = ("requests/s", "minutes ahead", "MASE", "naive", "as yesterday")
    table = Table("days", *(Column(name, justify="right") for name in numbers))
    for one in judged:
        table.add_row(
            one.world,
            f"{one.rate:g}",
            str(one.minutes),
            *(f"{value:.3f}" for value in (one.mase, one.naive, one.seasonal)),
        )
    Console(emoji=False).print(table)
    is_better = all(one.mase < 1 for one in judged)
    print(json.dumps({"passed": is_better, "judged": [vars(one) for one in judged]}))
    sys.exit(0 if is_better else 1)
