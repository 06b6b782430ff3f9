"""From a positive event to a list to rank.

The history before it, negatives beside it, and an order of the candidates that says nothing.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tritonrank.data.impressions import Propensities, Shown, shown_with
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
        popularity: [items] as ``training_popularity`` counts it.
        settings: how many negatives.
        seed: fixes negatives and order, example by example.
        propensities: what positives weigh by their position, in training; None: all alike.
    """

    def __init__(
        self,
        item_ids: pl.Series,
        popularity: NDArray[np.int64],
        settings: ExampleSettings,
        seed: int,
        propensities: Propensities | None = None,
    ) -> None:
        self._item_ids = item_ids.to_list()
        self._settings = settings
        self._seed = seed
        self._index = places_of(item_ids)
        self._sampler = NegativeSampler(popularity)
        self._propensities = propensities

    def make(self, split: str, chosen: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
        """One example per chosen event, in the same order; columns as in EXAMPLE_SCHEMA.

        ``events`` are as ``mark_splits`` returns them, and hold all of the users who were chosen.

        An event that belongs to an impression is ranked among what was shown with it, filled up with sampled items to
        the length of the other lists. With propensities, training examples have the column weights, too.

        Raises:
            DataError: the catalogue is too small for the negatives asked for.
        """
        key = negatives_key(split)
        negatives: int = getattr(self._settings, key)
        events = _of_users(events, chosen)
        met = events.group_by("user_id").agg(pl.col("item_id").unique(maintain_order=True))
        seen = {user: np.array([self._index[item] for item in items]) for user, items in met.iter_rows()}
        require_unseen(key, negatives, len(self._item_ids), max(map(len, seen.values()), default=0))
        liked = dict(events.filter(LIKED).group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
        has_impressions = "impression" in events.columns
        shown = shown_with(events, chosen) if has_impressions else {}
        if not has_impressions:
            chosen = chosen.with_columns(pl.lit(None, dtype=pl.String).alias("impression"))
        columns = chosen.select(
            "user_id", "item_id", "query", "position", "positives_before", "gain", "impression"
        ).iter_rows()
        weigh = self._propensities.weight if self._propensities and split == TRAIN else None
        schema = EXAMPLE_SCHEMA | ({"weights": pl.List(pl.Float32())} if weigh else {})
        rows = self._rows(columns, seen, liked, shown, negatives, weigh)
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _rows(
        self,
        chosen: Iterable[tuple[Any, ...]],
        seen: dict[str, NDArray[np.int64]],
        liked: dict[str, list[str]],
        shown: dict[tuple[str, str], list[Shown]],
        negatives: int,
        weigh: Callable[[int | None], float] | None,
    ) -> Iterator[tuple[Any, ...]]:
        for user, positive, query, position, positives_before, gain, impression in chosen:
            example_id = f"{user}:{position}"
            random = example_random(self._seed, example_id)
            ranked = shown.get((user, impression)) or [Shown(positive, gain, None)]
            ranked = _of_impression(ranked, positive, set(liked[user]), negatives, random)
            history = history_before(liked[user], positives_before, {item.item_id for item in ranked if item.gain})
            drawn = self._sampler.draw(random, seen[user], negatives + 1 - len(ranked))
            ranked += [Shown(self._item_ids[index], 0.0, None) for index in drawn]
            shuffled = [ranked[place] for place in random.permutation(len(ranked))]
            row = (
                example_id,
                user,
                query,
                history[-STORED_HISTORY:],
                [item.item_id for item in shuffled],
                [item.gain for item in shuffled],
            )
            yield (*row, [weigh(item.position) if item.gain else 1.0 for item in shuffled]) if weigh else row


def negatives_key(split: str) -> str:
    """The setting of section ``examples`` that says how many negatives a list of a split has."""
    return "training_negatives" if split == TRAIN else "judged_negatives"


def most_met(events: pl.DataFrame, chosen: pl.DataFrame) -> int:
    """How many different items that one of the chosen users met who met the most."""
    met = _of_users(events, chosen).group_by("user_id").agg(pl.col("item_id").n_unique())["item_id"]
    return max(met.to_list(), default=0)


def require_unseen(key: str, negatives: int, items: int, most_seen: int) -> None:
    """See that there are enough items for the negatives.

    Raises:
        DataError: the catalogue is too small for the negatives asked for.
    """
    available = items - most_seen
    if available < negatives:
        raise DataError(
            f"examples.{key} asks for {negatives} unseen items, but the user who met the most ({most_seen} of "
            f"{items}) leaves only {available}; lower examples.{key} to {available} or less"
        )


def _of_users(events: pl.DataFrame, chosen: pl.DataFrame) -> pl.DataFrame:
    """The events of the users of some."""
    return events.join(chosen.select("user_id").unique(), on="user_id", how="semi", maintain_order="left")


def _of_impression(
    shown: list[Shown], positive: str, liked: set[str], negatives: int, random: np.random.Generator
) -> list[Shown]:
    """What of an impression a list has room for: the positive, then others by gain, then a draw of what was not chosen.

    At most half of the negatives' places go to further positives. What the user chose at another time is no negative.
    """
    positives = sorted((item for item in shown if item.gain), key=lambda item: (item.item_id != positive, -item.gain))
    positives = positives[: 1 + negatives // 2]
    passed_over = [item for item in shown if not item.gain and item.item_id not in liked]
    room = negatives + 1 - len(positives)
    if len(passed_over) > room:
        passed_over = [passed_over[place] for place in random.choice(len(passed_over), room, replace=False)]
    return [*positives, *passed_over]


def history_before(liked: list[str], positives_before: int, positives: Collection[str]) -> list[str]:
    """What a user had liked when the list came, newest last; an earlier like of a positive would give it away.

    Args:
        liked: the user's positives in order of time.
        positives_before: how many of them came before this list.
        positives: of the list.
    """
    return [item for item in liked[:positives_before] if item not in positives]


def places_of(item_ids: pl.Series) -> dict[str, int]:
    """Item id -> its place in the catalogue."""
    return {item: place for place, item in enumerate(item_ids.to_list())}


def training_popularity(events: pl.DataFrame, index: dict[str, int]) -> NDArray[np.int64]:
    """[items] positives per item, of training events alone: a held-out click must not make its item likelier."""
    return as_popularity(learnt_positives(events), index)


def learnt_positives(events: pl.DataFrame) -> pl.DataFrame:
    """item_id, count: the positives that may be learnt from; what is counted of some users and of others adds up."""
    return events.filter(LIKED & (pl.col("split") == TRAIN)).group_by("item_id").agg(pl.len().alias("count"))


def as_popularity(counts: pl.DataFrame, index: dict[str, int]) -> NDArray[np.int64]:
    """[items] what ``learnt_positives`` counted."""
    popularity = np.zeros(len(index), dtype=np.int64)
    for item, count in counts.select("item_id", "count").iter_rows():
        popularity[index[item]] = count
    return popularity
