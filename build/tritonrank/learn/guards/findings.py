"""What the guards found in a day, and what of it may be learnt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tritonrank.learn.guards.baseline import Baseline
from tritonrank.learn.lists.left_out import LeftOut
from tritonrank.learn.lists.windows import Span

WHOLE_DAY = "the whole day"


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
        waits: whether it can only be told together with what the next night brings.
    """

    check: str
    where: str
    reason: str
    figures: dict[str, float]
    refuses: bool = False
    left_out: int = 0
    waits: bool = False

    def as_json(self) -> dict[str, Any]:
        """For the ledger."""
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """A day that was looked through.

    Attributes:
        span: of the day.
        findings: the refusing ones first.
        left_out: the rows that no night may learn.
        baseline: what the next day is compared with; where this one is refused, what it was compared with itself.
        checked: the checks that had something to look at, in order; others had no data and vouch for nothing.
        measured: value of each measure.
        events: of the day, all.
    """

    span: Span
    findings: list[Finding]
    left_out: list[LeftOut]
    baseline: Baseline
    checked: list[str]
    measured: dict[str, float]
    events: int

    @property
    def refuses(self) -> bool:
        """Whether the day may not be learnt."""
        return any(one.refuses for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For the ledger and its page; without whose rows are left out."""
        return {
            "span": asdict(self.span),
            "refused": self.refuses,
            "findings": [one.as_json() for one in self.findings],
            "events": self.events,
            "left_out": sum(one.left_out for one in self.findings),
            "checked": self.checked,
            "measured": self.measured,
        }


@dataclass(frozen=True)
class NightInspection:
    """The days of a night, one after another.

    Attributes:
        days: in order of time; usually one.
    """

    days: Sequence[Inspection]

    @property
    def refused(self) -> str:
        """Why the night ends here, in a sentence; "" where it goes on. What is refused is left out of later nights."""
        return "; ".join(one.reason for day in self.days for one in day.findings if one.refuses)

    @property
    def waits_for(self) -> str:
        """Why it cannot be told yet, where nothing refuses; "" where it can."""
        return "" if self.refused else "; ".join(one.reason for day in self.days for one in day.findings if one.waits)

    @property
    def left_out(self) -> list[LeftOut]:
        """The rows that neither this night nor a later one may learn."""
        return [one for day in self.days for one in day.left_out]

    @property
    def baseline(self) -> Baseline:
        """What the next night is compared with, once this one is accepted."""
        return self.days[-1].baseline

    def as_json(self) -> dict[str, Any]:
        """For the ledger and its page."""
        return {"refused": self.refused, "days": [day.as_json() for day in self.days]}
