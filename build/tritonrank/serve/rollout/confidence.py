"""What so many observations say for certain, however often somebody looks.

A rollout looks every second and stops at the first look that decides. Ordinary intervals are made for one look: of
such that are looked at a thousand times, far more than one in twenty is wrong at some time. These are confidence
sequences: the chance that one is wrong at *any* look, from the first to the last, is at most ``error``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

TUNED_FOR = 500
"""Observations at which the interval of a mean is narrowest; before and after it is a little wider than it could be."""
STEPS = 40
"""Of a bisection: far finer than what is known."""


@dataclass(frozen=True)
class Bounds:
    """Where the true value lies, as far as can be said."""

    low: float
    high: float


def bounded_mean(total: float, count: float, error: float) -> Bounds:
    """Of the mean of values from 0 to 1: shares of requests, and overlaps. It holds for any number of them.

    Args:
        total: the sum of the values.
        count: how many there are.
        error: chance of being wrong at any look; both sides together.
    """
    if count <= 0:
        return Bounds(0.0, 1.0)
    found = min(max(total / count, 0.0), 1.0)

    def is_left_out(value: float) -> bool:
        return is_no_mean(value, total, count, error)

    return Bounds(_edge(is_left_out, 0.0, found), _edge(is_left_out, 1.0, found))


def is_no_mean(value: float, total: float, count: float, error: float) -> bool:
    """Whether a value is beyond the bounds of ``bounded_mean``.

    A likelihood ratio against each possible mean, mixed over a prior (Robbins, 1970; here that of Jeffreys, which is
    quick to believe that rare things are rare), is a martingale for values that are 0 or 1, and by convexity at most
    one for all values between. So by Ville's inequality it exceeds 1 / error at some time with a chance of at most
    ``error``; a mean for which it does so is left out.
    """
    total = min(max(total, 0.0), count)
    mixed = _log_beta(total + 0.5, count - total + 0.5) - _log_beta(0.5, 0.5)
    return mixed - _times_log(total, value) - _times_log(count - total, 1 - value) > -math.log(error)


def mean(total: float, squares: float, count: float, error: float) -> Bounds:
    """Of the mean of values without a bound: score differences. It holds for more than some hundred of them.

    Asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Annals of Statistics 2024, eq. 6).

    Args:
        total: the sum of the values.
        squares: the sum of their squares.
        count: how many there are.
        error: as of ``bounded_mean``.
    """
    if count < 2:
        return Bounds(-math.inf, math.inf)
    found = total / count
    spread = math.sqrt(max(0.0, squares / count - found * found))
    half = spread * widening(count, error) / math.sqrt(count)
    return Bounds(found - half, found + half)


def widening(count: float, error: float) -> float:
    """How many standard errors of the mean an interval has to each side, so that every look may be believed."""
    tuned = (-2 * math.log(error) + math.log(1 - 2 * math.log(error))) / TUNED_FOR
    seen = count * tuned
    return math.sqrt((seen + 1) / seen * math.log((seen + 1) / (error * error)))


def _log_beta(one: float, other: float) -> float:
    return math.lgamma(one) + math.lgamma(other) - math.lgamma(one + other)


def _times_log(times: float, value: float) -> float:
    if times == 0:
        return 0.0
    return times * math.log(value) if value > 0 else -math.inf


def _edge(is_left_out: Callable[[float], bool], outer: float, inner: float) -> float:
    """Between a value that may be left out and one that is not: the outermost that is not."""
    if not is_left_out(outer):
        return outer
    for _ in range(STEPS):
        middle = (outer + inner) / 2
        if is_left_out(middle):
            outer = middle
        else:
            inner = middle
    return outer
