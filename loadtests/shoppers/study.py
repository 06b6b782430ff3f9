"""Two systems of the same build, the same people, the same days: one learns every night, the other stays as it was.

Arms of a study live in folders of their own, with servers, stores and logs of their own. They are played one after the
other, day by day; the people's chances are common to both, so that what differs is what was shown.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
from tritonrank.data.event_log import read_rows
from tritonrank.learn.lists.shown_lists import shown_pages
from tritonrank_recommend.events import Event

from loadtests.processes import SystemFaultError
from loadtests.results import write_whole
from loadtests.shoppers.clock import SimulatedClock
from loadtests.shoppers.encoder import write_encoder
from loadtests.shoppers.estimates import RUNS, Chances, Held, check_estimates
from loadtests.shoppers.measures import Gain, ShownPage, gain
from loadtests.shoppers.played import START, DayLog, known_in_part, play, write_log
from loadtests.shoppers.system import System, copy_system, run_verb, write_items, write_recipe
from loadtests.shoppers.world import DAY_SECONDS, World, WorldSettings

Night = Literal["learn", "build", "none"]
"""What a system does at night: learn on, be built anew from its log, nothing."""
NIGHTS: tuple[Night, ...] = get_args(Night)
FIRST, FROZEN = "learning", "frozen"
NIGHT_SECOND = 4.5 * 3_600
"""Of the day after, at which the night begins: of the whole day it is settled what became of each page."""
BUILD_SECONDS, NIGHT_SECONDS = 1_800.0, 900.0
CLICK_HOURS = 6.0
"""In which a click counts for its page, as in shop.yaml; people need a minute, and the log some hours of theirs."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class StudySettings:
    """What is played.

    Attributes:
        recipe: of the ranker, without data.
        world: the truth.
        night: what the learning system does.
        swap: probability with which pairs of neighbours change places, in both.
        candidates: that are ranked for a page.
        draws: of all clicks, by which estimates are held against the truth.
    """

    recipe: Path
    world: WorldSettings
    night: Night = "learn"
    swap: float = 0.0
    candidates: int = 100
    draws: int = RUNS


@dataclass(frozen=True)
class NightRun:
    """What became of a night.

    Attributes:
        day: after which it was.
        seconds: it took, on this machine.
        code: exit code of the command.
        served: whether another ranker serves since.
        said: its last lines.
    """

    day: int
    seconds: float
    code: int
    served: bool
    said: str


@dataclass
class Study:
    """What was found.

    Attributes:
        settings: what was played.
        pages: of both systems, in the order in which they were shown.
        nights: of the learning one.
        estimates: by clicks on the frozen one's pages, against the truth; none where no lots were drawn.
        seconds: all took.
    """

    settings: StudySettings
    pages: dict[str, list[ShownPage]] = field(default_factory=lambda: {FIRST: [], FROZEN: []})
    nights: list[NightRun] = field(default_factory=list)
    estimates: list[Held] = field(default_factory=list)
    seconds: float = 0.0

    def gain(self, days: Sequence[int] | None = None) -> Gain:
        """By how much the learning system's pages were better, on some days or on all."""
        one, other = ([page for page in self.pages[arm] if days is None or page.day in days] for arm in (FIRST, FROZEN))
        return gain(one, other, self.settings.world.seed)

    def chances(self, arm: str) -> Chances:
        """What estimates by clicks are held against, of the pages of a system."""
        return {page.page: dict(zip(page.items, page.chances, strict=True)) for page in self.pages[arm]}

    def as_json(self) -> dict[str, Any]:
        """For the file of results."""
        days = sorted({page.day for page in self.pages[FROZEN]})
        return {
            "settings": {
                "recipe": self.settings.recipe.name,
                "night": self.settings.night,
                "swap": self.settings.swap,
                "candidates": self.settings.candidates,
                "world": asdict(self.settings.world),
            },
            "seconds": round(self.seconds, 1),
            "gain": self.gain().as_json(),
            "by_day": [self._day_as_json(day) for day in days],
            "nights": [asdict(night) for night in self.nights],
            "estimates": [held.as_json() for held in self.estimates],
        }

    def _day_as_json(self, day: int) -> dict[str, Any]:
        told: dict[str, Any] = {"day": day}
        for arm, pages in self.pages.items():
            of_day = [page for page in pages if page.day == day]
            told[arm] = {
                "pages": len(of_day),
                "ndcg": _mean([page.ndcg for page in of_day]),
                "clicks": _mean([page.clicks for page in of_day]),
                "regret": _mean([page.regret for page in of_day]),
                "degraded": sum(bool(page.degraded) for page in of_day),
                "rankers": sorted({page.ranker for page in of_day}),
            }
        return told | {"gain": self.gain([day]).as_json()}


