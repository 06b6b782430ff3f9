"""Learns to order retrieved candidates: a weighted sum, LambdaMART's trees, or nothing beyond the ranker.

    ranker      the ranker's own order
    linear      softmax over the list (the conditional logit of McFadden 1974), pulled towards the ranker's own order:
                the fewer lists there are, the nearer it stays to it
    lambdamart  LightGBM's gradient-boosted trees for NDCG (Burges 2010)

Which one is chosen by cross-validation over users, by NDCG@10: trees have to be better than the sum by more than one
standard error, as they need more lists than there mostly are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from tritonrank_recommend.blend.features import RANKER, Z
from tritonrank_recommend.blend.models import Linear, LinearModel
from tritonrank_recommend.blend.reader import Method, feature_columns

from tritonrank.judge.metrics import ndcg
from tritonrank.retrieval.blend_lists import WITHHELD, BlendList

Matrix = NDArray[np.float32]

FOLDS = 5
FEWEST_LISTS = 50
"""Below this nothing is learnt: with 20 features the noise is larger than what they add."""
FEWEST_FOR_TREES = 200
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Of the weighted sum, per list; the strongest first."""
ROUNDS = 120
TREES: dict[str, Any] = {
    "objective": "lambdarank",
    "num_leaves": 7,
    "learning_rate": 0.05,
    "min_data_in_leaf": 50,
    "min_sum_hessian_in_leaf": 1e-3,
    "lambda_l2": 10.0,
    "feature_fraction": 0.7,
    "lambdarank_truncation_level": 20,
    "monotone_constraints_method": "advanced",
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
"""Small trees and few of them: lists are hundreds, with one positive each."""


@dataclass(frozen=True)
class Learnt:
    """A model and where it came from.

    Attributes:
        method: which.
        linear: of the methods ranker and linear.
        trees: of lambdamart, LightGBM's text.
        penalty: of linear.
        cross_validated: NDCG@10 by method, mean over the lists of all folds.
        lists: that it was learnt from.
    """

    method: Method
    linear: Linear | None = None
    trees: str | None = None
    penalty: float | None = None
    cross_validated: Mapping[str, float] | None = None
    lists: int = 0


def learn(
    lists: Sequence[BlendList],
    names: Sequence[str],
    method: Literal["auto", "linear", "lambdamart"],
    rising: Sequence[str],
    falling: Sequence[str],
    seed: int,
    also: Sequence[BlendList] = (),
) -> Learnt:
    """Choose by cross-validation, and learn from all lists.

    Args:
        lists: those without a positive teach nothing and are left out.
        names: of the features.
        method: auto: choose; else this one, whatever cross-validation says.
        rising: features that may only raise the score, falling: only lower it; unknown names are ignored.
        falling: see rising.
        seed: of folds and trees.
        also: each of the lists once more, as they are served where the ranker does not read all; learnt from beside
            the others, and what cross-validation looks at.
    """
    usable, served = _usable(lists), _usable(also)
    alone = Learnt("ranker", ranker_alone(names), lists=len(usable))
    if len(usable) < FEWEST_LISTS:
        return alone
    signs = signs_of(names, rising, falling)
    folds = folds_of(usable, seed)
    ranker = np.array([_ndcg_of(one, _ranker_order(one)) for one in served or usable])
    out_of_fold = partial(_out_of_fold, usable, served, folds)
    sums = {one: out_of_fold(partial(_sum_score, names, signs, one)) for one in PENALTIES}
    penalty = max(PENALTIES, key=lambda one: float(sums[one].mean()))
    found = {"ranker": float(ranker.mean()), "linear": float(sums[penalty].mean())}
    chosen: Method = "linear" if found["linear"] > found["ranker"] else "ranker"
    if method == "lambdamart" or (method == "auto" and len(usable) >= FEWEST_FOR_TREES):
        trees = out_of_fold(partial(_tree_score, names, signs, seed))
        found["lambdamart"] = float(trees.mean())
        gained = trees - (sums[penalty] if chosen == "linear" else ranker)
        if gained.mean() > gained.std() / np.sqrt(len(gained)):
            chosen = "lambdamart"
    chosen = chosen if method == "auto" else method
    if chosen == "ranker":
        return Learnt("ranker", alone.linear, cross_validated=found, lists=len(usable))
    return refit(Learnt(chosen, None, None, penalty, found, len(usable)), [*usable, *served], names, signs, seed)


def refit(
    learnt: Learnt, lists: Sequence[BlendList], names: Sequence[str], signs: NDArray[np.int64], seed: int
) -> Learnt:
    """The same method with the same penalty, learnt from these lists."""
    usable = _usable(lists)
    if learnt.method == "linear":
        return replace(learnt, linear=fit_linear(usable, names, signs, learnt.penalty or PENALTIES[0]), trees=None)
    if learnt.method == "lambdamart":
        return replace(learnt, linear=None, trees=fit_trees(usable, names, signs, seed), penalty=None)
    return learnt


def signs_of(names: Sequence[str], rising: Sequence[str], falling: Sequence[str]) -> NDArray[np.int64]:
    """[names] 1 of what may only raise the score, -1 of what may only lower it, else 0."""
    return np.array([(name in rising) - (name in falling) for name in names], dtype=np.int64)


def ranker_alone(names: Sequence[str]) -> Linear:
    """The ranker's order as a weighted sum."""
    ones = [1.0 if name == RANKER else 0.0 for name in names]
    zeros = [0.0] * len(names)
    return Linear(means=zeros, scales=[1.0] * len(names), weights=ones, unknown=zeros)


def fit_linear(lists: Sequence[BlendList], names: Sequence[str], signs: NDArray[np.int64], penalty: float) -> Linear:
    """The weighted sum whose softmax makes the positives likeliest, with a quadratic penalty towards the ranker."""
    rows, starts = _stacked(lists)
    known = ~np.isnan(rows)
    counts = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, rows, 0.0).astype(np.float64)
    means = filled.sum(axis=0) / counts
    scales = np.sqrt((np.where(known, filled - means, 0.0) ** 2).sum(axis=0) / counts)
    scales[scales < 1e-9] = 1.0  # a feature that never changes
    values = np.where(known, (filled - means) / scales, 0.0)
    design = np.hstack([values, (~known).astype(np.float64)])
    features = len(names)
    prior = np.zeros(2 * features)
    if RANKER + Z in names:
        place = names.index(RANKER + Z)
        prior[place] = scales[place]
    positives = starts[:-1] + np.array([one.positive for one in lists], dtype=np.int64)
    lengths = np.diff(starts)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = design @ weights
        tops = np.repeat(np.maximum.reduceat(scores, starts[:-1]), lengths)
        odds = np.exp(scores - tops)
        sums = np.repeat(np.add.reduceat(odds, starts[:-1]), lengths)
        chances = odds / sums
        away = weights - prior
        value = -np.log(np.maximum(chances[positives], 1e-300)).sum() + penalty * len(lists) * (away @ away) / 2
        chances[positives] -= 1.0
        return float(value), design.T @ chances + penalty * len(lists) * away

    bounds = [(0.0 if sign > 0 else None, 0.0 if sign < 0 else None) for sign in signs] + [(None, None)] * features
    found = minimize(loss, np.clip(prior, *_limits(bounds)), jac=True, method="L-BFGS-B", bounds=bounds)
    weights, unknown = found.x[:features], found.x[features:]
    return Linear(means=means.tolist(), scales=scales.tolist(), weights=weights.tolist(), unknown=unknown.tolist())


