"""What live servers answered, beside what was judged in process: ``live/live.json`` of a build."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tritonrank.errors import ArtifactError

LIVE = "live"
LIVE_FILE = "live.json"
LARGEST_DIFFERENCE = 1e-3
"""Of NDCG@10 between the live server and the judge in process."""
FEWEST_ALIKE = 0.99
"""Share of the requests whose ten best have to be the same, in the same order."""


@dataclass(frozen=True)
class LiveRung:
    """A served rung, judged from its answers."""

    name: str
    artifact: str
    examples: int
    ndcg: float
    """in process"""
    live_ndcg: float
    same_top10: float
    """share of the requests with the same ten best in the same order"""

    @property
    def passed(self) -> bool:
        return abs(self.live_ndcg - self.ndcg) <= LARGEST_DIFFERENCE and self.same_top10 >= FEWEST_ALIKE

    def as_row(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def read_live(root: Path) -> dict[str, LiveRung]:
    """What is recorded of a build, by artifact; nothing if it was never judged live.

    Raises:
        ArtifactError: the record is damaged.
    """
    path = root / LIVE / LIVE_FILE
    if not path.is_file():
        return {}
    names = [field.name for field in fields(LiveRung)]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["artifact"]: LiveRung(**{name: row[name] for name in names}) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: damaged ({error!r}). Delete {path.parent} and judge again: tritonrank evaluate RECIPE --live"
        ) from None
