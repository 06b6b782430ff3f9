"""Days of a shop's log, sound ones and poisoned ones, drawn from a seed.

Users look at places from the top, like items by taste and quality, and differ much in how often they come; days differ
by weekday and by chance, some users are new, some phones are late, some clicks are double. Every poison has a dose.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank.data.event_log import EVENT_COLUMNS, KNOWN_AT, LOT_COLUMNS, SHOWN_COLUMNS
from tritonrank.learn.guards.baseline import Baseline
from tritonrank.learn.guards.day import Day
from tritonrank.learn.guards.inspection import inspect
from tritonrank.recipe.guarding import GuardSettings

DAY = 86_400.0
START = 1_795_737_600.0  # a Friday, 00:00 UTC
ITEMS, PLACES, TASTES = 300, 12, 6
PAGES = 900
LOOKED_AT = 0.8 ** np.arange(PLACES)
Poison = Callable[[Day, float, np.random.Generator], Day]


@cache
def _items(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Quality [items] and tastes [items, tastes] of a shop."""
    generator = np.random.default_rng(seed)
    return generator.normal(0, 0.7, ITEMS), generator.normal(0, 1, (ITEMS, TASTES)) / np.sqrt(TASTES)


def sound_day(number: int, seed: int = 0, pages: int = PAGES) -> Day:
    """A day on which nothing is wrong.

    Args:
        number: of the day, from 0.
        seed: of the shop and all that happens.
        pages: shown on an average day.
    """
    quality, tastes = _items(seed)
    generator = np.random.default_rng((seed, number))
    weekday = (number + 4) % 7
    count = int(pages * (1.25 if weekday >= 5 else 0.9) * np.exp(generator.normal(0, 0.1)))
    regulars, strangers = pages // 2, max(pages // 25, 1)
    activity = np.concatenate([np.random.default_rng((seed, 77)).lognormal(0, 0.8, regulars), np.full(strangers, 0.7)])
    user = generator.choice(regulars + strangers, count, p=activity / activity.sum())
    # Strangers of each day are others.
    name = np.where(user < regulars, user, regulars + number * strangers + user - regulars)
    taste = np.concatenate(
        [
            np.random.default_rng((seed, 5)).normal(0, 1, (regulars, TASTES)),
            np.random.default_rng((seed, 6, number)).normal(0, 1, (strangers, TASTES)),
        ]
    )
    at = START + number * DAY + np.sort(_times(generator, count))
    utility = quality + taste[user] @ tastes.T
    offered = np.argsort(utility + generator.gumbel(0, 1.5, utility.shape), axis=1)[:, -PLACES:]
    offered = np.take_along_axis(
        offered, np.argsort(-(_of(utility, offered) + generator.normal(0, 0.8, offered.shape)), axis=1), axis=1
    )
    looked = generator.random(offered.shape) < LOOKED_AT
    fancy = np.exp(generator.normal(0, 0.05))
    likes = looked & (generator.random(offered.shape) < fancy / (1 + np.exp(3.0 - _of(utility, offered))))
    skips = looked & ~likes & (generator.random(offered.shape) < 0.05 / (1 + np.exp(_of(utility, offered))))
    tokens = np.array([f"p{number}-{one}" for one in range(count)])
    shown = pl.DataFrame(
        {
            "page": tokens,
            "user_id": [f"u{one}" for one in name],
            "query": [""] * count,
            "shown_at": at,
            "item_ids": [[f"i{item}" for item in row] for row in offered.tolist()],
            "positions": [list(range(PLACES))] * count,
            "policy_positions": [list(range(PLACES))] * count,
        },
        schema=SHOWN_COLUMNS | {"policy_positions": LOT_COLUMNS["policy_positions"]},
    )
    told = []
    for kind, where in (("click", likes), ("skip", skips)):
        page, place = np.nonzero(where)
        told.append(_events(name[page], offered[page, place], kind, at[page] + 4 + 3 * place, tokens[page], place))
    clicks = told[0]
    bought = clicks.sample(fraction=0.1, seed=number).with_columns(pl.lit("purchase").alias("type"))
    twice = clicks.sample(fraction=0.02, seed=number + 1).with_columns(pl.col("timestamp") + 0.3)
    viewed = clicks.with_columns(pl.lit("view").alias("type"), pl.col("timestamp") + 1.0)
    events = pl.concat([*told, bought, twice, viewed])
    noise = generator.uniform(-1, 1, events.height), generator.exponential(0.5, events.height)
    late = np.where(generator.random(events.height) < 0.02, generator.exponential(5_000, events.height), 0)
    lost = generator.random(events.height) < 0.003
    events = events.with_columns(
        pl.Series("timestamp", events["timestamp"].to_numpy() + noise[0]),
        pl.when(pl.Series(lost)).then(pl.lit("gone")).otherwise(pl.col("item_id")).alias("item_id"),
    ).with_columns((pl.col("timestamp") + pl.Series(noise[1] + late)).alias("received_at"))
    end = START + (number + 1) * DAY
    events = events.with_columns(pl.col("received_at").clip(None, end - 1).alias(KNOWN_AT))
    shown = shown.with_columns(pl.col("shown_at").alias(KNOWN_AT))
    return Day(_numbered(events, f"d{number}"), shown, START + number * DAY, end, known())


