"""vLLM: POST /score and /v1/score; /rerank (see `shared`). /v1/rerank and /v2/rerank of vLLM have Jina's and Cohere's
bodies and answers.

Source: vllm/entrypoints/pooling/scoring, 0.33. Scores are those that the checkpoint itself names, unless
`use_activation` says otherwise. Unknown fields are ignored, as vLLM does.
"""

import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from msgspec import Meta

from tritonrank_gateway.call import Asked, Call
from tritonrank_gateway.dialects.jina import results, usage
from tritonrank_gateway.documents import Document, items_of, text_of
from tritonrank_gateway.endpoint import Dialect, Route, add_route
from tritonrank_gateway.ranking import RankRequest
from tritonrank_gateway.refusal import Kind, Refusal

router = APIRouter()
Texts = str | dict[str, Any] | list[Document]
Limit = Annotated[int, Meta(ge=-1, le=2**31 - 1)]


class Wishes(msgspec.Struct, kw_only=True):
    """What both have: how to cut, and what a score is."""

    model: str | None = None
    truncate_prompt_tokens: Limit | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_activation: bool | None = None
    activation: bool | None = None

    def asked(self, query: str, documents: list[Document], field: str, top_n: int = 0) -> RankRequest:
        return RankRequest(
            query=query,
            items=items_of(documents, field),
            top_k=top_n,
            max_item_tokens=max(0, self.truncate_prompt_tokens or 0),
            truncate_left=self.truncation_side == "left",
        )

    @property
    def score_type(self) -> Asked:
        use = self.activation if self.use_activation is None else self.use_activation
        return "own" if use is None else "probability" if use else "logit"


class VllmScore(Wishes, kw_only=True):
    """A body of /score: one text with many, or as many with as many; three pairs of names for the two sides."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None


class VllmRerank(Wishes, kw_only=True):
    """A body of vLLM's /rerank."""

    query: str | dict[str, Any]
    documents: list[Document]
    top_n: Annotated[int, Meta(ge=0)] | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


SCORE = msgspec.json.Decoder(VllmScore)
RERANK = msgspec.json.Decoder(VllmRerank)


async def score(call: Call) -> dict[str, Any]:
    body = call.decode(SCORE)
    (first_name, first), (second_name, second) = _sides(body)
    queries = [text_of(one, f"{first_name}[{place}]") for place, one in enumerate(_listed(first))]
    documents = _listed(second)
    if len(queries) == 1:
        queries *= len(documents)
    if len(queries) != len(documents):
        said = f"{second_name}: {len(documents)} for {len(queries)} of {first_name}; one with many, or as many"
        raise Refusal("invalid", said)
    scores, tokens = [0.0] * len(documents), 0
    for query in dict.fromkeys(queries):  # what shares its query is one request
        places = [place for place, one in enumerate(queries) if one == query]
        ranking = await call.rank(body.asked(query, [documents[place] for place in places], second_name), second_name)
        tokens += usage(ranking)["total_tokens"]
        for index, value in zip(ranking.indices, await call.tell(ranking, body.score_type), strict=True):
            scores[places[index]] = value
    return {
        "id": f"score-{call.request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model or call.gateway.model_name,
        "data": [{"index": place, "object": "score", "score": value} for place, value in enumerate(scores)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


async def rerank(call: Call) -> dict[str, Any]:
    body = call.decode(RERANK)
    query = text_of(body.query, "query")
    asked = body.asked(query, body.documents, "documents", body.top_n or 0)
    if body.max_tokens_per_doc:
        asked = msgspec.structs.replace(body, truncate_prompt_tokens=body.max_tokens_per_doc).asked(
            query, body.documents, "documents", body.top_n or 0
        )
    ranking = await call.rank(asked, "documents")
    scores = await call.tell(ranking, body.score_type)
    return {
        "id": f"rerank-{call.request_id}",
        "model": body.model or call.gateway.model_name,
        "usage": usage(ranking),
        "results": results(ranking, scores, body.documents),
    }


def _sides(body: VllmScore) -> tuple[tuple[str, Texts], tuple[str, Texts]]:
    pairs = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
    for first, second in pairs:
        one, other = getattr(body, first), getattr(body, second)
        if one is not None and other is not None:
            return (first, one), (second, other)
    raise Refusal("invalid", "expected text_1 and text_2, or queries and documents, or data_1 and data_2")


def _listed(texts: Texts) -> list[Document]:
    return texts if isinstance(texts, list) else [texts]


KINDS: dict[Kind, str] = {
    "unauthorized": "Unauthorized",
    "forbidden": "PermissionDeniedError",
    "rate_limited": "RateLimitError",
    "overloaded": "ServiceUnavailableError",
    "unavailable": "ServiceUnavailableError",
    "deadline": "TimeoutError",
    "fault": "InternalServerError",
}


def error(status: int, refusal: Refusal) -> dict[str, Any]:
    kind = KINDS.get(refusal.kind, "BadRequestError")
    return {"error": {"message": str(refusal), "type": kind, "param": None, "code": status}}


# An overloaded vLLM says 503; what its pydantic does not take, 400.
STATUS: dict[Kind, int] = {"invalid": 400, "empty": 400, "too_large": 400, "overloaded": 503}
DIALECT = Dialect("vllm", error, STATUS)
RERANK_ROUTE = Route(DIALECT, rerank, VllmRerank)
RERANK_EXAMPLE = {"model": "any", "query": "a lamp for my desk", "documents": ["desk lamp", "garden chair"]}
for _path in ("/score", "/v1/score"):
    add_route(
        router,
        _path,
        Route(DIALECT, score, VllmScore),
        {"model": "any", "text_1": "a lamp for my desk", "text_2": ["desk lamp", "garden chair"]},
        "Score one text with many, as vLLM does",
    )
