"""Lists of several sources become one, by reciprocal rank (Cormack, Clarke, Buettcher 2009)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

RANK_OFFSET = 60
"""The paper's k: how little the first ranks of one list outweigh what several lists agree on."""


def fuse(
    lists: Mapping[str, NDArray[np.int64]], weights: Mapping[str, float], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, NDArray[np.int32]]]:
    """Sum of weight / (60 + rank) over the lists, ranks from 1.

    Args:
        lists: by source the places of items, best first, each once.
        weights: of the sources; 1 where one is not named.
        size: the most to be returned.

    Returns:
        places best first (ties: smaller places first), their fused scores, and by source the rank of each from 0, -1
        where the source does not have it.
    """
    nothing = np.zeros(0, dtype=np.int64)
    places = np.unique(np.concatenate([nothing, *lists.values()]))
    fused = np.zeros(len(places))
    ranks = {}
    for source, found in lists.items():
        rank = np.full(len(places), -1, dtype=np.int32)
        where = np.searchsorted(places, found)
        rank[where] = np.arange(len(found), dtype=np.int32)
        fused[where] += weights.get(source, 1.0) / (RANK_OFFSET + 1 + np.arange(len(found)))
        ranks[source] = rank
    best = np.argsort(-fused, kind="stable")[:size]
    return places[best], fused[best].astype(np.float32), {source: rank[best] for source, rank in ranks.items()}
