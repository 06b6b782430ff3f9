"""The simulated shop and its people: who likes what on which day, known for every pair.

An item is words (brand, colour, features), a category and an appeal that no text tells. A person likes some words and
categories, and now and then turns from one word to another. Beside each person's own taste there is what moves all of
them: fashions of words that rise and fall, seasons of categories, and brands that are new. What an item is worth to
somebody is a sum of these; squeezed between 0 and 1 it is how likely the item is liked by who looks at it. That is the
truth that nobody else in the system sees.

Days are numbered: 0 is the first that is simulated, those before it have negative numbers and are the past from which
the first ranker learns. The same seed gives the same world, whatever is shown in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from tritonrank.data.storefront import BRANDS, CATEGORIES, COLOURS, Product, draw_product, pick

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
DAY_SECONDS = 86_400
NEWCOMERS = ("Ostrava Works", "Peakline", "Marlo", "Vantor")
"""Brands that begin to sell in the simulated time, one after the other; every category has others."""
BRAND_PULL, COLOUR_PULL, FEATURE_PULL, CATEGORY_PULL, NEW_BRAND_PULL, APPEAL_SPREAD = 1.6, 0.9, 0.8, 1.8, 1.0, 0.4
"""How strongly each speaks for an item, in logits; a category by how much more of the person's shopping it has."""
SEARCHED_CATEGORY, QUERY_PULL, ANOTHER_CATEGORY = 1.2, 1.5, -5.0
"""In place of the person's own pull of categories: who searches for a tent wants one. Then the pull of an item that has
the word that was searched for, and that of one out of another category."""
USUAL = -4.5
"""The logit of an item that nothing speaks for: one in ninety is liked."""
FASHION_DAYS = (1.0, 2.0)
"""A fashion comes and goes in so many seasons, shortest and longest."""
_ITEMS, _USERS, _DRIFT, _TRENDS = range(4)
"""Streams of chance, so that more of one thing leaves the others as they were."""


@dataclass(frozen=True)
class WorldSettings:
    """What world it is.

    Attributes:
        seed: of everything.
        users: people who shop.
        items: that are sold on every day.
        before: days of the past; all but the last one is what the first ranker learns from.
        days: that are simulated.
        arriving: items that appear each day, and as many go.
        drift: how likely a person turns from one liked word to another, per day.
        fashion: logits by which a word's fashion moves it, at most.
        season: logits by which a season moves a category, at most.
        year_days: days after which the seasons come again; a compressed year.

    Raises:
        ValueError: a value is out of range.
    """

    seed: int = 0
    users: int = 60
    items: int = 150
    before: int = 21
    days: int = 14
    arriving: int = 4
    drift: float = 0.05
    fashion: float = 1.5
    season: float = 1.0
    year_days: float = 28.0

    def __post_init__(self) -> None:
        least = {"users": 1, "items": 2 * len(CATEGORIES), "before": 2, "days": 1, "year_days": 1}
        for one in fields(self):
            value = getattr(self, one.name)
            if value < least.get(one.name, 0):
                raise ValueError(f"{one.name}: expected {least.get(one.name, 0)} or more, got {value}")
        if self.drift > 1 or 2 * self.arriving > self.items:
            raise ValueError("drift is a probability, and at most half of the items arrive on a day")


@dataclass(frozen=True)
class Item:
    """What is sold.

    Attributes:
        item_id: as the system knows it.
        product: its texts and words.
        first_day, end_day: it is sold from the one to the day before the other.
    """

    item_id: str
    product: Product
    first_day: int
    end_day: int

    @property
    def fields(self) -> dict[str, str | float]:
        """As ``PUT /v1/items`` takes them."""
        names = ("title", "brand", "category", "attributes", "price")
        told: dict[str, str | float] = dict(zip(names, self.product.texts, strict=True))
        return told | {"price": float(self.product.price)}


@dataclass(frozen=True)
class Taste:
    """What a person likes on a day."""

    words: frozenset[str]
    """brands, colours and features"""
    shares: Floats
    """[categories] of the person's shopping"""


