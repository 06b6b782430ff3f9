"""What the guards found in a day, and what of it may be learnt."""

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from tritonrank.learn.guards.baseline import Baseline


@dataclass(frozen=True)
class Finding:
    """Something about a day that is not as it should be.

    Attributes:
        check: what looked, such as ``volume`` or ``bot user``.
        where: the whole day, or whose events: ``user 3f2a...`` (the first digits of the SHA-256 of the id, so that
            pages and messages name nobody), ``item i7``.
        reason: in words, with figures and limits.
        figures: the same for machines.
        refuses: whether the day may not be learnt.
        left_out: events that are left out because of it.
    """

    check: str
    where: str
    reason: str
    figures: dict[str, float]
    refuses: bool = False
    left_out: int = 0

    def as_json(self) -> dict[str, Any]:
        """For the ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Finding":
        """Read back."""
        return cls(**told)


@dataclass(frozen=True)
class Inspection:
    """A day that was looked through.

    Attributes:
        findings: the refusing ones first.
        events: the rows of the day that may be learnt, in their order.
        shown: the pages that may be learnt.
        baseline: what the next day is compared with if this one is accepted.
        checked: the checks that had something to look at, in order; others had no data and vouch for nothing.
    """

    findings: list[Finding]
    events: pl.DataFrame
    shown: pl.DataFrame
    baseline: Baseline
    checked: list[str]

    @property
    def refuses(self) -> bool:
        """Whether the day may not be learnt."""
        return any(one.refuses for one in self.findings)

    @property
    def reasons(self) -> list[str]:
        """Why not, in words."""
        return [one.reason for one in self.findings if one.refuses]

    def as_json(self) -> dict[str, Any]:
        """For the ledger: everything but the rows."""
        return {
            "refused": self.refuses,
            "findings": [one.as_json() for one in self.findings],
            "events": self.events.height,
            "left_out": sum(one.left_out for one in self.findings),
            "pages": self.shown.height,
            "checked": self.checked,
            "measures": {name: asdict(one) for name, one in self.baseline.nights[-1].items()},
        }
