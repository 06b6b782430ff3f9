"""Is an answer right? A fast server with wrong rankings must not pass a load test.

Every answer is held against its request: one score for each candidate, each candidate once, best first, all numbers
finite. Golden requests go further: their scores are known from the artifact in process, and the answer has to have
them. They travel among the load's requests, because some mistakes (rows mixed up between requests of one batch) only
happen under load. ``assemble`` writes golden.json beside the models; its format is read here rather than imported,
because load tests carry the client and not the pipeline.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tritonrank_client import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RankError,
    RankResult,
    ServerFault,
    Unavailable,
)

from loadtests.results import FailureKind
from loadtests.workload import WorkloadError

GOLDEN_FILE = "golden.json"
TOLERANCE = 1e-4
"""Largest difference of a golden score, where golden.json names none; the same as when the server starts."""
BROKEN_CONTRACT = "breaks the contract"
"""How the client words an answer that is not a ranking of the request."""


class WrongAnswerError(RuntimeError):
    """The server answered, and the answer is not right."""


@dataclass(frozen=True)
class GoldenRequest:
    """A request with the artifact's own scores, one for each item in the order of the request."""

    query: str
    history: list[str]
    items: list[str]
    scores: list[float]
    tolerance: float = TOLERANCE


def check_ranking(result: RankResult, candidates: int) -> None:
    """Raise unless all candidates came back, each once, best first, with finite scores.

    Raises:
        WrongAnswerError: says what is wrong.
    """
    indices, scores = result.indices, result.scores
    if sorted(indices) != list(range(candidates)):
        raise WrongAnswerError(f"{len(set(indices))} different candidates ranked; the request has {candidates}")
    if not all(map(math.isfinite, scores)):
        raise WrongAnswerError("a score is not finite")
    if any(better < worse for better, worse in pairwise(scores)):
        raise WrongAnswerError("scores are not in descending order")


def check_golden(result: RankResult, golden: GoldenRequest) -> None:
    """Raise unless the answer has the known scores.

    Raises:
        WrongAnswerError: says by how much a score differs.
    """
    check_ranking(result, len(golden.items))
    found = dict(zip(result.indices, result.scores, strict=True))
    worst = max(abs(found[place] - expected) for place, expected in enumerate(golden.scores))
    if worst > golden.tolerance:
        raise WrongAnswerError(f"golden request: a score differs by {worst:.1e} (tolerance {golden.tolerance:.0e})")


def failure_kind(error: Exception) -> FailureKind:
    """Which kind of failure a call met."""
    if isinstance(error, WrongAnswerError) or (isinstance(error, ServerFault) and BROKEN_CONTRACT in str(error)):
        return "wrong"
    kinds: Sequence[tuple[type[RankError], FailureKind]] = (
        (Overloaded, "rejected"),
        (DeadlineExceeded, "expired"),
        (Unavailable, "unavailable"),
        (InvalidRequest, "invalid"),
    )
    return next((kind for error_type, kind in kinds if isinstance(error, error_type)), "fault")


def read_golden(path: Path) -> list[GoldenRequest]:
    """The golden requests of a repository.

    Args:
        path: golden.json, or a folder that has it: a repository or artifacts/<recipe>.

    Raises:
        WorkloadError: missing or damaged; says what to do.
    """
    file = next((place for place in (path / "repository" / GOLDEN_FILE, path / GOLDEN_FILE) if place.is_file()), path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        cases, tolerance = found["cases"], float(found.get("tolerance", TOLERANCE))
        golden = [GoldenRequest(**(case | {"tolerance": tolerance})) for case in cases]
        if not all(one.items and len(one.items) == len(one.scores) for one in golden):
            raise ValueError("a case without items, or without one score for each")
    except OSError as error:
        raise WorkloadError(f"{file}: {error.strerror}. Assemble the repository: tritonrank assemble RECIPE") from None
    except (ValueError, KeyError, TypeError) as error:
        raise WorkloadError(f"{file}: not golden requests ({error}). Assemble the repository again") from None
    return golden