class World:
    """Everything that is true.

    Args:
        settings: what world it is.
    """

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        self.items: Sequence[Item] = self._draw_items()
        self.users: Sequence[str] = [f"shopper-{number + 1:04d}" for number in range(settings.users)]
        self.place = {item.item_id: place for place, item in enumerate(self.items)}
        """item id -> its number"""
        self.day_range = range(-settings.before, settings.days)
        random = np.random.default_rng([settings.seed, _TRENDS])
        count = len(self._words)
        seasons = np.array([*(random.uniform(*FASHION_DAYS) for _ in range(count)), *(1.0 for _ in CATEGORIES)])
        self._periods = settings.year_days * seasons
        self._phases = random.random(count + len(CATEGORIES))
        self._appeal = random.normal(0, APPEAL_SPREAD, len(self.items))
        self._taste = lru_cache(maxsize=None)(self._draw_taste)
        self._worth = lru_cache(maxsize=None)(self._sum_worth)

    def sold(self, day: int) -> Booleans:
        """[items] whether each is sold on a day."""
        return np.array([item.first_day <= day < item.end_day for item in self.items])

    def arriving(self, day: int) -> list[Item]:
        """Items that are sold for the first time on a day; those of the first day of the past were there before."""
        return [item for item in self.items if item.first_day == day]

    def leaving(self, day: int) -> list[Item]:
        """Items that are no longer sold from a day on."""
        return [item for item in self.items if item.end_day == day]

    def taste(self, user: int, day: int) -> Taste:
        """What a person likes on a day."""
        return self._taste(user, day)

    def liked(self, user: int, day: int, category: str | None = None, wanted: str | None = None) -> Floats:
        """How likely a person likes each item when looking at it.

        Args:
            user: number of the person.
            day: number of the day.
            category: that was searched for.
            wanted: the word that was searched for.

        Returns:
            [items] probabilities, also of items that are not sold on that day.
        """
        logits = self._worth(user, day)
        if category is None:
            logits = logits + self._own_categories(user, day)
        else:
            is_searched = self._category == list(CATEGORIES).index(category)
            logits = logits + np.where(is_searched, SEARCHED_CATEGORY, ANOTHER_CATEGORY)
        if wanted is not None:
            logits = logits + QUERY_PULL * self._has[:, self._number[wanted]]
        return np.asarray(1 / (1 + np.exp(-logits)))

    def trend(self, day: int) -> tuple[dict[str, float], dict[str, float]]:
        """Logits by which fashion moves each word and the season each category, on a day."""
        waves = np.sin(2 * np.pi * (day / self._periods + self._phases))
        count = len(self._words)
        words = dict(zip(self._words, (self.settings.fashion * waves[:count]).tolist(), strict=True))
        return words, dict(zip(CATEGORIES, (self.settings.season * waves[count:]).tolist(), strict=True))

    @cached_property
    def _words(self) -> list[str]:
        features = {word for one in CATEGORIES.values() for group in one.features for word in group}
        return [*BRANDS, *COLOURS, *sorted(features)]

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self._words)}

    @cached_property
    def _has(self) -> Floats:
        """[items, words] 1 where an item has a word."""
        has = np.zeros((len(self.items), len(self._words)))
        for place, item in enumerate(self.items):
            has[place, [self._number[word] for word in item.product.words]] = 1.0
        return has

    @cached_property
    def _category(self) -> NDArray[np.int64]:
        names = list(CATEGORIES)
        return np.array([names.index(item.product.category) for item in self.items])

    def _draw_items(self) -> list[Item]:
        """Those of the first day, then those that arrive; each day as many go, whoever's turn it is."""
        settings, random = self.settings, np.random.default_rng([self.settings.seed, _ITEMS])
        names, titles = list(CATEGORIES), set[str]()
        first, end = -settings.before, settings.days
        products: list[tuple[Product, int]] = []
        ends: dict[int, int] = {}
        sold: list[int] = []
        for day in range(first, end):
            for _ in range(settings.items if day == first else settings.arriving):
                if day > first:
                    leaving = int(random.integers(len(sold)))
                    ends[sold.pop(leaving)] = day
                name = names[len(products) % len(names)]
                products.append((draw_product(name, titles, random, _brands(day, settings.days)), day))
            arrived = [place for place, (_, at) in enumerate(products) if at == day]
            sold += arrived
        return [
            Item(f"item-{place + 1:05d}", product, day, ends.get(place, end))
            for place, (product, day) in enumerate(products)
        ]

    def _draw_taste(self, user: int, day: int) -> Taste:
        if day > -self.settings.before:
            return self._turned(user, day, self.taste(user, day - 1))
        random = np.random.default_rng([self.settings.seed, _USERS, user])
        chosen = random.choice(len(CATEGORIES), size=int(random.integers(2, 5)), replace=False)
        shares = np.full(len(CATEGORIES), 0.2 / len(CATEGORIES))
        shares[chosen] += 0.8 * random.dirichlet(np.full(len(chosen), 2.0))
        names = [list(CATEGORIES)[number] for number in chosen]
        brands = sorted(brand for brand, sells in BRANDS.items() if set(sells) & set(names))
        words = {pick(group, random) for name in names for group in CATEGORIES[name].features}
        words |= set(random.choice(brands, size=min(3, len(brands)), replace=False).tolist())
        words |= set(random.choice(COLOURS, size=2, replace=False).tolist())
        return Taste(frozenset(words), shares)

    def _turned(self, user: int, day: int, before: Taste) -> Taste:
        """The taste of the day before, unless the person turned from one word to another of its kind."""
        random = np.random.default_rng([self.settings.seed, _DRIFT, user, day + self.settings.before])
        if random.random() >= self.settings.drift:
            return before
        old = pick(sorted(before.words), random)
        kind = BRANDS if old in BRANDS else COLOURS if old in COLOURS else self._words[len(BRANDS) + len(COLOURS) :]
        new = pick([word for word in kind if word not in before.words], random)
        return Taste(before.words - {old} | {new}, before.shares)

    def _sum_worth(self, user: int, day: int) -> Floats:
        """[items] logits without what the person's categories, or a search, say."""
        taste = self.taste(user, day)
        of_words, of_categories = self.trend(day)
        pulls = [of_words[word] + _pull(word) * (word in taste.words) for word in self._words]
        for newcomer in NEWCOMERS:
            pulls[self._number[newcomer]] += NEW_BRAND_PULL
        seasons = np.array(list(of_categories.values()))
        return np.asarray(USUAL + self._has @ np.array(pulls) + seasons[self._category] + self._appeal)

    def _own_categories(self, user: int, day: int) -> Floats:
        """[items] logits by which the person's own categories speak for each."""
        pulls = CATEGORY_PULL * np.log10(len(CATEGORIES) * self.taste(user, day).shares)
        return np.asarray(pulls[self._category])


def _brands(day: int, days: int) -> list[str]:
    """Those that sell on a day: the newcomers begin in equal steps over the simulated days, the first on day 1."""
    begun = sum(day >= 1 + number * days / len(NEWCOMERS) for number in range(len(NEWCOMERS)))
    return [brand for brand in BRANDS if brand not in NEWCOMERS[begun:]]


def _pull(word: str) -> float:
    return BRAND_PULL if word in BRANDS else COLOUR_PULL if word in COLOURS else FEATURE_PULL
