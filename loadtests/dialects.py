"""Clients of the gateway's dialects, as applications that know no tensors send them: plain HTTP, a body of JSON.

Their answers are read back into the result that our own client gives, so that every check and every account is the
same. Only our own dialect carries a history; the others rank for the query alone.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args
from typing import Literal as Choice
from urllib.parse import urlsplit

from tritonrank_client import RankClient, RankedItem, RankResult, Retry, ServerFault

from loadtests.json_connections import JsonConnections
from loadtests.processes import LOOPBACK, Process
from loadtests.target import LiveServer

Dialect = Choice["own", "tei", "jina", "cohere", "vllm", "nim"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
Visits = Choice["visits"]
VISITS: Visits = "visits"
"""No dialect of lists to rank: visits to a gateway that recommends (``visits.py``)."""


class Ranker(Protocol):
    """What a load sends with: our own client, or one of a dialect."""

    def rank(
        self,
        *,
        items: Iterable[str],
        query: str = "",
        history: Iterable[str] = (),
        item_ids: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> RankResult: ...


@dataclass(frozen=True)
class _Form:
    """A dialect: its path, its body, and where an answer has index and score."""

    path: str
    body: Callable[[str, Sequence[str]], dict[str, Any]]
    places: Callable[[Any], list[dict[str, Any]]]
    score: str


FORMS: dict[str, _Form] = {
    "tei": _Form(
        "/rerank", lambda query, texts: {"query": query, "texts": texts}, lambda answer: list(answer), "score"
    ),
    "jina": _Form(
        "/v1/rerank",
        lambda query, texts: {"model": "any", "query": query, "documents": texts},
        lambda answer: list(answer["results"]),
        "relevance_score",
    ),
    "cohere": _Form(
        "/v2/rerank",
        lambda query, texts: {"model": "any", "query": query, "documents": texts},
        lambda answer: list(answer["results"]),
        "relevance_score",
    ),
    "vllm": _Form(
        "/rerank",
        lambda query, texts: {"model": "any", "query": query, "documents": texts},
        lambda answer: list(answer["results"]),
        "relevance_score",
    ),
    "nim": _Form(
        "/v1/ranking",
        lambda query, texts: {"query": {"text": query}, "passages": [{"text": text} for text in texts]},
        lambda answer: list(answer["rankings"]),
        "logit",
    ),
}


def open_dialect(url: str, dialect: str) -> Ranker:
    """A client for a gateway; one attempt for each call.

    Args:
        url: http://HOST:PORT of the gateway.
        dialect: one of DIALECTS.
    """
    if dialect == "own":
        return RankClient(f"gateway+{url}", retry=Retry(attempts=1))
    return DialectClient(url, FORMS[dialect])


class DialectClient:
    """See `Ranker`."""

    def __init__(self, url: str, form: _Form) -> None:
        self._connections, self._form = JsonConnections(url), form

    def rank(
        self,
        *,
        items: Iterable[str],
        query: str = "",
        history: Iterable[str] = (),
        item_ids: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> RankResult:
        """Rank the items for the query; history and ids have no place in these dialects.

        Raises:
            RankError: there was no ranking.
        """
        texts, began = list(items), time.perf_counter()
        body = self._form.body(query, texts)
        told = self._connections.post(self._form.path, body, 10.0 if timeout is None else timeout)
        return self._read(told.body, texts, told.artifact, began)

    def _read(self, told: bytes, texts: Sequence[str], artifact: str, began: float) -> RankResult:
        try:
            places = self._form.places(json.loads(told))
            ranking = tuple(
                RankedItem(place["index"], place[self._form.score], texts[place["index"]]) for place in places
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServerFault(f"the answer breaks the contract: {type(error).__name__} {error}") from error
        return RankResult(ranking, artifact, time.perf_counter() - began, 1)


@contextmanager
def open_gateway(server: LiveServer, log: Path, *options: str) -> Iterator[str]:
    """A gateway before a server, in a process of its own; gives its URL.

    Args:
        server: what it asks, over gRPC.
        log: of its output; its ready file lies beside.
        options: more flags.

    Raises:
        SystemFaultError: it did not start.
    """
    ready = log.with_suffix(".ready.json")
    ready.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "tritonrank_gateway", "--triton", urlsplit(server.grpc_url).netloc, "--host", LOOPBACK,
        "--port", "0", "--metrics-port", "0", "--ready-file", str(ready), "--no-access-log", *options,
    ]  # fmt: skip
    process = Process(command, log)
    try:
        process.wait_until(ready.is_file, "python -m tritonrank_gateway")
        yield str(json.loads(ready.read_text(encoding="utf-8"))["url"])
    finally:
        process.stop()
