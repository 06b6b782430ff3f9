"""What the rest needs of a blend."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.catalogue.interface import Candidates


class Blend(Protocol):
    """Orders candidates; the artifact of the stage ``blend`` is one."""

    artifact: str
    names: tuple[str, ...]
    """of the features, in their order"""
    orders_unranked: bool
    """whether it also orders candidates that the ranker was not asked about, better than retrieval does"""
    ranked: int
    """candidates that the ranker reads, the first so many, whose lists were judged as good as whole ones; 0: all"""

    def first_order(self, candidates: Candidates) -> NDArray[np.int64] | None:
        """[candidates] places, in the order in which the ranker is to read them; None: as retrieval has them."""

    def features(self, candidates: Candidates, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """[candidates, features]; the same when it is learnt and when it serves. NaN is: not known.

        Args:
            candidates: as retrieval gave them.
            logits: the ranker's, one per candidate.
        """

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[candidates], higher is better; at most 1 ms for 200."""

    def parts(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[candidates, features] what each feature adds to the score, as differences to the average candidate."""