def run_study(
    settings: StudySettings,
    root: Path,
    say: Say,
    *,
    start: float = START,
    keep: Callable[[Study], None] = lambda study: None,
) -> Study:
    """Build, then play all days in both systems.

    Args:
        settings: what is played.
        root: folder of the study; what is in it already is gone through again only where it is not up to date.
        say: takes a line now and then.
        start: unix seconds at which day 0 begins; in the past.
        keep: takes what was found so far, after each day: months take hours.

    Raises:
        SystemFaultError: a system did not do what it should.
    """
    began = time.monotonic()
    world, study = World(settings.world), Study(settings)
    past = play(world, range(-settings.world.before, 0), known_in_part(), start=start)
    built = build_system(settings.recipe, root, world, past, start, say)
    roots = {FIRST: built.parent, FROZEN: root / FROZEN}
    copy_system(roots[FIRST], roots[FROZEN])
    with ExitStack() as stack:
        systems: dict[str, System] = {}
        for name, folder in roots.items():
            recipe = write_recipe(settings.recipe, folder, root / "encoder")
            clock = SimulatedClock(folder / "clock", start)
            system = System(name, folder, recipe, world, clock, start, settings.swap, settings.candidates)
            system.remember(event for day in past.values() for event in day.events)
            systems[name] = stack.enter_context(system)
        for day in range(settings.world.days):
            for name, system in systems.items():
                study.pages[name] += system.play(day)
            found = study.gain([day]).ndcg
            say(f"day {day}: NDCG@10 of {FIRST} less that of {FROZEN}: {found}")
            study.seconds = time.monotonic() - began
            keep(study)
            if day + 1 < settings.world.days and settings.night != "none":
                study.nights.append(_night(settings.night, systems[FIRST], day, start))
                night = study.nights[-1]
                say(f"night {day}: {night.seconds:.0f} s, {'another ranker serves' if night.served else night.said}")
    if settings.swap:
        end = start + settings.world.days * DAY_SECONDS
        read = shown_pages(read_rows(systems[FROZEN].log, start, end), CLICK_HOURS, end + DAY_SECONDS)
        chances, seed = study.chances(FROZEN), settings.world.seed
        study.estimates = check_estimates(read, chances, runs=settings.draws, seed=seed)
        keep(study)
    return study


def build_system(given: Path, root: Path, world: World, past: Mapping[int, DayLog], start: float, say: Say) -> Path:
    """The first ranker and its catalogue, from the past but for its last day, which is what the first night finds new;
    a store that knows the past, and the log that holds it.

    Returns:
        The recipe that was built, in the folder of the learning system.

    Raises:
        SystemFaultError: it cannot be built.
    """
    from tritonrank.retrieval.import_events import import_events

    folder = root / FIRST
    folder.mkdir(parents=True)
    recipe = write_recipe(given, folder, write_encoder(root / "encoder"))
    clock = SimulatedClock(folder / "clock", start)
    system = System(FIRST, folder, recipe, world, clock, start)
    write_items(folder / "items.csv", world, -1)
    write_log(system.log, [log for day, log in past.items() if day < -1])
    say(f"building {recipe}")
    words = [["build", str(recipe), "--artifacts", str(folder / "artifacts")], ["promote", str(system.artifacts)]]
    for place, one in enumerate(words):
        code, said = run_verb(folder, f"build-{place}.log", system.environment, *one, seconds=BUILD_SECONDS)
        if code:
            raise SystemFaultError(f"tritonrank {' '.join(one)}: exit code {code}\n{said}")
    write_log(system.log, [past[-1]])
    (system.artifacts / "store").mkdir(exist_ok=True)
    events = [event for day in past.values() for event in day.events]
    import_events(_table(events), f"sqlite:{system.artifacts / 'store' / 'store.db'}")
    return recipe


def _night(kind: Night, system: System, day: int, start: float) -> NightRun:
    """Let the system learn; its servers go on meanwhile."""
    system.clock.move_to(start + (day + 1) * DAY_SECONDS + NIGHT_SECOND)
    began, before = time.monotonic(), system.served
    artifacts = ["--artifacts", str(system.root / "artifacts")]
    words = ["learn", str(system.recipe), "--once"] if kind == "learn" else ["build", str(system.recipe)]
    code, said = run_verb(
        system.root, f"night-{day:03d}.log", system.environment, *words, *artifacts, seconds=NIGHT_SECONDS
    )
    if kind == "build":
        if code:
            raise SystemFaultError(f"{system.name}, night {day}: exit code {code}\n{said}")
        run_verb(
            system.root, "promote.log", system.environment, "promote", str(system.artifacts), seconds=NIGHT_SECONDS
        )
    is_another = system.served != before
    if is_another:
        system.wait_for_served()
    return NightRun(day, round(time.monotonic() - began, 1), code, is_another, said)


def _table(events: Sequence[Event]) -> pl.DataFrame:
    names = ("user_id", "item_id", "type", "timestamp", "value", "query", "event_id")
    schema = dict.fromkeys(names, pl.String()) | {"timestamp": pl.Float64(), "value": pl.Float64()}
    return pl.DataFrame({name: [getattr(event, name) for event in events] for name in names}, schema=schema)


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def write_study(file: Path, study: Study) -> None:
    """Results as JSON; beside them every page with its worth as Parquet, for whoever wants to look closer."""
    rows = [page.as_json() | {"system": name} for name, pages in study.pages.items() for page in pages]
    pl.DataFrame(rows).write_parquet(file.with_suffix(".parquet"))
    write_whole(file, json.dumps(study.as_json(), indent=1) + "\n")
