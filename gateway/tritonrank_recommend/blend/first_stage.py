"""The first of two stages: all candidates in an order that needs no ranker, so that the ranker reads the first alone.

A weighted sum of what retrieval knows of a candidate, learnt from the same lists as the blend. Retrieval's own order is
fused by fixed weights; the sum has learnt which source is right how often, and so brings more of what users go on to
like among the first.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.blend.features import FIELD, RANKER, feature_matrix
from tritonrank_recommend.blend.models import Linear, LinearModel
from tritonrank_recommend.catalogue.interface import Candidates


class FirstStageFile(msgspec.Struct, frozen=True, kw_only=True):
    """What blend.json holds of it.

    Attributes:
        features: names, in their order; none of the ranker and none of the items' fields.
        linear: the sum.
    """

    features: list[str]
    linear: Linear


class FirstStage:
    """Orders candidates before the ranker has read any."""

    def __init__(self, file: FirstStageFile) -> None:
        self._names, self._model = tuple(file.features), LinearModel(file.linear)

    def order(self, candidates: Candidates) -> NDArray[np.int64]:
        """[candidates] their places in retrieval's order, best first; equal ones stay as they are."""
        unread = np.full(len(candidates.ids), np.nan, dtype=np.float32)
        scores = self._model.score(feature_matrix(self._names, candidates, unread))
        return np.argsort(-scores, kind="stable")


def first_stage_features(names: Sequence[str]) -> list[str]:
    """Those of a blend's features that are known of a candidate that nobody read."""
    return [name for name in names if not name.startswith((RANKER, FIELD))]
