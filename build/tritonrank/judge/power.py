"""How small a difference of NDCG@10 a number of judged users can show.

Two rankers are compared on the same lists, user by user. The mean of n paired differences with the standard deviation
s has the standard error s / sqrt(n), which is what the paired bootstrap of the gate estimates too. A difference is seen
in 80 of 100 draws of users, by an interval of 95%, from

    (1.96 + 0.84) * s / sqrt(n)

on (the minimum detectable effect of a paired test: Cohen, Statistical Power Analysis, 1988, chapter 2).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tritonrank.data.dataset import Example
from tritonrank.judge.counted import CountedScorer
from tritonrank.judge.metrics import ndcg

FORMULA = "(1.96 + 0.84) * s / sqrt(users)"
STANDARD_ERRORS = 1.96 + 0.84
"""Of a two-sided interval of 95%, and of 80 chances in 100."""
ONE_IN_TEN = 1.28
"""Standard errors above the mean that chance goes beyond once in ten."""
BUDGET_STEP = 0.005
SAME_RANKER_DEVIATION = 0.08
"""Of the differences between a ranker and its INT8 graph: 0.077 on the 100 users of the demo."""


def smallest_difference(deviation: float, users: int) -> float:
    """The difference of NDCG@10 that so many users show, most of the time.

    Args:
        deviation: standard deviation of the paired differences.
        users: judged, at least 1.
    """
    return STANDARD_ERRORS * deviation / math.sqrt(users)


def users_to_see(difference: float, deviation: float) -> int:
    """How many judged users show a difference of NDCG@10, most of the time."""
    return math.ceil((STANDARD_ERRORS * deviation / difference) ** 2)


def smallest_budget(users: int, ndcg: float) -> float:
    """The relative drop of NDCG@10 that so many users tell from chance, in whole half percents.

    A gate that asks for less closes on one equal ranking in ten: the mean of the differences lies above 1.28 standard
    errors that often. The bound that the gate looks at as well, 1.64 standard errors, is within three times of it.

    Args:
        users: judged, at least 1.
        ndcg: what the rankers reach, above 0.
    """
    standard_error = SAME_RANKER_DEVIATION / math.sqrt(users)
    return math.ceil(ONE_IN_TEN * standard_error / ndcg / BUDGET_STEP) * BUDGET_STEP


def ndcg_of(scorer: CountedScorer, examples: Sequence[Example]) -> NDArray[np.float64]:
    """[examples] NDCG@10 of each list."""
    return np.array([ndcg(scorer(example), example.labels) for example in examples], dtype=np.float64)
