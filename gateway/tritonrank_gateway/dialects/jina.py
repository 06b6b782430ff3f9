"""Jina: POST /v1/rerank (see `shared`, because Cohere's first version has the same path).

Scores are between 0 and 1; documents come back when asked for, as `{"text": ...}`. `truncation: false`, which Jina has
for its embeddings, refuses documents that are too long. Unknown fields are ignored.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tritonrank_gateway.call import Call
from tritonrank_gateway.documents import Document, items_of, text_of, told
from tritonrank_gateway.endpoint import Dialect, Route
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.refusal import Refusal
from tritonrank_gateway.sizes import tokens_of


class JinaRerank(msgspec.Struct):
    """A body of Jina's /v1/rerank."""

    query: str | dict[str, Any]
    documents: list[Document]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=0)] | None = None
    return_documents: bool | None = None
    truncation: bool | None = None
    max_doc_length: Annotated[int, Meta(gt=0, le=2**31 - 1)] | None = None


DECODER = msgspec.json.Decoder(JinaRerank)


async def rerank(call: Call) -> dict[str, Any]:
    body = call.decode(DECODER)
    asked = RankRequest(
        query=text_of(body.query, "query"),
        items=items_of(body.documents, "documents"),
        top_k=body.top_n or 0,
        max_item_tokens=body.max_doc_length or 0,
    )
    ranking = await call.rank(asked, "documents", may_truncate=body.truncation is not False)
    scores = await call.tell(ranking, "probability")
    return {
        "id": call.request_id,
        "model": body.model or call.gateway.model_name,
        "object": "list",
        "usage": usage(ranking),
        "results": results(ranking, scores, body.documents if body.return_documents else None),
    }


def results(ranking: Ranking, scores: list[float], documents: list[Document] | None) -> list[dict[str, Any]]:
    """One object per place, with the document where documents are given."""
    places = zip(ranking.indices, scores, strict=True)
    if documents is None:
        return [{"index": index, "relevance_score": score} for index, score in places]
    return [{"index": index, "relevance_score": score, "document": told(documents[index])} for index, score in places]


def usage(ranking: Ranking) -> dict[str, int]:
    """Tokens as billed: the context once and all documents; 0 from a server that does not tell."""
    tokens = tokens_of(ranking) or 0
    return {"total_tokens": tokens, "prompt_tokens": tokens}


def error(status: int, refusal: Refusal) -> dict[str, Any]:
    return {"detail": str(refusal), "message": str(refusal)}


ROUTE = Route(Dialect("jina", error), rerank, JinaRerank)
EXAMPLE = {
    "model": "any",
    "query": "a lamp for my desk",
    "documents": ["desk lamp", {"text": "garden chair"}],
    "top_n": 1,
}
