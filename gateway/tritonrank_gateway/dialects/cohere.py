"""Cohere: POST /v1/rerank (see `shared`) and POST /v2/rerank.

The first version has objects with `rank_fields`, `return_documents` and `max_chunks_per_doc`; the second has texts and
`max_tokens_per_doc`. Scores are between 0 and 1. A search unit is a query with up to 100 documents, as Cohere bills it.
Unknown fields are ignored.
"""

import math
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from msgspec import Meta

from tritonrank_gateway.call import Call
from tritonrank_gateway.dialects.jina import results, usage
from tritonrank_gateway.documents import Document, items_of
from tritonrank_gateway.endpoint import Dialect, Route, add_route
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.refusal import Refusal
from tritonrank_gateway.sizes import tokens_of

router = APIRouter()
DOCUMENTS_PER_SEARCH_UNIT = 100


class CohereRerank(msgspec.Struct):
    """A body of Cohere's /v1/rerank."""

    query: str
    documents: list[Document]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=0)] | None = None
    rank_fields: list[str] | None = None
    return_documents: bool | None = None
    max_chunks_per_doc: int | None = None


class CohereRerankV2(msgspec.Struct):
    """A body of Cohere's /v2/rerank."""

    query: str
    documents: list[Document]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=0)] | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    return_documents: bool | None = None
    priority: int | None = None


DECODER = msgspec.json.Decoder(CohereRerank)
DECODER_V2 = msgspec.json.Decoder(CohereRerankV2)


async def rerank(call: Call) -> dict[str, Any]:
    body = call.decode(DECODER)
    items = items_of(body.documents, "documents", body.rank_fields or ())
    ranking = await call.rank(RankRequest(body.query, items, top_k=body.top_n or 0), "documents")
    return await _answer(call, ranking, body.documents, bool(body.return_documents), "1")


async def rerank_v2(call: Call) -> dict[str, Any]:
    body = call.decode(DECODER_V2)
    asked = RankRequest(
        body.query,
        items_of(body.documents, "documents"),
        top_k=body.top_n or 0,
        max_item_tokens=body.max_tokens_per_doc or 0,
    )
    ranking = await call.rank(asked, "documents")
    return await _answer(call, ranking, body.documents, bool(body.return_documents), "2")


async def _answer(
    call: Call, ranking: Ranking, documents: list[Document], returned: bool, version: str
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(len(documents) / DOCUMENTS_PER_SEARCH_UNIT)},
    }
    if (tokens := tokens_of(ranking)) is not None:
        meta["tokens"] = {"input_tokens": tokens}
    if call.done.truncated:
        meta["warnings"] = [f"{call.done.truncated} documents were truncated"]
    return {
        "id": call.request_id,
        "results": results(ranking, await call.tell(ranking, "probability"), documents if returned else None),
        "meta": meta,
        "usage": usage(ranking),
    }


def error(status: int, refusal: Refusal) -> dict[str, Any]:
    return {"message": str(refusal), "detail": str(refusal)}


# 499 is Cohere's own code for a request that was given up, 400 for one that it does not understand.
DIALECT = Dialect("cohere", error, {"invalid": 400, "empty": 400, "too_large": 400})
ROUTE = Route(DIALECT, rerank, CohereRerank)
EXAMPLE = {
    "query": "a lamp for my desk",
    "documents": ["desk lamp", {"text": "garden chair"}],
    "return_documents": True,
}
add_route(
    router,
    "/v2/rerank",
    Route(DIALECT, rerank_v2, CohereRerankV2),
    {"model": "any", "query": "a lamp for my desk", "documents": ["desk lamp", "garden chair"], "top_n": 1},
    "Rerank as Cohere's second version does",
)