def known() -> list[str]:
    """Ids of the item table."""
    return [f"i{one}" for one in range(ITEMS)]


@cache
def sound_baseline(nights: int, seed: int = 0, pages: int = PAGES) -> Baseline:
    """What so many sound days leave, the first ones of a shop."""
    baseline = Baseline()
    for number in range(nights):
        baseline = inspect(sound_day(number, seed, pages), baseline, GuardSettings()).baseline
    return baseline


def flipped(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """On a share of the pages all that was not liked is liked, and what was liked is not."""
    pages = _some(day.shown["page"], dose, generator)
    likes = day.events.filter(day.is_like() & pl.col("page").is_in(pages.implode()))
    rows = day.shown.filter(pl.col("page").is_in(likes["page"].implode())).explode("item_ids", "positions")
    others = rows.join(likes, left_on=["page", "item_ids"], right_on=["page", "item_id"], how="anti")
    clicks = _events(
        np.zeros(others.height, int),
        np.zeros(others.height, int),
        "click",
        others["shown_at"].to_numpy() + 4 + 3 * others["positions"].to_numpy(),
        others["page"].to_numpy(),
        others["positions"].to_numpy(),
    ).with_columns(others["user_id"], others["item_ids"].alias("item_id"))
    gone = day.events.join(likes, on="event_id", how="anti", maintain_order="left")
    return _with_more(replace(day, events=gone), clicks, "flip")


def mirrored(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """On a share of the pages places are counted from the bottom: as many likes, of the items that stand there."""
    pages = set(_some(day.shown["page"], dose, generator).to_list())
    lists = dict(day.shown.select("page", "item_ids").rows())
    keys = zip(day.events["page"], day.events["item_id"], day.events["position"], strict=True)
    items = [lists[page][-1 - place] if page in pages else item for page, item, place in keys]
    return replace(day, events=day.events.with_columns(pl.Series("item_id", items)))


def turned(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """Of a share of the users likes are sent as skips and skips as clicks: a mapping that somebody mixed up."""
    users = _some(day.events["user_id"].unique().sort(), dose, generator)
    hit = pl.col("user_id").is_in(users.implode())
    swapped = pl.when(hit & day.is_like()).then(pl.lit("skip")).when(hit & day.is_dislike()).then(pl.lit("click"))
    return replace(day, events=day.events.with_columns(swapped.otherwise(pl.col("type")).alias("type")))


def by_lot(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """On a share of the pages likes are of any items of the page: a token that belongs to another answer."""
    pages = set(_some(day.shown["page"], dose, generator).to_list())
    lists = dict(day.shown.select("page", "item_ids").rows())
    keys = zip(day.events["page"], day.events["item_id"], strict=True)
    items = [str(generator.choice(lists[page])) if page in pages else item for page, item in keys]
    return replace(day, events=day.events.with_columns(pl.Series("item_id", items)))


def even_bot(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """One user that clicks on any items, so many times (dose), at even intervals with a little jitter."""
    count = int(dose)
    at = day.start + (np.arange(count) + 0.01 * generator.random(count)) * (DAY / count)
    return _with_user(day, "robot", at, generator)


def hasty_bot(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """One user that clicks on any items, so many times (dose), within one hour and at any moments."""
    return _with_user(day, "robot", day.start + 40_000 + 3_600 * np.sort(generator.random(int(dose))), generator)


def patient_bot(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """One user that clicks on any items, so many times (dose), by day and night at any moments."""
    return _with_user(day, "robot", day.start + DAY * np.sort(generator.random(int(dose))), generator)


def copied(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """A share of the events comes again within a second, under new ids."""
    some = day.events.sample(fraction=dose, seed=int(generator.integers(1 << 30)))
    later = some.with_columns(pl.col("timestamp", "received_at", KNOWN_AT) + float(generator.uniform(0.05, 0.9)))
    return _with_more(day, later, "copy")


def same_again(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """A share of the events is there twice, with their ids: a store that was put back."""
    some = day.events.sample(fraction=dose, seed=int(generator.integers(1 << 30)))
    return replace(day, events=pl.concat([day.events, some]))


def sent_twice(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """The events of a share of the day are sent once more, under new ids and with the times of an hour later."""
    start = day.start + float(generator.uniform(0.2, 0.9 - min(dose, 0.7))) * DAY
    batch = day.events.filter(pl.col("timestamp").is_between(start, start + dose * DAY))
    later = batch.with_columns(pl.col("timestamp", "received_at", KNOWN_AT) + 3_541.7)
    return _with_more(day, later, "again")


def strange(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """A share of the events is on items that nobody knows: another shop's log."""
    some = pl.Series(generator.random(day.events.height) < dose)
    foreign = pl.when(some).then("other-" + pl.col("item_id")).otherwise(pl.col("item_id"))
    return replace(day, events=day.events.with_columns(foreign.alias("item_id")))


def wrong_clock(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """A share of the users has a clock that is an hour slow."""
    users = _some(day.events["user_id"].unique().sort(), dose, generator)
    slow = pl.col("timestamp") - 3_600.0 * pl.col("user_id").is_in(users.implode()).cast(pl.Float64)
    return replace(day, events=day.events.with_columns(slow.alias("timestamp")))


def fallen(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """A share of the pages, and what was done on them, is missing."""
    pages = _some(day.shown["page"], dose, generator)
    stays = ~pl.col("page").is_in(pages.implode())
    return replace(day, events=day.events.filter(stays), shown=day.shown.filter(stays))


def risen(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """So many times as much happens: pages and events of users that nobody knows."""
    parts = [day]
    for number in range(1, int(dose)):
        other = sound_day(10_000 + number + 17 * int(generator.integers(1_000)))
        shift = day.start - other.start
        parts.append(
            replace(
                other,
                events=other.events.with_columns(pl.col("timestamp", "received_at", KNOWN_AT) + shift),
                shown=other.shown.with_columns(pl.col("shown_at", KNOWN_AT) + shift),
            )
        )
    return replace(day, events=pl.concat([one.events for one in parts]), shown=pl.concat([one.shown for one in parts]))


def farm(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """So many new users click on one item, and on nothing else."""
    count = int(dose)
    at = day.start + np.sort(_times(generator, count))
    clicks = _events(np.arange(count), np.full(count, 7), "click", at, np.full(count, ""), np.zeros(count, int))
    return _with_more(day, clicks.with_columns(("bought-" + pl.col("user_id")).alias("user_id")), "farm")


def news(day: Day, dose: float, generator: np.random.Generator) -> Day:
    """No poison: so many of the day's own users like one item, which is in the news."""
    users = generator.choice(day.events["user_id"].unique().sort().to_numpy(), int(dose))
    at = day.start + np.sort(_times(generator, len(users)))
    clicks = _events(
        np.arange(len(users)), np.full(len(users), 7), "click", at, np.full(len(users), ""), np.zeros(len(users), int)
    )
    return _with_more(day, clicks.with_columns(pl.Series("user_id", users)), "news")


def _times(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Seconds of a day, few of them at night."""
    hours = np.arange(24)
    weights = np.where(hours < 6, 0.15, 1 + 0.5 * np.sin((hours - 6) / 18 * np.pi))
    return generator.choice(24, count, p=weights / weights.sum()) * 3_600 + generator.random(count) * 3_600


def _of(utility: NDArray[np.float64], offered: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.take_along_axis(utility, offered, axis=1)


def _events(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    kind: str,
    at: NDArray[np.float64],
    pages: NDArray[np.str_],
    places: NDArray[np.int64],
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "event_id": [""] * len(users),
            "user_id": [f"u{one}" for one in users],
            "item_id": [f"i{one}" for one in items],
            "type": [kind] * len(users),
            "query": [""] * len(users),
            "timestamp": at,
            "value": [None] * len(users),
            "page": pages,
            "position": places,
            "received_at": at,
            KNOWN_AT: at,
        },
        schema=EVENT_COLUMNS | {KNOWN_AT: pl.Float64()},
    )


def _numbered(events: pl.DataFrame, word: str) -> pl.DataFrame:
    return events.with_columns(pl.Series("event_id", [f"{word}-{one}" for one in range(events.height)]))


def _with_more(day: Day, events: pl.DataFrame, word: str) -> Day:
    return replace(day, events=pl.concat([day.events, _numbered(events, f"{word}-{day.start:.0f}")]))


def _with_user(day: Day, user: str, at: NDArray[np.float64], generator: np.random.Generator) -> Day:
    count = len(at)
    items = generator.integers(0, ITEMS, count)
    clicks = _events(np.zeros(count, int), items, "click", at, np.full(count, ""), np.zeros(count, int))
    return _with_more(day, clicks.with_columns(pl.lit(user).alias("user_id")), user)


def _some(values: pl.Series, share: float, generator: np.random.Generator) -> pl.Series:
    return values.filter(pl.Series(generator.random(len(values)) < share, dtype=pl.Boolean))
