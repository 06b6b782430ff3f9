"""Days that are played without a server: a ranking function in place of the system, and the log that a gateway would
have written. The past that the first ranker learns from is made so, and tests of whatever reads a log.

The log is written by the gateway's own code, into the hours of the simulated time.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace
from tritonrank_recommend.engine.arrange import Situation
from tritonrank_recommend.engine.exploring import explored
from tritonrank_recommend.engine.listing import Listed
from tritonrank_recommend.engine.pages import Entry
from tritonrank_recommend.engine.rules import Explore
from tritonrank_recommend.events import Event
from tritonrank_recommend.log import layout
from tritonrank_recommend.log.impression import Impression
from tritonrank_recommend.log.parquet import event_table, impression_table

from loadtests.shoppers.visits import Step, liked_in, react, second_of, settled_by, steps_of
from loadtests.shoppers.world import World

START = 1_736_121_600
"""Midnight (UTC) of day 0 where nobody says another one: Monday, 2025-01-06."""
_ORDERS = 20
Row = TypeVar("Row")

Policy = Callable[[World, Step], Sequence[str]]
"""Items of a page for a step, best first; those that the person wants no more are left out afterwards."""


@dataclass(frozen=True)
class DayLog:
    """What a gateway would have logged on a day, in the order of time."""

    day: int
    events: Sequence[Event]
    impressions: Sequence[Impression]


@dataclass
class Past:
    """Items that each person wants no more, as days are played one after the other."""

    settled: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def note(self, events: Iterable[Event]) -> None:
        """Remember what was bought or skipped."""
        for event in events:
            self.settled[event.user_id] |= settled_by([event])


def known_in_part(noise: float = 2.0) -> Policy:
    """A shop without a ranker: it knows what is liked as far as the noise (in logits) lets it see."""

    def order(world: World, step: Step) -> Sequence[str]:
        liked = liked_in(world, step)
        chance = np.random.default_rng([world.settings.seed, _ORDERS, step.user, step.day + 10_000, step.number])
        with np.errstate(divide="ignore"):
            seen = np.log(liked / (1 - liked)) + chance.normal(0, noise, len(liked))
        return [world.items[place].item_id for place in np.argsort(-seen) if liked[place] > 0]

    return order


def play_day(
    world: World,
    day: int,
    policy: Policy,
    past: Past | None = None,
    *,
    size: int = 10,
    start: float = START,
    swap: float = 0.0,
) -> DayLog:
    """A day as it goes where a policy ranks.

    Args:
        world: the truth.
        day: its number.
        policy: ranks.
        past: of all days before; this one is added.
        size: items of a page.
        start: unix seconds at which day 0 begins.
        swap: probability with which pairs of neighbours change places, by the gateway's own lots.
    """
    past = Past() if past is None else past
    lots = random.Random(f"{world.settings.seed}/{day}")
    events: list[Event] = []
    shown: list[Impression] = []
    for step in steps_of(world, day):
        user, at = world.users[step.user], second_of(start, step)
        settled = past.settled[user]
        entries = [Entry(item, 0.0, None, []) for item in policy(world, step) if item not in settled]
        rule = Explore(swap=swap, first=size) if swap else None
        placed = explored(Listed(entries), rule, Situation(now=at), lots.random)[:size]
        items = [entry.item_id for entry in placed]
        page = hashlib.sha256(f"{world.settings.seed}/{user}/{day}/{step.number}".encode()).hexdigest()[:32]
        unmoved = page_of(page, step.query, items, user=user, at=at)
        shown.append(_with_lots(unmoved, placed) if swap else unmoved)
        did = react(world, step, page, items, settled, at=at)
        past.note(did)
        events += [replace(event, received_at=event.timestamp) for event in did]
    events.sort(key=lambda event: event.timestamp)
    return DayLog(day, events, shown)


def page_of(page: str, query: str, items: Sequence[str], *, user: str, at: float) -> Impression:
    """A page in its policy's own order: no lots were drawn."""
    places, still = tuple(range(len(items))), (0.0,) * len(items)
    return Impression(page, user, query, at, "", tuple(items), places, places, still, still)


def _with_lots(page: Impression, placed: Sequence[Entry]) -> Impression:
    return replace(
        page,
        policy_positions=tuple(entry.policy_position for entry in placed),
        move_up=tuple(entry.move_up for entry in placed),
        move_down=tuple(entry.move_down for entry in placed),
    )


def play(
    world: World, days: Iterable[int], policy: Policy, *, size: int = 10, start: float = START, swap: float = 0.0
) -> Mapping[int, DayLog]:
    """Days one after the other, as ``play_day``."""
    past = Past()
    return {day: play_day(world, day, policy, past, size=size, start=start, swap=swap) for day in days}


def write_log(folder: Path, days: Iterable[DayLog]) -> None:
    """Write days as a gateway's training log (docs/events.md): each row lies in the hour in which it happened.

    Days may be added to a log; a day that is written twice is in it twice.

    Raises:
        OSError: a file cannot be written.
    """
    number = 0
    for one in days:
        for hour, events in _by_hour(one.events, lambda event: event.received_at or event.timestamp).items():
            _write(folder, layout.EVENTS, hour, event_table(events, events[-1].timestamp), number)
            number += len(events)
        for hour, shown in _by_hour(one.impressions, lambda page: page.shown_at).items():
            _write(folder, layout.IMPRESSIONS, hour, impression_table(shown), int(1_000 * hour))


def _write(folder: Path, kind: str, hour: float, rows: pa.Table, before: int) -> None:
    """A file of the log, without the waiting for the disk that a gateway does."""
    place = layout.hour_folder(folder, kind, hour)
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, place / layout.file_name("part", before + 1, before + rows.num_rows))


def _by_hour(rows: Iterable[Row], at: Callable[[Row], float]) -> Mapping[float, list[Row]]:
    hours: defaultdict[float, list[Row]] = defaultdict(list)
    for row in rows:
        hours[at(row) // layout.SECONDS_PER_HOUR * layout.SECONDS_PER_HOUR].append(row)
    return hours
