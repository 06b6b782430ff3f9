"""The controller in a gateway: counts what comes and is done, looks several times a second, says which level holds.

off       nothing is counted
advise    the controller counts, forecasts and tells in the metrics what it would do; all is ranked in full
act       its level holds
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from tritonrank_recommend.blend import LevelsFile

from tritonrank_gateway.adapt.controller import Bounds, Controller, Seen
from tritonrank_gateway.adapt.ladder import Level, ladder_of
from tritonrank_gateway.adapt.metrics import AdaptMetrics
from tritonrank_gateway.load import Load
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.model import KnownModel
from tritonrank_gateway.ranking import Backend

LOG = logging.getLogger("tritonrank_gateway.adapt")
LOOK_SECONDS = 0.25
Mode = Literal["off", "advise", "act"]
MODES: tuple[Mode, ...] = ("off", "advise", "act")


@dataclass(frozen=True, slots=True)
class SmallerRanker:
    """A ranker that costs less, and what is known of it."""

    backend: Backend
    model: KnownModel


@dataclass(frozen=True, slots=True)
class PaceSettings:
    """What may be set, and changed while it runs.

    Attributes:
        mode: off, advise or act.
        candidates: of a full list.
        ranked: of these, that are ranked where there is time; 0: as many as the build's blend was judged with.
        floor: fewest that are ranked.
        queue_s: see ``Bounds``.
    """

    mode: Mode = "off"
    candidates: int = 200
    ranked: int = 0
    floor: int = 25
    queue_s: float = 0.25


class Pace:
    """Says at which level a request is ranked. Used from one event loop.

    Args:
        settings: to begin with.
        load: what waits and what was done.
        metrics: gets the families ``tritonrank_adapt_*``.
        smaller: a ranker that costs less; None where none is loaded.
        file: what the build measured.
        replicas: Tritons behind this gateway now.
    """

    def __init__(
        self,
        settings: PaceSettings,
        load: Load,
        metrics: Metrics,
        smaller: SmallerRanker | None = None,
        file: LevelsFile | None = None,
        replicas: Callable[[], int] = lambda: 1,
    ) -> None:
        self.settings, self.smaller = settings, smaller
        self._load, self._file, self._replicas = load, file, replicas
        self.controller = Controller(self._ladder(), Bounds(settings.queue_s))
        self.metrics = AdaptMetrics(metrics.registry, self)
        self._looked_at = time.monotonic()
        self._totals = load.totals
        self._forget()
        self._looking: asyncio.Task[None] | None = None

    @property
    def in_full(self) -> int:
        """Candidates that are ranked where there is time."""
        first = self.settings.ranked or (0 if self._file is None else self._file.ranked)
        return min(self.settings.candidates, first or self.settings.candidates)

    @property
    def is_counting(self) -> bool:
        return self.settings.mode != "off"

    def level_for(self, items: int, *, in_order: bool) -> Level:
        """At which a request is ranked that comes now.

        Args:
            items: of it.
            in_order: see ``cheaper``; what comes in no order is ranked as the level says that holds, for fewer items of
                it would save nothing.
        """
        if self.settings.mode != "act":
            return self.controller.levels[0]
        if not in_order or not items:
            return self.controller.level
        return self.controller.level_behind(self._load.waiting_units, items)

    def cheaper(self, than: Level, *, in_order: bool, to_the_end: bool = False) -> Iterator[Level]:
        """Levels at which a request is tried for which there was no room; one that costs hardly less is not tried.

        Args:
            than: the level that had no room.
            in_order: whether the request's items come in an order that stands where nobody ranks.
            to_the_end: give them in that order rather than refuse.
        """
        if self.settings.mode != "act":
            return
        after = self.controller.levels[than.number + 1 :]
        if in_order and (fewest := [level for level in after if level.model == "served"]):
            yield fewest[-1]
        yield from (level for level in after if level.model == "smaller")
        if in_order and to_the_end:
            yield self.controller.levels[-1]

    def came(self, items: int, units: int, *, in_order: bool) -> None:
        """A request came, which is counted once.

        Args:
            items: of it.
            units: of work, ranked in full.
            in_order: see ``cheaper``.
        """
        if not self.is_counting:
            return
        self._arrivals += 1
        for level in self.controller.levels:
            self._demand[level.number] += units * level.cost(items, in_order=in_order)

    def done(self, level: Level, units: int) -> None:
        """A request was ranked at a level, which were so many units of work."""
        if self.is_counting and level.number < len(self._done):
            self._done[level.number] += units

    def refused(self) -> None:
        """There was no room for a request at its level."""
        self._refused += 1

    def start(self) -> None:
        """Look from here on."""
        self._looking = asyncio.create_task(self._look_on())

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
            self._looking = None
        if self.smaller is not None:
            await self.smaller.backend.close()

    def change(self, settings: PaceSettings) -> None:
        """Other settings from here on."""
        was, self.settings = self.settings, settings
        if (was.candidates, was.floor) != (settings.candidates, settings.floor):
            self.controller.replace_levels(self._ladder())
        self.controller.bounds = Bounds(settings.queue_s)
        self._forget()  # what was counted is of other levels, or of long ago

    def measured(self, file: LevelsFile | None) -> None:
        """Another build ranks from here on, of which this was measured."""
        self._file = file
        self.controller.replace_levels(self._ladder())
        self._forget()

    def look(self) -> None:
        """Let the controller see what happened since the last time."""
        now, totals = time.monotonic(), self._load.totals
        seconds, before = now - self._looked_at, self._totals
        busy = totals.busy_seconds - before.busy_seconds
        was = self.controller.level
        level = self.controller.look(
            Seen(
                at=now,
                unix=time.time(),
                seconds=seconds,
                arrivals=self._arrivals,
                demand=self._demand,
                done=self._done,
                busy_seconds=busy,
                in_flight=(totals.request_seconds - before.request_seconds) / busy if busy else 0.0,
                waiting=self._load.waiting_units,
                refused=self._refused,
                replicas=self._replicas(),
            )
        )
        self._forget()
        if level.number != was.number:
            reason = self.controller.reason
            self.metrics.changes.labels(reason).inc()
            LOG.warning(
                "level %d (%s) after %d (%s): %s; %.2f s wait, in full it would be %.0f%% of what can be done (%s)",
                level.number, level.name, was.number, was.name, reason, self.controller.queue_seconds,
                100 * self.controller.utilisation(0), self.settings.mode,
            )  # fmt: skip

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.is_counting:
                try:
                    self.look()
                # Whatever is wrong with it: requests are ranked at the level that holds.
                except Exception:
                    LOG.exception("the controller failed")

    def _ladder(self) -> list[Level]:
        own = self.settings
        return ladder_of(
            self.in_full, min(own.floor, self.in_full), has_smaller=self.smaller is not None, file=self._file
        )

    def _forget(self) -> None:
        self._looked_at, self._totals = time.monotonic(), self._load.totals
        self._arrivals = self._refused = 0
        self._demand, self._done = [0.0] * len(self.controller.levels), [0.0] * len(self.controller.levels)