def fit_trees(lists: Sequence[BlendList], names: Sequence[str], signs: NDArray[np.int64], seed: int) -> str:
    """LambdaMART, as LightGBM's text."""
    import lightgbm

    rows, starts = _stacked(lists)
    labels = np.zeros(len(rows), dtype=np.int32)
    labels[starts[:-1] + np.array([one.positive for one in lists], dtype=np.int64)] = 1
    data = lightgbm.Dataset(
        rows, label=labels, group=np.diff(starts), feature_name=feature_columns(names), free_raw_data=False
    )
    settings = TREES | {"seed": seed % 2**31, "monotone_constraints": signs.tolist()}
    text: str = lightgbm.train(settings, data, num_boost_round=ROUNDS).model_to_string()
    return text


def _sum_score(
    names: Sequence[str], signs: NDArray[np.int64], penalty: float, lists: Sequence[BlendList]
) -> Callable[[Matrix], Matrix]:
    return LinearModel(fit_linear(lists, names, signs, penalty)).score


def _tree_score(
    names: Sequence[str], signs: NDArray[np.int64], seed: int, lists: Sequence[BlendList]
) -> Callable[[Matrix], Matrix]:
    import lightgbm

    booster = lightgbm.Booster(model_str=fit_trees(lists, names, signs, seed))
    return lambda features: np.asarray(booster.predict(features, num_threads=1), dtype=np.float32)


def _usable(lists: Sequence[BlendList]) -> list[BlendList]:
    return [one for one in lists if one.positive is not None]


def folds_of(lists: Sequence[BlendList], seed: int) -> NDArray[np.int64]:
    """[lists] the fold of each; a user's lists are all in one."""
    users = [one.moment.example_id.removesuffix(WITHHELD) for one in lists]
    names = list(dict.fromkeys(users))
    fold_of = dict(zip(names, (np.random.default_rng(seed).permutation(len(names)) % FOLDS).tolist(), strict=True))
    return np.array([fold_of[user] for user in users], dtype=np.int64)


def _out_of_fold(
    lists: Sequence[BlendList],
    served: Sequence[BlendList],
    folds: NDArray[np.int64],
    fit: Callable[[Sequence[BlendList]], Callable[[Matrix], Matrix]],
) -> NDArray[np.float64]:
    """NDCG@10 of each list, as it is served, under a model that was learnt from the other folds."""
    found, judged = np.zeros(len(lists)), served or lists
    for fold in range(FOLDS):
        others = np.flatnonzero(folds != fold)
        score = fit([of[number] for of in (lists, served) if of for number in others])
        for number in np.flatnonzero(folds == fold):
            found[number] = _ndcg_of(judged[number], score(judged[number].features))
    return found


def _ranker_order(one: BlendList) -> Matrix:
    """[candidates] the ranker's scores; what it did not read lies behind the rest, as retrieval has it."""
    if not np.isnan(one.logits).any():
        return one.logits
    assert one.candidates is not None, "a list that was made here"
    order = np.lexsort((-one.candidates.fused, -np.nan_to_num(one.logits, nan=-np.inf)))
    places = np.empty(len(order), dtype=np.float32)
    places[order] = np.arange(len(order))
    return -places


def _ndcg_of(one: BlendList, scores: Matrix) -> float:
    labels = np.zeros(len(scores))
    labels[one.positive] = 1.0
    return ndcg(scores, labels)


def _stacked(lists: Sequence[BlendList]) -> tuple[Matrix, NDArray[np.int64]]:
    """All rows below one another, and where each list starts, with the end as the last."""
    starts = np.concatenate([[0], np.cumsum([len(one.ids) for one in lists])]).astype(np.int64)
    return np.concatenate([one.features for one in lists]), starts


def _limits(bounds: Sequence[tuple[float | None, float | None]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low = np.array([-np.inf if low is None else low for low, _ in bounds])
    high = np.array([np.inf if high is None else high for _, high in bounds])
    return low, high
