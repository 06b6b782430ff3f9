"""What a ranking costs and is worth: seconds of a replica by the number of candidates, and NDCG kept by depth.

Cost is a straight line: so many seconds for a request, whatever is in it, and so many for each candidate. Both are
measured on the server (``measure.py``). What a depth is worth stands in the artifact (``levels.json``); a file of both
can be kept and given again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DEFAULT = Path(__file__).with_name("cost.json")
RIGHT_SHARE = 0.25
"""That a measured point may lie off the line; more, and the cost is no line."""


class CostError(ValueError):
    """A cost cannot be used; the message names file and key."""


class Cost(BaseModel):
    """Of one replica.

    NDCG shares are of the whole list's: 1 at the most candidates, and what retrieval's order alone keeps at 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds_per_request: float = Field(ge=0, description="of a replica, whatever the request holds")
    seconds_per_candidate: float = Field(gt=0)
    ndcg_share: dict[int, float] = Field(
        description="by candidates that the ranker sees, the rest in retrieval's order: NDCG over that of all of them"
    )
    start_seconds: float = Field(gt=0, description="from the wish for a replica to its first answer")
    queue_seconds: float = Field(gt=0, description="of work that may wait at a replica; what finds more is refused")
    measured: str = Field("", description="where the figures come from, for people")

    @model_validator(mode="after")
    def _depths_fit(self) -> Self:
        if 0 not in self.ndcg_share or len(self.ndcg_share) < 2:
            raise ValueError("ndcg_share: needs the share at 0, which is retrieval alone, and at one depth more")
        if any(not 0 <= share <= 1.5 or depth < 0 for depth, share in self.ndcg_share.items()):
            raise ValueError("ndcg_share: depths are 0 or more, shares between 0 and 1.5")
        return self

    @property
    def most_candidates(self) -> int:
        """Of a whole ranking."""
        return max(self.ndcg_share)

    def seconds(self, candidates: int) -> float:
        """Of a replica, for a ranking of so many; 0 for none, which no replica sees."""
        return self.seconds_per_request + self.seconds_per_candidate * candidates if candidates else 0.0

    def share(self, candidates: int) -> float:
        """Of the whole ranking's NDCG, in a straight line between the depths that are known."""
        depths = sorted(self.ndcg_share)
        return float(np.interp(candidates, depths, [self.ndcg_share[depth] for depth in depths]))


def read_cost(path: Path = DEFAULT) -> Cost:
    """A cost from its file.

    Raises:
        CostError: missing, or not a cost; all faults with their keys.
    """
    try:
        return Cost.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CostError(f"{path}: {error.strerror}. Measure one: python -m loadtests simulate ARTIFACTS") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors())
        raise CostError(f"{path}: {faults}") from None


def line_of(seconds: Mapping[int, float]) -> tuple[float, float]:
    """(seconds per request, seconds per candidate) of the line through what was measured.

    Args:
        seconds: of a replica, by candidates; two numbers of them at least.

    Raises:
        CostError: the points lie on no line.
    """
    sizes, found = np.array(list(seconds), float), np.array(list(seconds.values()), float)
    each, fixed = np.polyfit(sizes, found, 1)
    if fixed < 0:  # a line through nothing: what is left over is noise
        fixed, each = 0.0, float(sizes @ found / (sizes @ sizes))
    if not each > 0 or np.max(np.abs(fixed + each * sizes - found) / found) > RIGHT_SHARE:
        told = ", ".join(f"{size}: {1e3 * one:.1f} ms" for size, one in seconds.items())
        raise CostError(f"cost by candidates is no straight line ({told}); measure again on a quieter machine")
    return float(fixed), float(each)
