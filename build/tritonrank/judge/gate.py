"""The gate: may a step stand, given what it did to the ranking?

Child and parent are compared on the same examples. The gate passes when the relative drop of NDCG@10 is within the
budget AND the one-sided 95% paired-bootstrap bound of the drop is within three times the budget. A bound that wide
with too few examples is a failure, not a pass: the gate says that it cannot decide.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from tritonrank.errors import GateError
from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.metrics import BOOTSTRAP_SAMPLES, Interval, interval, kendall_tau
from tritonrank.rankers.agreement import top_overlap

# Below this a bootstrap of the mean says little about users not seen: resampling cannot show rare, bad requests.
FEWEST_EXAMPLES = 30
WORST_SHOWN = 10

console = Console()


@dataclass(frozen=True)
class Verdict:
    """What the gate found; drops are relative to the parent's mean NDCG@10, positive = worse."""

    child: str
    parent: str
    examples: int
    parent_ndcg: float
    child_ndcg: float
    drop: float
    drop_low: float
    drop_high: float
    """95% paired-bootstrap interval of the drop"""
    bound: float
    """one-sided 95% bound of the drop"""
    budget: float
    top10_overlap: float
    kendall_tau: float
    worst: list[tuple[str, float, float]]
    """example id, NDCG@10 of the parent, of the child"""
    passed: bool
    reason: str
    worst_requests: list[dict[str, Any]] = field(default_factory=list)
    """the same requests in words, where the judge knows them: see worst.py"""
    worse: int = 0
    """requests that rank worse than before"""

    def as_metrics(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return asdict(self)

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> "Verdict":
        """Read back from a manifest; what an older build did not measure is NaN."""
        unmeasured: dict[str, Any] = {"top10_overlap": math.nan, "kendall_tau": math.nan, "worst": []}
        return cls(**unmeasured | {name: metrics[name] for name in cls.__dataclass_fields__ if name in metrics})

    @property
    def may_be_chance(self) -> bool:
        """Whether the requests are too few to tell the fall from none."""
        return self.drop_low <= 0

    @property
    def examples_that_tell(self) -> float:
        """How many requests tell a fall as large as the budget from none, as far as these show how much requests
        differ: the one-sided 95% bound lies as far above the drop as the budget then."""
        return max(FEWEST_EXAMPLES, self.examples * ((self.bound - self.drop) / self.budget) ** 2)

    def require(self, advice: str = "") -> None:
        """Raise unless the gate passed.

        Args:
            advice: what can be done, for the message.

        Raises:
            GateError: names the drop, the budget and how many requests became worse; never whose requests or which
                texts, because messages end up in logs.
        """
        if self.passed:
            return
        hurt = f"{self.worse} of {self.examples} requests rank worse than before"
        if self.worst:
            name = self.worst[0]
            hurt += f", the worst with NDCG@10 {name[1]:.3f} -> {name[2]:.3f}"
        raise GateError(
            f"gate closed: {self.child} against {self.parent}: {self.reason}; {hurt}."
            + (f"\n{advice}" if advice else "")
        )


@dataclass(frozen=True)
class Drop:
    """How far a metric fell, relative to what it was; positive = worse. The fields are as in ``Verdict``."""

    drop: float
    low: float
    high: float
    bound: float
    budget: float
    passed: bool
    reason: str


def paired_difference(
    first: Judgement, second: Judgement, metric: str = "ndcg@10", samples: int = BOOTSTRAP_SAMPLES
) -> Interval:
    """Mean of (first - second) over the same examples, with its paired 95% interval."""
    _require_same_examples(first, second)
    return interval(first.values(metric) - second.values(metric), samples)


def verdict(
    child: Judgement, parent: Judgement, budget: float, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Verdict:
    """Compare two judgements of the same examples.

    Args:
        child, parent: judgements over equal example ids in equal order.
        budget: relative drop of NDCG@10 that may be lost.
        samples: bootstrap resamples.
    """
    _require_same_examples(child, parent)
    after, before = child.values(), parent.values()
    found = paired_drop(after, before, budget, samples, seed)
    losses = np.argsort(after - before, kind="stable")[:WORST_SHOWN]
    rankings = list(zip(child.table["scores"], parent.table["scores"], strict=True))
    return Verdict(
        child=child.name,
        parent=parent.name,
        examples=len(before),
        parent_ndcg=float(before.mean()),
        child_ndcg=float(after.mean()),
        drop=found.drop,
        drop_low=found.low,
        drop_high=found.high,
        bound=found.bound,
        budget=budget,
        top10_overlap=float(np.mean([top_overlap(one, other) for one, other in rankings])),
        kendall_tau=float(np.mean([kendall_tau(one, other) for one, other in rankings])),
        worst=[(child.example_ids[i], float(before[i]), float(after[i])) for i in losses if after[i] < before[i]],
        passed=found.passed,
        reason=found.reason,
        worse=int((after < before).sum()),
    )


def paired_drop(
    after: NDArray[np.float64],
    before: NDArray[np.float64],
    budget: float,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
    *,
    metric: str = "NDCG@10",
) -> Drop:
    """How far the mean of a metric fell from one ranking to another of the same examples, and whether that may stand.

    Args:
        after, before: per example.
        budget: relative drop that may be lost.
        samples: bootstrap resamples.
        seed: of the bootstrap.
        metric: what it is called in the reason.
    """
    picks = np.random.default_rng(seed).integers(0, len(before), size=(samples, len(before)))
    resampled = _relative_drop(before[picks].mean(axis=1), after[picks].mean(axis=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    drop = float(_relative_drop(before.mean(), after.mean()))
    bound = float(np.quantile(resampled, 0.95))
    passed, reason = _decide(len(before), drop, bound, budget, metric)
    return Drop(drop, float(low), float(high), bound, budget, passed, reason)


def show_verdict(found: Verdict) -> None:
    """One line: did it pass, and by how much. Why a gate closed is said by the error that follows."""
    mark = "[green]passed[/]" if found.passed else "[red]closed[/]"
    reason = f"{found.reason}; " if found.passed else ""
    console.print(
        f"  gate {mark} on {found.examples} requests, {found.child} against {found.parent}: {reason}"
        f"top-10 overlap {found.top10_overlap:.1%}, Kendall tau {found.kendall_tau:.3f}",
        highlight=False,
    )


def _decide(examples: int, drop: float, bound: float, budget: float, metric: str) -> tuple[bool, str]:
    if examples < FEWEST_EXAMPLES:
        return False, f"{examples} examples are too few to decide; at least {FEWEST_EXAMPLES} (examples.test_users)"
    if drop > budget:
        return False, f"{metric} fell by {drop:.2%}, the budget is {budget:.2%}"
    change = f"fell by {drop:.2%}" if drop > 0 else f"did not fall ({-drop:+.2%})"
    if bound > 3 * budget:
        return False, (
            f"{metric} {change}, but with {examples} examples the fall may be up to {bound:.2%} (95% bound), more "
            f"than three times the budget of {budget:.2%}: too few examples to decide, or too rough a step"
        )
    return True, f"{metric} {change} (95% bound of the fall {bound:.2%}), the budget is {budget:.2%}"


def _relative_drop(before: Any, after: Any) -> Any:
    # A parent that never ranks a positive into the top ten has nothing to lose.
    return np.where(before > 0, (before - after) / np.maximum(before, 1e-12), 0.0)


def _require_same_examples(first: Judgement, second: Judgement) -> None:
    # Another seed gives the same example ids other candidates; then the labels stand elsewhere.
    if not first.table.select("example_id", "labels").equals(second.table.select("example_id", "labels")):
        raise GateError(f"{first.name} and {second.name} were judged on different examples; judge both again")
