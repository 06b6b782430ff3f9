"""What people do in the simulated shop: they come, look at pages, search, click, buy, and skip.

A place of a page is looked at with a chance that falls from the top, whatever stands there; who looks at an item likes
it by the truth of the day, and a few clicks are noise. So the position-based model of clicks holds exactly, and the
chance of each click is known.

Common random numbers: all chance of a step is drawn from the person, the day and the step alone, one number for each
place and each item. Two systems that show the same page get the same events, and where pages differ the difference is
the pages'.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from tritonrank.data.storefront import CATEGORIES, draw_search
from tritonrank_recommend.events import Event, EventType

from loadtests.shoppers.world import DAY_SECONDS, Floats, World

PLACES = 40
"""That anybody ever looks at."""
LOOKED_AT: Floats = np.arange(1, PLACES + 1) ** -0.7
"""[places] how likely each is looked at; the first always is."""
NOISE = 0.02
"""Of the looks, that end in a click whatever is there, or in none."""
OPENS, CLOSES = 17 * 3_600, 21 * 3_600
"""Seconds of the day between which people come: in the evening, so that all are done when the night begins."""
VISIT_SHARE, SEARCH_SHARE = 0.6, 0.5
"""How likely a person comes on a day, and searches when there."""
CART_SHARE, BUY_SHARE, SKIP_SHARE = 0.4, 0.5, 0.04
"""Of clicks that end in the cart, of those that are bought, of looks without a click that end in "not for me"."""
SETTLED: tuple[EventType, ...] = ("purchase", "skip")
"""After these a person wants no more of the item: nobody needs a second tent."""
_COMES, _LOOKS = 10, 11


@dataclass(frozen=True)
class Step:
    """A page that somebody asks for.

    Attributes:
        user: number of the person.
        day: number of the day.
        number: of the step within the visit.
        second: of the day.
        query: what is searched for; empty for the home page.
        category: that the search means.
        wanted: a word that the search means, if any.
    """

    user: int
    day: int
    number: int
    second: float
    query: str = ""
    category: str | None = None
    wanted: str | None = None


def steps_of(world: World, day: int) -> list[Step]:
    """Everything that people ask for on a day, in the order of time; the same whatever was shown before."""
    found: list[Step] = []
    for user in range(world.settings.users):
        random = _random(world, _COMES, user, day)
        if random.random() >= VISIT_SHARE:
            continue
        second = float(random.uniform(OPENS, CLOSES))
        found.append(Step(user, day, 0, second))
        if random.random() < SEARCH_SHARE:
            taste = world.taste(user, day)
            name = list(CATEGORIES)[int(random.choice(len(CATEGORIES), p=taste.shares))]
            wanted, query = draw_search(name, taste.words, random)
            found.append(Step(user, day, 1, second + float(random.uniform(45, 240)), query, name, wanted))
    return sorted(found, key=lambda step: (step.second, step.user))


def liked_in(world: World, step: Step, settled: Collection[str] = ()) -> Floats:
    """[items] how likely each is liked when looked at; 0 where it is not sold, or the person wants no more of it."""
    liked = np.where(world.sold(step.day), world.liked(step.user, step.day, step.category, step.wanted), 0.0)
    liked[[world.place[item] for item in settled]] = 0.0
    return liked


def clicked_when_looked_at(liked: Floats) -> Floats:
    """How likely a look ends in a click: the liking, and the noise."""
    return NOISE / 2 + (1 - NOISE) * liked


def react(
    world: World,
    step: Step,
    page: str,
    item_ids: Sequence[str],
    settled: Collection[str] = (),
    *,
    at: float,
    positions: Sequence[int] | None = None,
) -> list[Event]:
    """What the person does with a page.

    Args:
        world: the truth.
        step: what was asked for.
        page: token of the answer.
        item_ids: from the top.
        settled: items that the person bought or skipped, of which nothing more is wanted.
        at: unix seconds at which the page was shown; the events follow within a minute.
        positions: of the items in the whole list; by default from 0.

    Returns:
        Events in order of time. Ids are made of person, day, step and item, so that sending again does no harm.
    """
    user = world.users[step.user]
    stem = f"{user}/{step.day}/{step.number}"
    events = []
    if step.query:
        events.append(
            Event(event_id=f"{stem}/search", user_id=user, type="search", timestamp=at, query=step.query, page=page)
        )
    random = _random(world, _LOOKS, step.user, step.day, step.number)
    looks = random.random(PLACES)
    chances = random.random((4, len(world.items)))
    chance_of_click = clicked_when_looked_at(liked_in(world, step, settled))
    for place, item_id in enumerate(item_ids[:PLACES]):
        if looks[place] >= LOOKED_AT[place]:
            continue
        number = world.place[item_id]
        click, cart, buy, skip = chances[:, number]
        done: list[EventType] = []
        if click < chance_of_click[number]:
            done = ["click"]
            if cart < CART_SHARE:
                done += ["cart"]
                done += ["purchase"] if buy < BUY_SHARE else []
        elif skip < SKIP_SHARE:
            done = ["skip"]
        for order, kind in enumerate(done):
            events.append(
                Event(
                    event_id=f"{stem}/{item_id}/{kind}",
                    user_id=user,
                    type=kind,
                    # One look after another; a minute is long enough for all of them.
                    timestamp=at + 1.0 + place + order / 4,
                    item_id=item_id,
                    query=step.query,
                    page=page,
                    position=place if positions is None else positions[place],
                )
            )
    return events


def settled_by(events: Sequence[Event]) -> set[str]:
    """Items of which a person wants no more after some events."""
    return {event.item_id for event in events if event.type in SETTLED}


def second_of(start: float, step: Step) -> float:
    """Unix seconds of a step; ``start`` is when day 0 begins."""
    return start + step.day * DAY_SECONDS + step.second


def _random(world: World, stream: int, user: int, day: int, step: int = 0) -> np.random.Generator:
    return np.random.default_rng([world.settings.seed, stream, user, day + world.settings.before, step])
