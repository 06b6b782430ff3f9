"""The judge without labels: a conversion is held against the very model that it was made of.

Where nobody brought clicks, nothing says how good a ranker is; but what a checkpoint ranks is known, and a conversion
should rank the same. Three numbers say whether it does, over requests that fit the model: Kendall's tau of the two
orders, the share of the ten best that both have, and the largest change of one score, in units of the spread of the
scores. Each has a budget; one that is exceeded closes the gate, and the unconverted model is served.

A build with labels has the better judge (``gate.py``): it sees whether a difference matters.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank.judge.metrics import kendall_tau
from tritonrank.rankers.agreement import top_overlap

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Budgets:
    """What a conversion may change."""

    tau: float = 0.9
    """Kendall's tau of the two orders, the mean over the requests, at the least"""
    overlap: float = 0.9
    """share of the ten best that both orders have, the mean over the requests, at the least"""
    difference: float = 0.5
    """largest change of one score at the most, in standard deviations of all scores"""


@dataclass(frozen=True)
class Agreement:
    """How alike two forms of one ranker rank."""

    tau: float
    overlap: float
    difference: float
    requests: int
    candidates: int
    budgets: Budgets

    @property
    def faults(self) -> list[str]:
        """What exceeds its budget, in words; a number that is none exceeds it."""
        found = []
        if not self.tau >= self.budgets.tau:
            found.append(f"Kendall's tau {self.tau:.3f} is below {self.budgets.tau:g}")
        if not self.overlap >= self.budgets.overlap:
            found.append(f"{self.overlap:.0%} of the ten best agree, {self.budgets.overlap:.0%} are asked for")
        if not self.difference <= self.budgets.difference:
            found.append(
                f"a score changed by {self.difference:.2f} of the spread, {self.budgets.difference:g} is allowed"
            )
        return found

    @property
    def passed(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        return (
            f"tau {self.tau:.3f}, ten best {self.overlap:.1%} alike, largest change {self.difference:.3f} of spread "
            f"({self.requests} requests, {self.candidates} documents)"
        )

    def as_metrics(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed, "faults": self.faults}


def agreement(found: Sequence[Scores], expected: Sequence[Scores], budgets: Budgets | None = None) -> Agreement:
    """Hold the scores of a conversion against those of its source, request by request.

    A request with one candidate has no order; its score counts.

    Args:
        found: of the conversion.
        expected: of the source, for the same requests.
        budgets: what may change.

    Raises:
        ValueError: no request has two candidates.
    """
    lists = [(a, b) for a, b in zip(found, expected, strict=True) if len(b) > 1]
    if not lists:
        raise ValueError("no request has two candidates, so there is no order to compare")
    is_number = all(np.isfinite(a).all() for a in found)
    taus = [kendall_tau(a, b) for a, b in lists] if is_number else [float("nan")]
    everything = np.concatenate([np.asarray(scores, dtype=np.float64) for scores in expected])
    change = np.concatenate([np.asarray(scores, dtype=np.float64) for scores in found]) - everything
    return Agreement(
        tau=float(np.mean(taus)),
        overlap=float(np.mean([top_overlap(a, b) for a, b in lists])),
        difference=float(np.abs(change).max() / max(float(everything.std()), 1e-9)),
        requests=len(expected),
        candidates=int(everything.size),
        budgets=budgets or Budgets(),
    )
