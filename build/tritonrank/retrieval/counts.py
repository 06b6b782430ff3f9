"""Who liked what, and after what, as matrices: baselines that cost no training and are hard to beat.

Counts come from training events only. The catalogue keeps the result as neighbour lists; the judge of the whole
(``rankings.py``) scores with the same numbers.

    kNN    cosine of the two items' sets of users (Sarwar et al. 2001, https://doi.org/10.1145/371920.372071)
    EASE   the linear autoencoder with a zero diagonal in closed form (Steck 2019, https://arxiv.org/abs/1905.03375)
    next   sequential rules: what users liked soon after, the sooner the more (Ludewig and Jannach 2018,
           https://arxiv.org/abs/1803.09587), and half as much what they liked soon before
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

EASE_REGULARIZATION = 150.0
"""On the diagonal of the items' co-occurrence; 150 was best on ml-latest-small (validation users)."""
FEWEST_POSITIVES = 2
"""Of an item in EASE: of one positive nothing can be learnt that kNN does not know."""
MOST_EASE_ITEMS = 10_000
"""The most popular ones are in EASE: its matrix is dense, and is inverted (800 MB and two minutes at 10,000)."""
ROWS_AT_ONCE = 2_048
RECENCY: dict[str, float] = {"ease": 0.5, "next": 1.0}
"""Power p of n^-p, the weight of the n-th newest item of a history, by source: chosen on the validation users of
ml-latest-small and ml-100k."""
NEXT_HISTORY = 20
"""Newest items of a history that are asked what comes next."""
NEXT_STEPS = 20
"""Likes that come later than so many do not follow one any more."""
BACKWARDS = 0.5
"""What a like before counts of a like after."""
NEXT_POWER, NEXT_OFFSET = 0.4, 5.0
"""What follows is divided by (likes + offset)^power: else popular items would follow everything."""


@dataclass(frozen=True)
class Neighbours:
    """Of each item the items that a like of it speaks for, strongest first.

    Attributes:
        starts: [items + 1] int64; the list of item ``i`` is ``starts[i]:starts[i + 1]`` of the others.
        places: int32, of the neighbours in the order of the items.
        weights: float32, descending within a list; not 0.
    """

    starts: NDArray[np.int64]
    places: NDArray[np.int32]
    weights: NDArray[np.float32]


