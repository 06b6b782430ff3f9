"""What is asked of a live server, and the scorer that asks it: apart from the others (``scorers.py``), because the
image that serves has neither torch nor transformers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonrank_client import RankClient, RankError

from tritonrank.errors import ServerError


@dataclass(frozen=True)
class Request:
    """What a client sends: texts, history newest last."""

    query: str
    history: list[str]
    items: list[str]


class ServerScorer:
    """Asks a live server, through the client that users have.

    Raises:
        ServerError: a request was not answered.
    """

    def __init__(self, client: RankClient) -> None:
        self._client = client

    def score(self, request: Request) -> NDArray[np.float32]:
        try:
            result = self._client.rank(query=request.query, history=request.history, items=request.items)
        except RankError as error:
            raise ServerError(str(error)) from None
        scores = np.full(len(request.items), np.nan, dtype=np.float32)  # what is not answered must not look scored
        for ranked in result.ranking:
            scores[ranked.index] = ranked.score
        return scores
