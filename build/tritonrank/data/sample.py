"""A generated storefront: a few hundred products, users with tastes, and what they searched for and clicked.

Everything a ranker needs to know is in the text: queries name the category and an attribute, and a user's history
shows brands, features, colours and price. Popularity is mixed in, as in any real log, so that a popularity ranking
is a fair rival and not a straw man.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tritonrank.data.labels import with_gain
from tritonrank.data.loading import Tables
from tritonrank.data.storefront import BRANDS, CATEGORIES, COLOURS, draw_product, draw_search, pick
from tritonrank.recipe import SampleData

FEWEST_EVENTS, MOST_EVENTS = 8, 25
FIRST_SECOND = 1_735_689_600  # 2025-01-01 UTC
QUERY_SHARE = 0.5
DISLIKE_SHARE = 0.15
STRAY_SHARE = 0.1  # events outside the user's favourite categories

# How strongly each reason speaks for an item, in units of a softmax logit.
BRAND_PULL, FEATURE_PULL, COLOUR_PULL, PRICE_PULL, QUERY_PULL, POPULARITY_PULL = 1.6, 0.9, 0.7, 2.4, 2.5, 1.2


@dataclass(frozen=True)
class _Catalogue:
    frame: pl.DataFrame
    """the items table"""
    category: NDArray[np.int64]
    """[items] index into the category names"""
    words: list[frozenset[str]]
    """per item its brand, colour and features: what tastes and queries are matched against"""
    price_level: NDArray[np.float64]
    """[items] 0 cheap to 1 dear, within the category"""
    popularity: NDArray[np.float64]
    """[items] logit of being met by chance, Zipf-like"""


@dataclass(frozen=True)
class _Taste:
    categories: list[int]
    shares: NDArray[np.float64]
    brands: frozenset[str]
    colours: frozenset[str]
    features: frozenset[str]
    price_level: float

    @property
    def words(self) -> frozenset[str]:
        return self.brands | self.colours | self.features


def generate(settings: SampleData, seed: int) -> Tables:
    """The storefront of a seed: the same seed gives the same rows.

    Item fields are title, brand, category, attributes and price; every user has 8 to 25 events in order of time.
    """
    random = np.random.default_rng([seed, 0])
    catalogue = _catalogue(settings.items, random)
    rows: list[tuple[str, str, str, int, int]] = []
    for number in range(settings.users):
        # One stream per user: a storefront with more users begins with the same ones.
        rows += _events(f"user-{number + 1:05d}", catalogue, np.random.default_rng([seed, 1, number]))
    schema = {
        "user_id": pl.String, "item_id": pl.String, "query": pl.String, "timestamp": pl.Int64, "label": pl.Int8
    }  # fmt: skip
    return Tables(items=catalogue.frame, events=with_gain(pl.DataFrame(rows, schema=schema, orient="row")))


def _catalogue(count: int, random: np.random.Generator) -> _Catalogue:
    rows, words, levels = [], [], []
    titles: set[str] = set()
    names = list(CATEGORIES)
    for number in range(count):
        product = draw_product(names[number % len(names)], titles, random)
        rows.append((f"item-{number + 1:05d}", *product.texts))
        words.append(product.words)
        levels.append(product.price_level)
    frame = pl.DataFrame(rows, schema=["item_id", "title", "brand", "category", "attributes", "price"], orient="row")
    popularity = -np.log(1 + random.permutation(count))
    return _Catalogue(frame, np.arange(count) % len(names), words, np.array(levels), popularity)


def _taste(random: np.random.Generator) -> _Taste:
    categories = random.choice(len(CATEGORIES), size=int(random.integers(2, 5)), replace=False).tolist()
    names = [list(CATEGORIES)[index] for index in categories]
    known = sorted(brand for brand, sold in BRANDS.items() if set(sold) & set(names))
    features = [pick(choices, random) for name in names for choices in CATEGORIES[name].features]
    return _Taste(
        categories=categories,
        shares=random.dirichlet(np.full(len(categories), 2.0)),
        brands=frozenset(random.choice(known, size=min(3, len(known)), replace=False).tolist()),
        colours=frozenset(random.choice(COLOURS, size=2, replace=False).tolist()),
        features=frozenset(features),
        price_level=float(random.random()),
    )


def _events(user: str, catalogue: _Catalogue, random: np.random.Generator) -> list[tuple[str, str, str, int, int]]:
    taste = _taste(random)
    liking = _liking(taste, catalogue)
    unseen = np.ones(len(catalogue.words), dtype=bool)
    second = FIRST_SECOND + int(random.integers(0, 200 * 86_400))
    rows = []
    for _ in range(min(int(random.integers(FEWEST_EVENTS, MOST_EVENTS + 1)), len(unseen))):
        second += 60 + int(random.exponential(4 * 86_400))
        category = int(random.choice(taste.categories, p=taste.shares))
        if random.random() < STRAY_SHARE:
            category = int(random.integers(len(CATEGORIES)))
        offered = np.flatnonzero(unseen & (catalogue.category == category))
        if not len(offered):
            offered = np.flatnonzero(unseen)
            category = int(catalogue.category[offered[0]])
        name = list(CATEGORIES)[category]
        wanted, query = draw_search(name, taste.words, random) if random.random() < QUERY_SHARE else (None, "")
        logits = catalogue.popularity[offered] * POPULARITY_PULL
        disliked = random.random() < DISLIKE_SHARE
        if not disliked:
            logits = logits + liking[offered]
            if wanted:
                logits = logits + QUERY_PULL * np.array([wanted in catalogue.words[index] for index in offered])
        chosen = int(offered[_softmax_draw(logits, random)])
        unseen[chosen] = False
        rows.append((user, f"item-{chosen + 1:05d}", query, second, 0 if disliked else 1))
    return rows


def _liking(taste: _Taste, catalogue: _Catalogue) -> NDArray[np.float64]:
    brand = np.array([bool(words & taste.brands) for words in catalogue.words])
    colour = np.array([bool(words & taste.colours) for words in catalogue.words])
    features = np.array([len(words & taste.features) for words in catalogue.words])
    distance = np.abs(catalogue.price_level - taste.price_level)
    liking: NDArray[np.float64] = (
        BRAND_PULL * brand + COLOUR_PULL * colour + FEATURE_PULL * features - PRICE_PULL * distance
    )
    return liking


def _softmax_draw(logits: NDArray[np.float64], random: np.random.Generator) -> int:
    return int(np.argmax(logits + random.gumbel(size=len(logits))))  # the Gumbel-max trick
