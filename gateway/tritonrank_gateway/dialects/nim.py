"""NVIDIA's reranking NIM: POST /v1/ranking; /ranking for clients that bring no version in their base, and the path with
the model's name in it that NVIDIA's own cloud has.

Answers are logits. `truncate: "NONE"` refuses passages that are too long, `"END"` cuts them; without it they are cut.
"""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from msgspec import Meta

from tritonrank_gateway.call import Call
from tritonrank_gateway.dialects.jina import usage
from tritonrank_gateway.documents import Document, items_of, text_of
from tritonrank_gateway.endpoint import Dialect, Route, add_route
from tritonrank_gateway.ranking import RankRequest
from tritonrank_gateway.refusal import Refusal

router = APIRouter()


class NimRanking(msgspec.Struct):
    """A body of /v1/ranking."""

    query: str | dict[str, Any]
    passages: list[Document]
    model: str | None = None
    truncate: Literal["NONE", "END", "START"] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None


DECODER = msgspec.json.Decoder(NimRanking)


async def ranking(call: Call) -> dict[str, Any]:
    body = call.decode(DECODER)
    asked = RankRequest(
        query=text_of(body.query, "query"),
        items=items_of(body.passages, "passages"),
        top_k=body.top_k or 0,
        truncate_left=body.truncate == "START",
    )
    found = await call.rank(asked, "passages", may_truncate=body.truncate != "NONE")
    logits = await call.tell(found, "logit")
    return {
        "rankings": [{"index": index, "logit": logit} for index, logit in zip(found.indices, logits, strict=True)],
        "usage": usage(found),
    }


def error(status: int, refusal: Refusal) -> dict[str, Any]:
    return {"object": "error", "message": str(refusal), "detail": {}, "type": refusal.kind}


ROUTE = Route(Dialect("nim", error), ranking, NimRanking)
EXAMPLE = {
    "model": "any",
    "query": {"text": "a lamp for my desk"},
    "passages": [{"text": "desk lamp"}, {"text": "chair"}],
}
for _path in ("/v1/ranking", "/ranking", "/v1/retrieval/{model:path}/reranking"):
    add_route(router, _path, ROUTE, EXAMPLE, "Rank passages, as NVIDIA's NIM does")
