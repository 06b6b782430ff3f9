"""The learning curve: what a ranker trained on a few parts of the data says about one trained on all of them.

The curve is y(n) = c - a * n^-b with a >= 0: error falls as a power of the number of examples n, down to what the data
allow (Cortes et al., Learning curves: asymptotic values and rate of convergence, 1994; Hestness et al., Deep learning
scaling is predictable, empirically, 2017). As b goes to 0 it becomes y(n) = c + a * ln(n), which never flattens. A few
short runs cannot tell which b is right, so none is chosen: every b of EXPONENTS counts as much as it fits the runs.

The interval holds three doubts. Other users could have been judged: they are drawn anew (bootstrap, the same users for
all runs and baselines). A run could have gone otherwise, by its seed and by the examples drawn: noise as large as the
residuals of the fit say, together with what we know of such runs (a normal-inverse-chi-square model; Gelman et al.,
Bayesian data analysis, chapter 3). The curve could be another one: its exponent is drawn. It holds no doubt about more
data being of another kind than the part that was tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tritonrank.judge.metrics import BOOTSTRAP_SAMPLES, Interval

EXPONENTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Values of b; 0 is the logarithm. Measured ones lie between 0.07 and 0.5 (Hestness et al.); 1 saturates soonest."""
RUN_NOISE = 0.01
"""Standard deviation of NDCG@10 between runs that differ by their seed alone, before anything was seen of this data."""
RUN_NOISE_WORTH = 4.0
"""How many residuals that knowledge counts as much as."""
FEWEST_RUNS = 3


@dataclass(frozen=True)
class Forecast:
    """What a run on more examples is likely to give."""

    examples: int
    interval: Interval
    """of NDCG@10: the median of the draws, and the range that holds 95% of them"""
    against: dict[str, "Chance"]
    """by baseline"""


@dataclass(frozen=True)
class Chance:
    """How a forecast stands to a baseline that the same users were judged by."""

    better: float
    """share of the draws in which the ranker is the better one"""
    difference: Interval
    """the ranker's NDCG@10 minus the baseline's"""


class LearningCurve:
    """Curves through the runs, as many as are drawn.

    Args:
        sizes: number of training examples of each run, at least FEWEST_RUNS different ones.
        values: [runs, users] NDCG@10 of each run, of the same users in the same order.
        samples: how many curves are drawn.
        seed: of the draws.
    """

    def __init__(
        self, sizes: Sequence[int], values: ArrayLike, *, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
    ) -> None:
        table = np.asarray(values, dtype=np.float64)
        if len(set(sizes)) < FEWEST_RUNS or table.shape[0] != len(sizes):
            raise ValueError(f"{len(set(sizes))} sizes and {table.shape[0]} runs; a curve needs {FEWEST_RUNS} or more")
        random = np.random.default_rng(seed)
        users = table.shape[1]
        self._counts = random.multinomial(users, np.full(users, 1 / users), size=samples) / users
        means = self._counts @ table.T  # [samples, runs]
        fits = [_Line(exponent, sizes) for exponent in EXPONENTS]
        squares = RUN_NOISE_WORTH * RUN_NOISE**2 + np.array([fit.residual_squares(table.mean(axis=1)) for fit in fits])
        worth = RUN_NOISE_WORTH + len(sizes) - 2
        likelihood = np.exp(-0.5 * worth * np.log(squares / squares.min()))
        drawn = random.choice(len(fits), size=samples, p=likelihood / likelihood.sum())
        self._noise = np.sqrt(squares[drawn] / random.chisquare(worth, size=samples))
        means += self._noise[:, None] * random.standard_normal(means.shape)
        self._curves = [
            (fit, drawn == place, fit.coefficients(means[drawn == place])) for place, fit in enumerate(fits)
        ]
        self._last_noise = random.standard_normal(samples)

    def forecast(self, examples: int, baselines: Mapping[str, NDArray[np.float64]] | None = None) -> Forecast:
        """What a run on so many examples is likely to give.

        Args:
            examples: how many.
            baselines: NDCG@10 of the same users, by name.
        """
        draws = np.empty(len(self._noise))
        for fit, here, coefficients in self._curves:
            draws[here] = fit.at(examples, coefficients)
        draws = np.clip(draws + self._noise * self._last_noise, 0.0, 1.0)
        against = {
            name: Chance(float((draws > others).mean()), _interval(draws - others))
            for name, values in (baselines or {}).items()
            for others in [self._counts @ values]
        }
        return Forecast(examples, _interval(draws), against)


class _Line:
    """Least squares of y = c + a * f(n), where f is the curve of one exponent, scaled to 0..1 over the runs."""

    def __init__(self, exponent: float, sizes: Sequence[int]) -> None:
        self._exponent = exponent
        ends = self._shape(np.array([min(sizes), max(sizes)])).tolist()
        self._start, self._width = ends[0], ends[1] - ends[0]
        self._design = np.column_stack([np.ones(len(sizes)), self._scaled(np.asarray(sizes))])
        self._solution = np.linalg.pinv(self._design)

    def coefficients(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """[samples, 2] c and a. Where the runs fall, they fall by chance: more data of a kind do no harm."""
        found: NDArray[np.float64] = means @ self._solution.T
        falls = found[:, 1] < 0
        found[falls] = np.column_stack([means[falls].mean(axis=1), np.zeros(int(falls.sum()))])
        return found

    def residual_squares(self, values: NDArray[np.float64]) -> float:
        return float(((values - self._design @ self.coefficients(values[None, :])[0]) ** 2).sum())

    def at(self, examples: int, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """[samples] the curves' values."""
        place = self._scaled(np.asarray([examples]))[0]
        return np.asarray(coefficients[:, 0] + coefficients[:, 1] * place)

    def _scaled(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((self._shape(sizes) - self._start) / self._width)

    def _shape(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        numbers = np.asarray(sizes, dtype=np.float64)
        return np.asarray(np.log(numbers) if self._exponent == 0 else -(numbers**-self._exponent))


def _interval(draws: NDArray[np.float64]) -> Interval:
    low, median, high = np.quantile(draws, [0.025, 0.5, 0.975]).tolist()
    return Interval(median, low, high)
