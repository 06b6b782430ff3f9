"""The request that shows whether a replica is well.

With the `golden.json` of the artifact's repository the right scores are known. Without it replicas are held to each
other: the first answer of an artifact is what every later answer of that artifact has to agree with.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonrank_gateway.ranking import Ranking, RankRequest

TOLERANCE = 0.05
"""Between two machines of one artifact where none is known: the last digits of a matrix product depend on the
processor, and one that differs before a rounding to INT8 moves a logit by hundredths. A broken one moves it by far."""
MOST_ARTIFACTS = 8
"""Whose first answers are remembered: a rollout has two."""
ITEMS = (
    "Waterproof hiking boots with a wide fit",
    "Cordless drill, 18 V, two batteries",
    "A history of the night sky for beginners",
    "Zelt für zwei Personen, 2,1 kg",
)


class WrongAnswerError(Exception):
    """A replica answered the golden request with something else than it should."""


@dataclass
class GoldenRequest:
    """A small request, and what its answers are held to.

    Attributes:
        query, history, items: its texts.
        artifact: whose scores are known; "" for none.
        scores: those of the items, in their order.
        tolerance: how far an answer may be from them.
    """

    query: str = "boots for a mountain hike"
    history: Sequence[str] = ("Trekking poles, carbon",)
    items: Sequence[str] = ITEMS
    artifact: str = ""
    scores: Sequence[float] = ()
    tolerance: float = TOLERANCE
    _first_answers: "OrderedDict[str, list[float]]" = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        if self.artifact:
            self._first_answers[self.artifact] = list(self.scores)

    @classmethod
    def read(cls, path: Path) -> "GoldenRequest":
        """The first case of a repository's golden.json.

        Raises:
            ValueError: the file is not one; the message names it.
        """
        try:
            golden = json.loads(path.read_text(encoding="utf-8"))
            case = golden["cases"][0]
            return cls(
                query=str(case["query"]),
                history=[str(one) for one in case["history"]],
                items=[str(one) for one in case["items"]],
                artifact=str(golden["artifact"]),
                scores=[float(score) for score in case["scores"]],
                tolerance=float(golden["tolerance"]),
            )
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{path}: not a golden.json ({type(error).__name__}: {error}); it lies in the artifact's repository"
            ) from error

    def request(self, deadline_s: float) -> RankRequest:
        """The request as a backend takes it."""
        return RankRequest(query=self.query, history=list(self.history), items=list(self.items), deadline_s=deadline_s)

    def check(self, answer: Ranking) -> None:
        """Compare an answer with what is known.

        Raises:
            WrongAnswerError: a score is missing, is no number, or is another one.
        """
        if sorted(answer.indices) != list(range(len(self.items))):
            raise WrongAnswerError(f"golden request: {len(answer.indices)} places for {len(self.items)} items")
        by_item: list[Any] = [score for _, score in sorted(zip(answer.indices, answer.logits, strict=True))]
        if not all(math.isfinite(score) for score in by_item):
            raise WrongAnswerError("golden request: a score is not a finite number")
        expected = self._first_answers.setdefault(answer.artifact, by_item)
        while len(self._first_answers) > MOST_ARTIFACTS:
            self._first_answers.popitem(last=False)
        furthest = max(abs(found - known) for found, known in zip(by_item, expected, strict=True))
        if furthest > self.tolerance:
            raise WrongAnswerError(
                f"golden request: scores of artifact {answer.artifact} are {furthest:.3g} from those known; "
                f"{self.tolerance:.3g} allowed"
            )
