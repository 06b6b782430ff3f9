"""What one arrival of a load does: rank a list, or the next step of somebody's visit (``visits.py``)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tritonrank_client import RankClient, RankResult, Retry

from loadtests.checks import GoldenRequest, check_golden, check_ranking
from loadtests.dialects import Ranker, open_dialect
from loadtests.workload import WorkloadRequest


@dataclass(frozen=True)
class Answer:
    """A right answer, checked.

    Attributes:
        artifact: what scored.
        bytes: of request and answer.
        steps: milliseconds that the server says its steps took.
        level: at which a gateway made the list; empty where none was made.
        afterwards: what the visitor does next without waiting for it; gives milliseconds by name, or raises.
    """

    artifact: str
    bytes: int
    steps: Mapping[str, float] = field(default_factory=dict)
    afterwards: Callable[[], Mapping[str, float]] | None = None
    level: str = ""


class Caller(Protocol):
    """Sends one request and checks what comes back."""

    def call(self, request: WorkloadRequest | GoldenRequest, seconds: float) -> Answer:
        """The checked answer.

        Raises:
            RankError: there was none.
            WrongAnswerError: it is not right.
        """


class RankCaller:
    """Ranks lists of candidates.

    Args:
        url: of the server.
        dialect: of a gateway; empty: tensors.
    """

    def __init__(self, url: str, dialect: str) -> None:
        # One attempt: what the server refuses is counted, and a retry would be load that nobody planned.
        self._ranker: Ranker = open_dialect(url, dialect) if dialect else RankClient(url, retry=Retry(attempts=1))

    def call(self, request: WorkloadRequest | GoldenRequest, seconds: float) -> Answer:
        """See `Caller`."""
        item_ids = request.item_ids if isinstance(request, WorkloadRequest) else None
        result = self._ranker.rank(
            query=request.query, history=request.history, items=request.items, item_ids=item_ids, timeout=seconds
        )
        if isinstance(request, GoldenRequest):
            check_golden(result, request)
        else:
            check_ranking(result, len(request.items))
        return Answer(result.artifact, request_bytes(request) + _answer_bytes(result))


def request_bytes(request: WorkloadRequest | GoldenRequest) -> int:
    """Of the request's tensors: each text with its length in four bytes, and top_k."""
    texts: Sequence[str] = [request.query, *request.history, *request.items]
    if isinstance(request, WorkloadRequest):
        texts = [*texts, *request.item_ids]
    return sum(4 + len(text.encode()) for text in texts) + 4


def _answer_bytes(result: RankResult) -> int:
    """Of indices and scores, four bytes each, and the artifact's name."""
    return 8 * len(result.ranking) + 4 + len(result.artifact.encode())
