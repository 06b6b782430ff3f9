"""The forecast of ``build --quick``, on curves whose end is known."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonrank.judge.learning_curve import LearningCurve

SIZES = (150, 300, 600, 1_200)
FULL = 12_000
USERS = 200
Curve = Callable[[float], float]

CURVES: dict[str, Curve] = {
    "logarithm": lambda n: 0.10 + 0.03 * np.log(n),
    "slow power": lambda n: 0.60 - 0.8 * n**-0.2,
    "power": lambda n: 0.45 - 2.0 * n**-0.5,
    "flat": lambda n: 0.30,
}


def judged(curve: Curve, sizes: tuple[int, ...], noise: float, seed: int) -> NDArray[np.float64]:
    """[runs, users] as a judge gives them: users differ much, and alike in every run; runs differ a little."""
    random = np.random.default_rng(seed)
    users = random.normal(0, 0.25, USERS)
    rows = [curve(size) + noise * random.standard_normal() + users + random.normal(0, 0.1, USERS) for size in sizes]
    return np.array(rows)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("noise", [0.005, 0.015])
def test_the_interval_holds_what_comes_out(name: str, noise: float) -> None:
    """A full run is judged on the same users: nearly always within the interval, which is not endless either."""
    inside, widths = [], []
    for seed in range(40):
        values = judged(CURVES[name], (*SIZES, FULL), noise, seed)
        found = LearningCurve(SIZES, values[:-1], samples=300).forecast(FULL).interval
        inside.append(found.low <= values[-1].mean() <= found.high)
        widths.append(found.high - found.low)
    assert np.mean(inside) >= 0.85
    assert np.median(widths) < 0.35


def test_noisy_runs_say_less() -> None:
    def width(noise: float) -> float:
        found = [
            LearningCurve(SIZES, judged(CURVES["power"], SIZES, noise, seed)).forecast(FULL).interval
            for seed in range(10)
        ]
        return float(np.median([one.high - one.low for one in found]))

    assert width(0.05) > 1.5 * width(0.002)


def test_further_away_is_less_certain() -> None:
    curve = LearningCurve(SIZES, judged(CURVES["logarithm"], SIZES, 0.005, 1))
    near, far = curve.forecast(2_400).interval, curve.forecast(120_000).interval
    assert far.high - far.low > near.high - near.low
    assert far.mean > near.mean


def test_a_baseline_is_compared_user_by_user() -> None:
    values = judged(CURVES["power"], (*SIZES, FULL), 0.002, 3)
    baselines = {"far below": values[-1] - 0.2, "far above": values[-1] + 0.2, "as good": values[-1]}
    against = LearningCurve(SIZES, values[:-1]).forecast(FULL, baselines).against
    assert against["far below"].better > 0.95
    assert against["far above"].better < 0.05
    assert 0.05 < against["as good"].better < 0.95
    assert against["far below"].difference.low > 0 > against["far above"].difference.high


def test_runs_that_fall_do_not_forecast_a_fall() -> None:
    falling = judged(lambda n: 0.5 - 0.02 * np.log(n), SIZES, 0.0, 5)
    found = LearningCurve(SIZES, falling).forecast(FULL).interval
    assert found.high >= falling[-1].mean()
    assert abs(found.mean - falling.mean()) < 0.03


def test_two_runs_are_no_curve() -> None:
    with pytest.raises(ValueError, match="3"):
        LearningCurve((100, 200), np.zeros((2, 10)))
