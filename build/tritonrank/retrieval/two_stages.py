"""A blend in two stages: the first chooses what the ranker reads, the second orders what came of it.

The second learns from lists as they are then served, most of whose candidates the ranker never read, beside the same
lists read whole: learnt from whole lists alone it would take what was not read for average.

Whether reading the first alone may stand is judged on the test users and, so that there are twice as many, on the users
whose lists were learnt from, each by two stages that learnt from the others. A user counts once, with both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tritonrank_recommend.blend.features import feature_matrix
from tritonrank_recommend.blend.first_stage import FirstStage, FirstStageFile, first_stage_features
from tritonrank_recommend.blend.models import LinearModel, Model, TreeModel
from tritonrank_recommend.blend.reader import ServedBlend

from tritonrank.judge.gate import Drop, paired_drop
from tritonrank.judge.metrics import ranking
from tritonrank.retrieval.blend_learning import Learnt, folds_of, learn, refit, signs_of
from tritonrank.retrieval.blend_lists import WITHHELD, BlendList
from tritonrank.retrieval.levels import METRIC, served_order
from tritonrank.retrieval.rankings import accuracy, places_of


@dataclass(frozen=True)
class Lessons:
    """What is learnt from.

    Attributes:
        lists: of the validation users, read whole.
        names: of their features.
        rising, falling: see ``blend_learning.learn``.
        seed: of the recipe.
    """

    lists: Sequence[BlendList]
    names: Sequence[str]
    rising: Sequence[str]
    falling: Sequence[str]
    seed: int


@dataclass(frozen=True)
class Stages:
    """What was learnt.

    Attributes:
        names: of the features.
        blend: the second stage, or the only one.
        first: None where retrieval's order says what is read, or all is.
        ranked: candidates that the ranker reads; 0: all.
    """

    names: Sequence[str]
    blend: Learnt
    first: Learnt | None = None
    ranked: int = 0

    @property
    def first_file(self) -> FirstStageFile | None:
        """As blend.json has it."""
        if self.first is None or self.first.linear is None:
            return None
        return FirstStageFile(features=first_stage_features(self.names), linear=self.first.linear)

    def served(self, artifact: str = "", *, orders_unranked: bool = False) -> ServedBlend:
        """As the gateway will have them."""
        first = None if self.first_file is None else FirstStage(self.first_file)
        return ServedBlend(
            artifact,
            self.blend.method,
            self.names,
            _model(self.blend),
            orders_unranked=orders_unranked,
            ranked=self.ranked,
            first=first,
        )


def learn_stages(lessons: Lessons, method: Literal["auto", "linear", "lambdamart"], ranked: int) -> Stages:
    """Learn one stage, or two where the ranker is to read ``ranked`` candidates alone."""
    lists, names = lessons.lists, lessons.names
    rising, falling, seed = lessons.rising, lessons.falling, lessons.seed
    if not ranked:
        return Stages(names, learn(lists, names, method, rising, falling, seed))
    found = learn(_unread(lists, names), first_stage_features(names), "linear", rising, falling, seed)
    first = found if found.method == "linear" else None
    stages = Stages(names, found, first, ranked)
    also = [_as_served(one, stages) for one in lists]
    return replace(stages, blend=learn(lists, names, method, rising, falling, seed, also))


def fall(
    lessons: Lessons, stages: Stages, tested: Sequence[BlendList], budget: float, *, orders_unranked: bool
) -> Drop:
    """How far NDCG@10 over the whole catalogue falls where the ranker reads the first candidates alone.

    Args:
        lessons: that the stages learnt from.
        stages: two of them.
        tested: lists of the test users, read whole.
        budget: of the gate.
        orders_unranked: see ``ServedBlend``.

    Returns:
        The fall from a blend that learnt from whole lists alone, and reads them whole.
    """
    whole = learn_stages(lessons, "auto" if stages.blend.method == "ranker" else stages.blend.method, 0)
    pairs = _pairs(tested, stages, whole, orders_unranked)
    folds = folds_of(lessons.lists, lessons.seed)
    for fold in np.unique(folds):
        others = replace(lessons, lists=[one for one, own in zip(lessons.lists, folds, strict=True) if own != fold])
        held_out = [
            one
            for one, own in zip(lessons.lists, folds, strict=True)
            if own == fold and not one.moment.example_id.endswith(WITHHELD)
        ]
        pairs += _pairs(held_out, _again(stages, others), _again(whole, others), orders_unranked)
    _, users = np.unique([user for user, _, _ in pairs], return_inverse=True)
    values = np.array([values for _, *values in pairs])
    after, before = (np.bincount(users, weights=of).astype(np.float64) for of in values.T)
    return paired_drop(after, before, budget, seed=lessons.seed)


def _again(stages: Stages, lessons: Lessons) -> Stages:
    """The same, learnt from other lists."""
    lists, names = lessons.lists, lessons.names
    signs = signs_of(names, lessons.rising, lessons.falling)
    if not stages.ranked:
        return replace(stages, blend=refit(stages.blend, lists, names, signs, lessons.seed))
    if stages.first is not None:
        own = first_stage_features(names)
        first_signs = signs_of(own, lessons.rising, lessons.falling)
        first = refit(stages.first, _unread(lists, names), own, first_signs, lessons.seed)
        stages = replace(stages, first=first)
    also = [_as_served(one, stages) for one in lists]
    return replace(stages, blend=refit(stages.blend, [*lists, *also], names, signs, lessons.seed))


def _pairs(
    lists: Sequence[BlendList], stages: Stages, whole: Stages, orders_unranked: bool
) -> list[tuple[str, float, float]]:
    """Of each list the user, and NDCG@10 as the stages serve it and as the blend has it that reads all."""
    served, model, pairs = stages.served(orders_unranked=orders_unranked), _model(whole.blend), []
    for one in lists:
        scores = model.score(one.features)
        orders = served_order(served, one), [one.ids[place] for place in ranking(scores)]
        values = accuracy(places_of(orders, [one.moment] * 2))[METRIC]
        pairs.append((one.moment.example_id.rpartition(":")[0], float(values[0]), float(values[1])))
    return pairs


def _unread(lists: Sequence[BlendList], names: Sequence[str]) -> list[BlendList]:
    """The lists as they are before the ranker has read any."""
    places = [names.index(name) for name in first_stage_features(names)]
    return [replace(one, features=one.features[:, places], logits=np.zeros_like(one.logits)) for one in lists]


def _as_served(one: BlendList, stages: Stages) -> BlendList:
    """A list of which the ranker has read the first candidates alone."""
    assert one.candidates is not None, "a list that was made here"
    first = stages.first_file
    order = np.arange(len(one.ids)) if first is None else FirstStage(first).order(one.candidates)
    logits = np.full(len(one.ids), np.nan, dtype=np.float32)
    logits[order[: stages.ranked]] = one.logits[order[: stages.ranked]]
    features: NDArray[np.float32] = feature_matrix(stages.names, one.candidates, logits)
    return replace(one, features=features, logits=logits)


def _model(learnt: Learnt) -> Model:
    if learnt.trees is not None:
        return TreeModel(learnt.trees)
    assert learnt.linear is not None, "a model is one or the other"
    return LinearModel(learnt.linear)
