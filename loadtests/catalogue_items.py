"""A generated shop of any size: items, vectors and likes whose distributions are those of a real one, by one seed."""

from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

TEMPLATE = "{title}"
TOPICS = 2_000
"""Groups of like items."""
SHAPE = 96
"""Directions in which vectors of an encoder really differ; the rest is noise."""
WORDS, FEWEST_WORDS, MOST_WORDS = 60_000, 4, 9
CATEGORIES, BRANDS = 200, 3_000
COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "red", "white", "yellow")
LIKES_PER_USER, USERS_PER_ITEM = 10, 0.3
FIRST_SECOND, SECONDS = 1_735_689_600, 180 * 86_400
ROWS_AT_ONCE = 50_000
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "ai", "or")]


class Shop:
    """Items of topics; a topic has words, a category and a direction of its own.

    Args:
        items: how many.
        dimensions: of a vector.
    """

    def __init__(self, items: int, dimensions: int) -> None:
        self._items, self._dimensions = items, dimensions
        self._topic = np.random.default_rng([3, 0]).zipf(1.2, items) % TOPICS

    def items(self) -> tuple[pl.DataFrame, list[str]]:
        """item_id and fields, and the texts, which are the titles."""
        random = np.random.default_rng([3, 1])
        words = _words(random)
        counts = random.integers(FEWEST_WORDS, MOST_WORDS + 1, self._items)
        total = int(counts.sum())
        topics = np.repeat(self._topic, counts)
        # Half of the words are the topic's own, the others as frequent as words of a language are.
        own = (topics * 31 + random.integers(0, 40, total)) % WORDS
        general = random.zipf(1.3, total) % WORDS
        chosen = np.where(random.random(total) < 0.5, own, general)
        starts = np.concatenate([[0], np.cumsum(counts)])
        named = [words[number] for number in chosen.tolist()]
        titles = [" ".join(named[begin:end]) for begin, end in pairwise(starts.tolist())]
        colours = random.integers(0, len(COLOURS), (self._items, 2))
        frame = pl.DataFrame(
            {
                "item_id": [f"item-{number}" for number in range(self._items)],
                "title": titles,
                "brand": [f"brand-{number:04}" for number in (random.zipf(1.2, self._items) % BRANDS).tolist()],
                "category": [f"category-{number:03}" for number in (self._topic % CATEGORIES).tolist()],
                "colours": [sorted({COLOURS[first], COLOURS[second]}) for first, second in colours.tolist()],
                "price": np.round(random.lognormal(4.0, 0.8, self._items), 2),
            }
        )
        return frame, titles

    def vectors(self) -> NDArray[np.float16]:
        """[items, dimensions] of unit length: a common direction, the topic's, the item's own, and noise."""
        random = np.random.default_rng([3, 2])
        scale = (1.0 / np.sqrt(1.0 + np.arange(SHAPE))).astype(np.float32)
        shape = random.standard_normal((SHAPE, self._dimensions), dtype=np.float32)
        topics = random.standard_normal((TOPICS, SHAPE), dtype=np.float32) * scale
        common = random.standard_normal(self._dimensions, dtype=np.float32)
        vectors = np.empty((self._items, self._dimensions), dtype=np.float16)
        for start in range(0, self._items, ROWS_AT_ONCE):
            topic = self._topic[start : start + ROWS_AT_ONCE]
            own = random.standard_normal((len(topic), SHAPE), dtype=np.float32) * scale * 0.7
            noise = random.standard_normal((len(topic), self._dimensions), dtype=np.float32)
            rows = (topics[topic] + own) @ shape + common + 0.3 * noise
            vectors[start : start + len(topic)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return vectors

    def events(self) -> pl.DataFrame:
        """Likes: half of them of what is popular, half of the user's own topic."""
        random = np.random.default_rng([3, 4])
        users = max(10, int(USERS_PER_ITEM * self._items))
        count = users * LIKES_PER_USER
        user = np.repeat(np.arange(users), LIKES_PER_USER)
        popular = (random.zipf(1.15, count) * 7_919) % self._items
        by_topic = np.argsort(self._topic, kind="stable")
        home = np.repeat(random.integers(0, self._items, users), LIKES_PER_USER)
        near = by_topic[(home + random.integers(0, 60, count)) % self._items]
        chosen = np.where(random.random(count) < 0.5, popular, near)
        return pl.DataFrame(
            {
                "user_id": [f"user-{number}" for number in user.tolist()],
                "item_id": [f"item-{number}" for number in chosen.tolist()],
                "timestamp": FIRST_SECOND + random.integers(0, SECONDS, count),
                "label": np.ones(count, dtype=np.int8),
            }
        )


def _words(random: np.random.Generator) -> list[str]:
    """Different words of two to four syllables."""
    words: dict[str, None] = {}
    while len(words) < WORDS:
        for syllables in random.integers(0, len(SYLLABLES), (WORDS, 4)).tolist():
            words["".join(SYLLABLES[number] for number in syllables[: 2 + syllables[0] % 3])] = None
    return list(words)[:WORDS]