def likes(training_events: pl.DataFrame, item_ids: Sequence[str]) -> sparse.csr_matrix:
    """[users, items] float32, 1 where a training event says that the user liked the item.

    Args:
        training_events: the dataset's, with user_id, item_id and label.
        item_ids: the columns; events of other items are left out.
    """
    place: Mapping[str, int] = {item: number for number, item in enumerate(item_ids)}
    liked = training_events.filter((pl.col("label") > 0) & pl.col("item_id").is_in(list(place)))
    pairs = liked.select("user_id", "item_id").unique(maintain_order=True)
    users = pairs["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
    items = np.array([place[item] for item in pairs["item_id"]], dtype=np.int64)
    shape = (int(users.max(initial=-1)) + 1, len(item_ids))
    return sparse.csr_matrix((np.ones(len(items), dtype=np.float32), (users, items)), shape=shape)


def sequences(training_events: pl.DataFrame, item_ids: Sequence[str]) -> list[NDArray[np.int64]]:
    """Of each user the places of the items that were liked, in the order of the events.

    Args:
        training_events: as ``likes``, with the timestamp.
        item_ids: as ``likes``.
    """
    place = pl.DataFrame({"item_id": list(item_ids), "place": np.arange(len(item_ids), dtype=np.int64)})
    liked = training_events.filter(pl.col("label") > 0).with_row_index("row").join(place, on="item_id", how="inner")
    found = liked.sort("timestamp", "row").group_by("user_id", maintain_order=True).agg("place")
    return [np.array(places, dtype=np.int64) for places in found["place"].to_list()]


def following(found: Sequence[NDArray[np.int64]], liked: sparse.csr_matrix, most: int) -> Neighbours:
    """What is liked soon after an item, ``most`` per item; the rest as ``following_matrix``."""
    weights = following_matrix(found, liked)
    firsts = range(0, weights.shape[0], ROWS_AT_ONCE)
    return _strongest([weights[first : first + ROWS_AT_ONCE] for first in firsts], most)


def following_matrix(found: Sequence[NDArray[np.int64]], liked: sparse.csr_matrix) -> sparse.csr_matrix:
    """[items, items] how much a like of the row speaks for the column to be liked soon after.

    The sum of 1 / steps over users, and half of it for steps back, by the column's popularity.

    Args:
        found: of ``sequences``.
        liked: of ``likes``, for how popular items are.
    """
    items = liked.shape[1]
    total = sparse.csr_matrix((items, items), dtype=np.float64)
    for steps in range(1, NEXT_STEPS + 1):
        longer = [one for one in found if len(one) > steps]
        if not longer:
            break
        before = np.concatenate([one[:-steps] for one in longer])
        after = np.concatenate([one[steps:] for one in longer])
        shape = (items, items)
        total += sparse.csr_matrix((np.full(len(before), 1.0 / steps), (before, after)), shape=shape)
    popularity = np.asarray(liked.sum(axis=0), dtype=np.float64).ravel()
    both = total + BACKWARDS * total.T
    return (both @ sparse.diags((popularity + NEXT_OFFSET) ** -NEXT_POWER)).tocsr()


def knn(liked: sparse.csr_matrix, most: int) -> Neighbours:
    """The cosine of the users' sets, ``most`` neighbours per item, itself left out."""
    users_per_item = np.asarray(liked.sum(axis=0), dtype=np.float64).ravel()
    scale = 1.0 / np.sqrt(np.maximum(users_per_item, 1.0))
    scaled = (liked @ sparse.diags(scale.astype(np.float32))).tocsc()
    by_item = scaled.T.tocsr()
    blocks = []
    for first in range(0, by_item.shape[0], ROWS_AT_ONCE):
        blocks.append((by_item[first : first + ROWS_AT_ONCE] @ scaled).tocsr())
    return _strongest(blocks, most)


def ease(
    liked: sparse.csr_matrix,
    most: int,
    regularization: float = EASE_REGULARIZATION,
    most_items: int = MOST_EASE_ITEMS,
) -> Neighbours:
    """EASE's weights, the ``most`` of each row with the largest absolute value; negative ones speak against an item.

    The score of an item is the sum of the weights from the liked items to it.
    """
    places, weights = ease_matrix(liked, regularization, most_items)
    items = liked.shape[1]
    blocks = []
    for first in range(0, items, ROWS_AT_ONCE):
        chosen = np.flatnonzero((places >= first) & (places < first + ROWS_AT_ONCE))
        rows = np.repeat(places[chosen] - first, len(places))
        columns = np.tile(places, len(chosen))
        shape = (min(ROWS_AT_ONCE, items - first), items)
        blocks.append(sparse.csr_matrix((weights[chosen].ravel(), (rows, columns)), shape=shape))
    return _strongest(blocks, most)


def ease_matrix(
    liked: sparse.csr_matrix,
    regularization: float = EASE_REGULARIZATION,
    most_items: int = MOST_EASE_ITEMS,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """EASE over the items that have enough positives.

    Returns:
        Their columns [n], ascending, and the weights [n, n]: row = what is liked, column = what it speaks for.
    """
    positives = np.asarray(liked.sum(axis=0)).ravel()
    popular = np.argsort(-positives, kind="stable")[:most_items]
    places = np.sort(popular[positives[popular] >= FEWEST_POSITIVES])
    if not len(places):
        return places, np.zeros((0, 0), dtype=np.float32)
    chosen = liked[:, places]
    gram: NDArray[np.float64] = (chosen.T @ chosen).toarray().astype(np.float64)
    np.fill_diagonal(gram, np.diag(gram) + regularization)
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return places, weights.astype(np.float32)


def _strongest(blocks: Sequence[sparse.csr_matrix], most: int) -> Neighbours:
    """Of each row the entries with the largest absolute value, without the diagonal, in descending order."""
    counts, places, weights, row = [], [], [], 0
    for block in blocks:
        for number in range(block.shape[0]):
            begin, end = block.indptr[number], block.indptr[number + 1]
            others, values = block.indices[begin:end], block.data[begin:end]
            kept = (others != row) & (values != 0)
            others, values = others[kept], values[kept]
            if len(values) > most:
                largest = np.argpartition(-np.abs(values), most)[:most]
                others, values = others[largest], values[largest]
            # By place where weights are equal, so that the same counts give the same lists on every machine.
            order = np.lexsort((others, -values))
            counts.append(len(order))
            places.append(others[order].astype(np.int32))
            weights.append(values[order].astype(np.float32))
            row += 1
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Neighbours(
        starts,
        np.concatenate([np.zeros(0, dtype=np.int32), *places]),
        np.concatenate([np.zeros(0, dtype=np.float32), *weights]),
    )
