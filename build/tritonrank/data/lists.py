"""From a positive event to a list to rank.

The history before it, negatives beside it, and an order of the candidates that says nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tritonrank.data.negatives import NegativeSampler, example_random
from tritonrank.data.splits import LIKED, TRAIN
from tritonrank.errors import DataError
from tritonrank.recipe import ExampleSettings

STORED_HISTORY = 200  # items, the largest text.history_items: a recipe may ask for less without a new dataset

EXAMPLE_SCHEMA: dict[str, pl.DataType] = {
    "example_id": pl.String(),
    "user_id": pl.String(),
    "query": pl.String(),
    "history": pl.List(pl.String()),
    "candidates": pl.List(pl.String()),
    "labels": pl.List(pl.Float32()),
}


class ListMaker:
    """Makes examples.

    Args:
        item_ids: the catalogue.
        events: all events, as ``mark_splits`` returns them.
        settings: how many negatives.
        seed: fixes negatives and order, example by example.
    """

    def __init__(self, item_ids: pl.Series, events: pl.DataFrame, settings: ExampleSettings, seed: int) -> None:
        self._item_ids = item_ids.to_list()
        self._settings = settings
        self._seed = seed
        self._index = {item: index for index, item in enumerate(self._item_ids)}
        self._sampler = NegativeSampler(training_popularity(events, self._index))
        self._seen = events.group_by("user_id").agg(pl.col("item_id").unique(maintain_order=True))
        self._liked = events.filter(LIKED).group_by("user_id", maintain_order=True).agg("item_id")

    def make(self, split: str, chosen: pl.DataFrame) -> pl.DataFrame:
        """One example per chosen event, in the same order; columns as in EXAMPLE_SCHEMA.

        Raises:
            DataError: the catalogue is too small for the negatives asked for.
        """
        key = "training_negatives" if split == TRAIN else "judged_negatives"
        negatives: int = getattr(self._settings, key)
        users = chosen.select("user_id").unique()
        seen = dict(users.join(self._seen, on="user_id").iter_rows())
        liked = dict(users.join(self._liked, on="user_id").iter_rows())
        self._check_catalogue(key, negatives, max(map(len, seen.values())))
        indices = {user: np.array([self._index[item] for item in items]) for user, items in seen.items()}
        columns = chosen.select("user_id", "item_id", "query", "position", "positives_before", "gain").iter_rows()
        return pl.DataFrame(self._rows(columns, indices, liked, negatives), schema=EXAMPLE_SCHEMA, orient="row")

    def _rows(
        self,
        chosen: Iterable[tuple[Any, ...]],
        seen: dict[str, NDArray[np.int64]],
        liked: dict[str, list[str]],
        negatives: int,
    ) -> Iterator[tuple[Any, ...]]:
        for user, positive, query, position, positives_before, gain in chosen:
            example_id = f"{user}:{position}"
            random = example_random(self._seed, example_id)
            history = history_before(liked[user], positives_before, positive)
            drawn = self._sampler.draw(random, seen[user], negatives)
            candidates = [positive, *(self._item_ids[index] for index in drawn)]
            shuffled = [candidates[place] for place in random.permutation(len(candidates))]
            labels = [gain if item == positive else 0.0 for item in shuffled]
            yield example_id, user, query, history[-STORED_HISTORY:], shuffled, labels

    def _check_catalogue(self, key: str, negatives: int, most_seen: int) -> None:
        available = len(self._item_ids) - most_seen
        if available < negatives:
            raise DataError(
                f"examples.{key} asks for {negatives} unseen items, but the user who met the most ({most_seen} of "
                f"{len(self._item_ids)}) leaves only {available}; lower examples.{key} to {available} or less"
            )


def history_before(liked: list[str], positives_before: int, positive: str) -> list[str]:
    """What a user had liked when the positive came, newest last; an earlier like of the same item would give it away.

    Args:
        liked: the user's positives in order of time.
        positives_before: how many of them came before this one.
        positive: the item liked next.
    """
    return [item for item in liked[:positives_before] if item != positive]


def training_popularity(events: pl.DataFrame, index: dict[str, int]) -> NDArray[np.int64]:
    """[items] positives per item, of training events alone: a held-out click must not make its item likelier."""
    counts = np.zeros(len(index), dtype=np.int64)
    learnt = events.filter(LIKED & (pl.col("split") == TRAIN))["item_id"].value_counts()
    for item, count in learnt.iter_rows():
        counts[index[item]] = count
    return counts
