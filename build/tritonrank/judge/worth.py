"""Is a ranker worth its place? It is held against what needs no training, on the same requests.

A difference is beyond doubt when its paired 95% interval excludes 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.gate import paired_difference
from tritonrank.judge.metrics import Interval


@dataclass(frozen=True)
class Against:
    """A ranker beside something that needs no training."""

    name: str
    """of the other one"""
    gain: Interval
    """NDCG@10 of the ranker minus the other's on the same requests: + where the ranker is better"""
    examples: int

    @property
    def is_lost(self) -> bool:
        return self.gain.high < 0

    @property
    def is_undecided(self) -> bool:
        return self.gain.low <= 0 <= self.gain.high


@dataclass(frozen=True)
class Answer:
    """What ``verdict`` of summary.json holds."""

    success: bool
    """nothing ranks better beyond doubt"""
    best: str
    """the rung or baseline with the highest NDCG@10"""
    serve: str
    """the rung in the repository"""
    loses_to: list[dict[str, Any]]
    """name, and the other's NDCG@10 minus the ranker's: difference, low, high; largest first"""
    next: list[str]
    """what may help, each with its ``--set`` lines; empty after a success"""
    undecided: str = ""
    """a sentence, where a baseline may be as good and nobody can tell"""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def against_all(ranker: Judgement, others: Mapping[str, Judgement]) -> list[Against]:
    """A ranker beside each of the others, on the examples that both were judged on."""
    found = []
    for name, other in others.items():
        examples = len(other.table)
        found.append(Against(name, paired_difference(ranker.first(examples), other), examples))
    return found


def losses(compared: Sequence[Against]) -> list[dict[str, Any]]:
    """Who ranks better beyond doubt, that is, the paired 95% interval excludes 0; ``loses_to`` of the verdict."""
    lost = sorted((one for one in compared if one.is_lost), key=lambda one: one.gain.mean)
    return [
        {"name": one.name, "difference": -one.gain.mean, "low": -one.gain.high, "high": -one.gain.low} for one in lost
    ]


def closest_undecided(compared: Sequence[Against]) -> Against | None:
    """The strongest of those that may be better or worse; None where all is decided."""
    return min((one for one in compared if one.is_undecided), key=lambda one: one.gain.mean, default=None)
