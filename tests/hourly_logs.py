"""Training logs as a gateway writes them over some hours, by its own writer and a clock that the test moves."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest.mock import patch

import polars as pl
from tritonrank_recommend.engine.arrange import Situation
from tritonrank_recommend.engine.exploring import explored
from tritonrank_recommend.engine.listing import Listed
from tritonrank_recommend.engine.pages import Entry
from tritonrank_recommend.engine.rules import Explore
from tritonrank_recommend.events import Event
from tritonrank_recommend.log.event_log import EventLog
from tritonrank_recommend.log.impression import Impression
from tritonrank_recommend.stores import open_store

START = 1_764_000_000.0
"""A full hour: 2025-11-24, 16:00 UTC."""
HOUR = 3_600.0
KINDS = ("lamp", "pan", "shoe", "desk")
Told = tuple[float, Event | Impression]
"""When a gateway took it, and what."""


def write_log(folder: Path, told: Iterable[Told], end: float) -> Path:
    """Write what a gateway took, each hour in several steps, until ``end`` (unix seconds)."""
    waiting = sorted(told, key=lambda one: one[0])

    async def serve() -> None:
        now = START
        store = open_store("sqlite::memory:")
        log = EventLog(folder, store, clock=lambda: now)
        for moment in range(int(waiting[0][0]), int(end) + 1, 1_800):
            now = float(moment)
            taken = []
            while waiting and waiting[0][0] <= now:
                taken.append(waiting.pop(0)[1])
            await store.add_events([one for one in taken if isinstance(one, Event)])
            for one in taken:
                if isinstance(one, Impression):
                    log.log_impression(one)
            await log.step()
        await log.close()
        await store.close()

    with patch("os.fsync"):  # thousands of them; nobody pulls the plug
        asyncio.run(serve())
    return folder


def page(token: str, items: list[str], user: str, at: float, *, query: str = "", lots: Random | None = None) -> Told:
    """A page; with ``lots`` half of the pairs that they cut out change places."""
    places: list[Entry] = [Entry(item, 0.0, None, []) for item in items]
    if lots is not None:
        places = explored(Listed(places), Explore(swap=0.5, first=len(items)), Situation(now=at), lots.random)
    else:
        places = explored(Listed(places), None, Situation(now=at), Random(0).random)
    return at, Impression(
        token,
        user,
        query,
        at,
        "artifact",
        tuple(one.item_id for one in places),
        tuple(range(len(places))),
        tuple(one.policy_position for one in places),
        tuple(one.move_up for one in places),
        tuple(one.move_down for one in places),
    )


def event(
    name: str, user: str, item: str, at: float, kind: str = "click", *, late: float = 0.0, **more: object
) -> Told:
    """Something that happened at ``at`` and reached the gateway ``late`` seconds after it."""
    told = {"event_id": name, "user_id": user, "item_id": item, "type": kind, "timestamp": at, "received_at": at + late}
    return at + late, Event(**told, **more)  # type: ignore[arg-type]  # of mixed types


@dataclass
class Shop:
    """Users who like a kind of item each, before the log begins and while it is written.

    Attributes:
        items, users: how many.
        seed: of all that happens.
        swaps: whether lots are drawn.
        looks: how likely each place is looked at, as a power of the place.
    """

    items: int = 120
    users: int = 40
    seed: int = 0
    swaps: bool = False
    looks: float = 0.9
    told: list[Told] = field(default_factory=list)

    def item_table(self) -> pl.DataFrame:
        rows = range(self.items)
        return pl.DataFrame(
            {
                "item_id": [f"i{n}" for n in rows],
                "title": [f"{KINDS[n % len(KINDS)]} number {n}" for n in rows],
                "kind": [KINDS[n % len(KINDS)] for n in rows],
            }
        )

    def past(self, per_user: int = 8) -> pl.DataFrame:
        """Events of the days before the log, a table of the shop's own."""
        random = Random(self.seed)
        rows = [
            {
                "user_id": f"u{user}",
                "item_id": self._liked(random, user),
                "timestamp": int(START - 5 * 86_400 + at * 9_000),
            }
            for user in range(self.users)
            for at in range(per_user)
        ]
        return pl.DataFrame(rows)

    def hours(self, first: int, last: int, per_hour: int = 8, *, newcomers: int = 20) -> "Shop":
        """Pages of the hours from ``first`` up to ``last`` after START; users look at places from the top."""
        for hour in range(first, last):
            random = Random(f"{self.seed}:{hour}")
            for number in range(per_hour):
                user = random.randrange(self.users + newcomers)
                at = START + (hour + random.random() * 0.9) * HOUR
                items = random.sample([f"i{n}" for n in range(self.items)], 7)
                items.insert(random.randrange(8), liked := self._liked(random, user))
                items = list(dict.fromkeys(items))
                token = f"t{hour}-{number}"
                shown = page(token, items, f"u{user}", at, lots=random if self.swaps else None)
                self.told.append(shown)
                assert isinstance(shown[1], Impression)
                place = shown[1].item_ids.index(liked)
                if random.random() < self.looks**place:
                    name = f"e{hour}-{number}"
                    self.told.append(
                        event(
                            name,
                            f"u{user}",
                            liked,
                            at + 30,
                            "purchase" if place % 3 == 0 else "click",
                            page=token,
                            position=place,
                        )
                    )
        return self

    def _liked(self, random: Random, user: int) -> str:
        return f"i{random.randrange(self.items // len(KINDS)) * len(KINDS) + user % len(KINDS)}"
