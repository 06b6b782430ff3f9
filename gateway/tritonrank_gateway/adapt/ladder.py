"""The levels at which lists are ranked, the best first, and what each costs in quality.

    full                 all candidates, by the ranker that is served
    candidates-100 ...   only the first so many of retrieval's order; the rest follows in that order
    smaller              another, smaller ranker, for as few candidates
    retrieval            nobody is asked; marked degraded

What a level costs in quality was measured when the build was made (``tritonrank_recommend/blend/levels.py``).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tritonrank_recommend.blend import LevelsFile

SHARES = (0.75, 0.5, 0.25, 0.125)
"""Of the candidates, one level each."""
UNKNOWN = math.nan
SMALLER_COST = 0.3
"""The smaller ranker's work in that of the one that is served, until its speed was measured."""

Model = Literal["served", "smaller", "none"]


@dataclass(frozen=True, slots=True)
class Level:
    """One level.

    Attributes:
        number: 0 is full.
        name: for logs and labels; one of a few.
        candidates: the first so many of a list are ranked; None for all, 0 for none.
        model: which ranker is asked.
        quality: NDCG@10 in that of a full list; NaN where it was not measured.
    """

    number: int
    name: str
    candidates: int | None = None
    model: Model = "served"
    quality: float = UNKNOWN

    def ranked(self, items: int) -> int:
        """How many of so many items are ranked."""
        return items if self.candidates is None else min(items, self.candidates)

    def cost(self, items: int, *, in_order: bool = True) -> float:
        """Work for a request in that of the whole of it by the ranker that is served.

        Args:
            items: of the request, at least one.
            in_order: whether they come in an order that stands where nobody ranks; otherwise all are ranked.
        """
        if not in_order:
            return SMALLER_COST if self.model == "smaller" else 1.0
        return self.ranked(items) / items * (SMALLER_COST if self.model == "smaller" else 1.0)


def ladder_of(candidates: int, floor: int, *, has_smaller: bool = False, file: LevelsFile | None = None) -> list[Level]:
    """The levels of a gateway, best first.

    Args:
        candidates: of a full list.
        floor: fewest that are ranked.
        has_smaller: whether a smaller ranker is loaded.
        file: what was measured.
    """
    depths = sorted({max(floor, round(share * candidates)) for share in SHARES}, reverse=True)
    depths = [depth for depth in depths if depth < candidates]
    fewest = depths[-1] if depths else candidates
    found = [Level(0, "full", quality=_quality(file, candidates))]
    for depth in depths:
        found.append(Level(len(found), f"candidates-{depth}", depth, quality=_quality(file, depth)))
    if has_smaller:
        # What the smaller ranker loses where it ranks all, it is taken to lose here, too.
        quality = _quality(file, fewest) * (min(file.by_rung.values()) if file and file.by_rung else UNKNOWN)
        found.append(Level(len(found), "smaller", fewest, "smaller", quality))
    return [*found, Level(len(found), "retrieval", 0, "none", UNKNOWN if file is None else file.retrieval)]


def _quality(file: LevelsFile | None, depth: int) -> float:
    """Between the depths that were measured, along a line."""
    if file is None:
        return UNKNOWN
    known = sorted((int(name), share) for name, share in ({"0": file.retrieval} | file.by_candidates).items())
    known = [*(pair for pair in known if pair[0] < file.full), (file.full, 1.0)]
    for (low, below), (high, above) in pairwise(known):
        if low <= depth <= high:
            return below + (above - below) * (depth - low) / (high - low)
    return known[-1][1]
