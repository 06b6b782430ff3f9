"""Scores -> the order of an answer: the only definition, for the server and for a ranker in another process."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def best_first(scores: NDArray[np.float32], item_ids: Sequence[Hashable] | None, top_k: int) -> NDArray[np.int32]:
    """Places of the candidates in the order of the answer.

    Ties keep the order of the request. Candidates are merged only when the request says that they are the same item:
    then the best-scored one stays.

    Args:
        scores: (candidates,).
        item_ids: one per candidate, or None where the request has none.
        top_k: places at the most; 0 = all.
    """
    order = np.argsort(-scores, kind="stable")
    if item_ids is not None:
        firsts = {item_ids[place]: rank for rank, place in reversed(list(enumerate(order)))}
        order = order[sorted(firsts.values())]
    return np.asarray(order[:top_k] if top_k else order, dtype=np.int32)
