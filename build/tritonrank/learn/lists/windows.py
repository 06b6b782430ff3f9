"""Which hours of the log a night reads, and what for.

Everything in the log has a moment at which it is *settled*: what became of it is known, and no more will be said of it.
A page is settled ``learn.delay_hours`` after it was shown; an event without a page, or one that comes later than that,
as soon as it is in the log (``shown_lists.py``). Windows are spans of those moments, and each begins where the one
before ended: nothing is learnt twice, and nothing is left out. They end with whole hours. An hour is read when it is
over, because nothing is written into it after that, however late its events come.

The newest hours are judged and not learnt; the next night learns them. So a model is always judged on what came after
all that it learnt. Those of the first night stay frozen: all nights are judged on them, and none learns them.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from tritonrank.errors import DataError
from tritonrank.recipe.learning import LearnSettings

SECONDS_PER_HOUR = 3_600
SECONDS_PER_DAY = 86_400
GRACE_SECONDS = 60.0
"""A file may be on its way when its hour ends; as the log itself has it (``layout.is_over``)."""


@dataclass(frozen=True)
class Span:
    """From one moment up to another, which is no part of it; unix seconds."""

    start: float
    end: float

    @property
    def hours(self) -> float:
        """How long it is; 0 for one that ends before it begins."""
        return max(0.0, self.end - self.start) / SECONDS_PER_HOUR

    @property
    def is_empty(self) -> bool:
        return self.end <= self.start

    def holds(self, moment: float) -> bool:
        return self.start <= moment < self.end


@dataclass(frozen=True)
class Windows:
    """What one night reads; all but ``delayed`` are spans of the moments at which something is settled.

    Attributes:
        new: what it learns for the first time; empty where nothing is new yet.
        newest: what it is judged on and does not learn; the next night's ``new`` begins where this begins.
        frozen: what it is judged on and no night learns; the first night's ``newest``.
        replay: older than ``new``: a sample of it is learnt once more.
        delayed: when pages were shown of which it is not known yet what becomes: a later night reads them.
        read: hours of the log that are read for all that; also what users liked before comes from them.
    """

    new: Span
    newest: Span
    frozen: Span
    replay: Span
    delayed: Span
    read: Span

    @property
    def learnt_until(self) -> float:
        """Where the next night begins, once this night's model is accepted."""
        return self.new.end

    def as_json(self) -> dict[str, Any]:
        """For a ledger or a manifest."""
        return asdict(self)

    @classmethod
    def of_json(cls, told: dict[str, Any]) -> "Windows":
        """What ``as_json`` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            return cls(**{name: Span(float(span["start"]), float(span["end"])) for name, span in told.items()})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(f"windows of a night: expected spans with start and end, not {told!r} ({error})") from None


def plan_windows(
    settings: LearnSettings,
    now: float,
    log_start: float,
    *,
    learnt_until: float | None = None,
    frozen: Span | None = None,
) -> Windows:
    """What a night that begins now reads.

    Args:
        settings: how long windows are.
        now: unix seconds, by the clock of the log.
        log_start: when the first hour of the log begins, unix seconds.
        learnt_until: up to where the model that is trained further has learnt the log: ``Windows.learnt_until`` of the
            last night whose model was accepted, or ``examples.learnt_until`` of the recipe's own dataset; None: it has
            learnt nothing of it.
        frozen: that of the last night that had something to learn; None: there was none.

    Returns:
        The windows. ``new`` is empty, and there is nothing to do, where less than ``newest_hours`` have passed since;
        so is ``newest`` where no hour at all is over.
    """
    end = whole_hours_until(now)
    oldest = max(_hour_of(log_start), end - settings.history_days * SECONDS_PER_DAY)
    begin = oldest if learnt_until is None else max(oldest, learnt_until)
    if frozen is not None and frozen.start < oldest:
        frozen = None  # too old to be read with what came before it; another one takes its place
    judged_from = max(begin, end - settings.newest_hours * SECONDS_PER_HOUR)
    newest = Span(judged_from, max(judged_from, end))
    if frozen is None:
        frozen = newest
    elif frozen.start <= begin < frozen.end:
        begin = min(frozen.end, newest.start)
    return Windows(
        new=Span(begin, newest.start),
        newest=newest,
        frozen=frozen,
        replay=Span(oldest, begin),
        delayed=Span(end - settings.delay_hours * SECONDS_PER_HOUR, end),
        read=Span(oldest, end),
    )


def whole_hours_until(now: float) -> float:
    """When the last hour ended into which nothing is written any more, unix seconds."""
    return _hour_of(now - GRACE_SECONDS)


def _hour_of(moment: float) -> float:
    """When the hour began."""
    return float(math.floor(moment / SECONDS_PER_HOUR) * SECONDS_PER_HOUR)
