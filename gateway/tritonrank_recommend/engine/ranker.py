"""The ranker as the engine sees it: the gateway's backend, Triton from inside of Triton, or a model in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.blend.interface import Blend


@dataclass(frozen=True, slots=True)
class Scored:
    """What the ranker says.

    Attributes:
        logits: [items] float32, in the order of the request; of a ``SparingRanker`` those of the first items alone.
        artifact: what scored.
        blend: that was learned for it, where it has one of its own; None: the recommender's.
        repeating: another version that ranks the same items and is not heard; None: none does.
    """

    logits: NDArray[np.float32]
    artifact: str
    blend: Blend | None = None
    repeating: "Repeating | None" = None


class Repeating(Protocol):
    """Another version, whose list is compared with the one that was shown."""

    async def scored(self) -> Scored | None:
        """What it says of the same items; None where it said nothing."""

    def listed(self, shown: Sequence[str], other: Sequence[str]) -> None:
        """What was made of both: ids of items, best first."""


class Ranker(Protocol):
    """Raises tritonrank_client.RankError; its type says whose fault it is."""

    async def score(
        self, query: str, history: Sequence[str], items: Sequence[str], *, user: str = "", seconds: float | None = None
    ) -> Scored:
        """Score texts for a context.

        Args:
            query: may be empty.
            history: texts of items, newest last.
            items: texts.
            user: requests of one user go to the same replica.
            seconds: until nobody needs the answer any more.
        """


@runtime_checkable
class WarmingRanker(Ranker, Protocol):
    """A ranker that can be told of a context before there is anything to score."""

    async def warm(self, query: str, history: Sequence[str], *, user: str = "", seconds: float | None = None) -> None:
        """Compute and keep what belongs to the context alone, if that is possible; arguments as of ``score``. Nobody
        waits for it, and a failure is no matter."""


class SparedError(Exception):
    """A list is not ranked, because there is no time for it: its order stands."""


@runtime_checkable
class SparingRanker(Ranker, Protocol):
    """A ranker that may rank the first items of a list alone while there is more work than can be done in time."""

    @property
    def of_lists(self) -> Ranker:
        """Takes items in the order of retrieval; its ``Scored`` may hold fewer logits than items, at least one. Raises
        SparedError where none is ranked."""


@runtime_checkable
class InformedRanker(Ranker, Protocol):
    """A ranker that knows what its model reads."""

    @property
    def history_items(self) -> int | None:
        """Newest items of a history; None where that is not known (yet)."""
