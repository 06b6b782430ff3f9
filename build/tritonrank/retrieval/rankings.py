"""The honest protocol: the user's next like has to be found among all items that the user has not met before.

A ranking is a list of item ids per moment, best first, of at most 200. One positive per moment, so that recall@k is the
share of moments whose positive is among the first k, and NDCG@10 is 1 / log2(place + 1). What a list does not hold
counts as not found: a ranker that orders retrieved candidates pays for what retrieval missed.

Beside accuracy stand coverage@10, the share of the catalogue that is in anybody's first ten, and novelty@10, the mean
of -log2 of the share of users who liked a shown item (Zhou et al. 2010, https://doi.org/10.1073/pnas.1000488107).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tritonrank.judge.counted import NEIGHBOUR_HISTORY
from tritonrank.judge.metrics import interval
from tritonrank.retrieval.blend_lists import CANDIDATES, Moment
from tritonrank.retrieval.counts import NEXT_HISTORY, RECENCY, ease_matrix

ACCURACY = ("ndcg@10", "recall@20", "recall@100", "mrr")
EASE_BY_RECENCY, SEQUENTIAL = "EASE, newest weigh more", "what comes next"
FEWEST_OF_SEGMENT = 20
FEW_LIKES = 10
"""A history of at most so many makes a user new here."""

Rankings = Sequence[Sequence[str]]
"""Item ids best first, one list per moment."""


@dataclass(frozen=True)
class Known:
    """What is known of items when they are judged.

    Attributes:
        item_ids: the catalogue.
        liked: [users, items] of the training events.
        followed: [items, items] of ``counts.following_matrix``; None: what comes next is not judged.
    """

    item_ids: Sequence[str]
    liked: sparse.csr_matrix
    followed: sparse.csr_matrix | None = None

    @property
    def likes_by_item(self) -> dict[str, int]:
        counts = np.asarray(self.liked.sum(axis=0)).ravel().astype(int)
        return dict(zip(self.item_ids, counts.tolist(), strict=True))


def counted_rankings(known: Known, moments: Sequence[Moment], size: int = CANDIDATES) -> dict[str, list[list[str]]]:
    """What only counts, over the whole catalogue, from the same counts that the catalogue is made of."""
    return {
        name: [ranking_of(known, score(moment), moment, size) for moment in moments]
        for name, score in counted_scorers(known).items()
    }


def counted_scorers(known: Known) -> dict[str, Callable[[Moment], NDArray[np.float64]]]:
    """By name what scores all items for a moment, [items]. No list is cut: the baselines at their best."""
    place = {item: number for number, item in enumerate(known.item_ids)}
    popularity = np.asarray(known.liked.sum(axis=0), dtype=np.float64).ravel()
    scale = sparse.diags((1.0 / np.sqrt(np.maximum(popularity, 1.0))).astype(np.float32))
    scaled = (known.liked @ scale).tocsc()
    by_item = scaled.T.tocsr()
    columns, weights = ease_matrix(known.liked)
    row_of = {int(column): number for number, column in enumerate(columns)}

    def places(moment: Moment) -> list[int]:
        return [place[item] for item in moment.history_ids if item in place]

    def knn(moment: Moment) -> NDArray[np.float64]:
        newest = places(moment)[-NEIGHBOUR_HISTORY:]
        return np.asarray((by_item[newest] @ scaled).sum(axis=0), dtype=np.float64).ravel()

    def ease(moment: Moment, power: float = 0.0) -> NDArray[np.float64]:
        scores = np.zeros(len(known.item_ids))
        rows = [row_of[one] for one in places(moment) if one in row_of]
        scores[columns] = _by_recency(len(rows), power) @ weights[rows]
        return scores

    def following(moment: Moment) -> NDArray[np.float64]:
        assert known.followed is not None
        newest = places(moment)[-NEXT_HISTORY:]
        return np.asarray(known.followed[newest].T @ _by_recency(len(newest), RECENCY["next"])).ravel()

    found: dict[str, Callable[[Moment], NDArray[np.float64]]]
    found = {"popularity": lambda moment: popularity, "item kNN": knn, "EASE": ease}
    if known.followed is not None:
        found |= {EASE_BY_RECENCY: partial(ease, power=RECENCY["ease"]), SEQUENTIAL: following}
    return found


def _by_recency(count: int, power: float) -> NDArray[np.float64]:
    """[count] n^-power of the n-th newest, newest last."""
    return np.arange(count, 0, -1, dtype=np.float64) ** -power


def ranking_of(known: Known, scores: NDArray[np.float64], moment: Moment, size: int = CANDIDATES) -> list[str]:
    """The best items that the user has not met."""
    met = set(moment.met)
    order = np.argsort(-scores, kind="stable")
    found = (known.item_ids[place] for place in order[: size + len(met)])
    return [item for item in found if item not in met][:size]


def places_of(rankings: Rankings, moments: Sequence[Moment]) -> NDArray[np.float64]:
    """[moments] place of the positive from 1; infinity where the list does not hold it."""
    return np.array(
        [
            ranking.index(moment.positive) + 1 if moment.positive in ranking else np.inf
            for ranking, moment in zip(map(list, rankings), moments, strict=True)
        ]
    )


def accuracy(places: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """By metric its value for each moment."""
    return {
        "ndcg@10": np.where(places <= 10, 1.0 / np.log2(places + 1), 0.0),
        "recall@20": (places <= 20).astype(np.float64),
        "recall@100": (places <= 100).astype(np.float64),
        "mrr": 1.0 / places,
    }


def judged(rankings: Mapping[str, Rankings], moments: Sequence[Moment], known: Known) -> list[dict[str, Any]]:
    """One row per ranking: metrics as [mean, low, high] with 95% bootstrap intervals, coverage and novelty."""
    rows = []
    likes, users = known.likes_by_item, known.liked.shape[0]
    for name, lists in rankings.items():
        measured = accuracy(places_of(lists, moments))
        shown = [item for ranking in lists for item in ranking[:10]]
        rows.append(
            {"name": name}
            | {metric: _interval(values) for metric, values in measured.items()}
            | {
                "coverage@10": len(set(shown)) / len(known.item_ids),
                "novelty@10": float(np.mean([-np.log2((likes.get(item, 0) + 1) / (users + 1)) for item in shown])),
            }
        )
    return rows


def differences(of: str, rankings: Mapping[str, Rankings], moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """What one ranking is better by than each other one: paired over the same moments, [mean, low, high]."""
    own = accuracy(places_of(rankings[of], moments))
    rows = []
    for name, lists in rankings.items():
        if name != of:
            other = accuracy(places_of(lists, moments))
            rows.append({"to": name} | {metric: _interval(own[metric] - other[metric]) for metric in ACCURACY})
    return rows


def segments(moments: Sequence[Moment], known: Known) -> dict[str, NDArray[np.int64]]:
    """By name the moments of new users and of new items; those of fewer than 20 moments are left out."""
    likes = known.likes_by_item
    flags = {
        f"users with at most {FEW_LIKES} likes before": [len(moment.history) <= FEW_LIKES for moment in moments],
        "items that no training event likes": [not likes.get(moment.positive, 0) for moment in moments],
        "items with 1 to 5 likes in training": [1 <= likes.get(moment.positive, 0) <= 5 for moment in moments],
    }
    chosen = {name: np.flatnonzero(np.array(flag)) for name, flag in flags.items()}
    return {name: places for name, places in chosen.items() if len(places) >= FEWEST_OF_SEGMENT}


def _interval(values: NDArray[np.float64]) -> list[float]:
    found = interval(values)
    return [round(found.mean, 5), round(found.low, 5), round(found.high, 5)]
