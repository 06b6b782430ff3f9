"""Our own: everything that the tensors can. POST /v1/rank.

Items and history are texts, or objects whose fields the ranker's template renders; `{"text": ...}` is that text.
"""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from tritonrank_client import RankError

from tritonrank_gateway.call import Call, Gateway
from tritonrank_gateway.documents import Document
from tritonrank_gateway.endpoint import Dialect, Route, add_route
from tritonrank_gateway.ranking import Item, Ranking, RankRequest, Wish
from tritonrank_gateway.refusal import STATUS, Refusal, refusal_of
from tritonrank_gateway.sizes import tokens_of

router = APIRouter()


class OwnRank(msgspec.Struct, forbid_unknown_fields=True):
    """A body of /v1/rank. A field that is not known is an error: it would be a wish that nobody hears."""

    items: list[Document]
    query: str = ""
    history: list[Document] = []
    item_ids: list[str | int] | None = None
    top_k: Annotated[int, Meta(ge=0)] = 0
    deadline_ms: Annotated[int, Meta(gt=0)] | None = None
    score_type: Literal["own", "logit", "sigmoid", "calibrated"] = "own"
    max_item_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    truncate: bool = True
    truncation_direction: Literal["left", "right"] = "right"
    strict: bool = False
    return_items: bool = False
    details: list[Wish] = []
    user: str = ""


NOTHING = Ranking([], [], "", item_tokens=[], truncated=[], unscored={})
"""The ranking of no items."""
DECODER = msgspec.json.Decoder(OwnRank)


async def rank(call: Call) -> dict[str, Any]:
    body = call.decode(DECODER)
    if body.deadline_ms is not None:
        call.shorten_deadline(body.deadline_ms / 1_000)
    if body.item_ids is not None and len(body.item_ids) != len(body.items):
        raise Refusal("invalid", f"item_ids: {len(body.item_ids)} for {len(body.items)} items; one each, or none")
    asked = RankRequest(
        query=body.query,
        items=[_item(one) for one in body.items],
        history=[_item(one) for one in body.history],
        item_ids=None if body.item_ids is None else [str(one) for one in body.item_ids],
        top_k=body.top_k,
        max_item_tokens=body.max_item_tokens,
        truncate_left=body.truncation_direction == "left",
        strict=body.strict,
        user=body.user,
    )
    # A search without hits is no error: its ranking is known, and nobody has to be asked.
    ranking = await call.rank(asked, "items", may_truncate=body.truncate) if body.items else NOTHING
    scores = await call.tell(ranking, body.score_type)
    places = zip(ranking.indices, ranking.logits, scores, strict=True)
    answer = {
        "model": call.gateway.model_name,
        "artifact": ranking.artifact,
        "score_type": call.done.score_type,
        "ranking": [_place(body, ranking, index, logit, score) for index, logit, score in places],
        "truncated": None if ranking.truncated is None else call.done.truncated,
        "unscored": None
        if ranking.unscored is None
        else [{"index": place, "reason": reason} for place, reason in ranking.unscored.items()],
        "fields": ranking.fields,
        "usage": {
            "context_tokens": ranking.context_tokens,
            "item_tokens": None if ranking.item_tokens is None else sum(ranking.item_tokens),
            "total_tokens": tokens_of(ranking),
        },
        "seconds": {"queue": call.done.queue_seconds, "ranker": call.done.backend_seconds},
        "cached": ranking.is_cached,
    }
    # Of all items in the order of the request, those that top_k or equal ids left out as well.
    return answer | (
        {"details": {name: _detail(ranking, name, len(body.items)) for name in body.details}} if body.details else {}
    )


def _detail(ranking: Ranking, name: Wish, items: int) -> Any:
    if name == "unscored" and ranking.unscored is not None:
        return [ranking.unscored.get(place, "") for place in range(items)]
    return getattr(ranking, name)


def _item(document: Document) -> Item:
    if isinstance(document, dict) and list(document) == ["text"] and isinstance(document["text"], str):
        return document["text"]
    return document


def _place(body: OwnRank, ranking: Ranking, index: int, logit: float, score: float) -> dict[str, Any]:
    place: dict[str, Any] = {"index": index, "score": score, "logit": logit}
    if body.item_ids is not None:
        place["item_id"] = body.item_ids[index]
    if ranking.item_tokens is not None:
        place["tokens"] = ranking.item_tokens[index]
    if ranking.truncated is not None:
        place["truncated"] = ranking.truncated[index]
    if body.return_items:
        place["item"] = body.items[index]
    return place


def error(status: int, refusal: Refusal) -> dict[str, Any]:
    return {"error": {"kind": refusal.kind, "message": str(refusal), "retry_after": refusal.retry_after}}


RANK = Route(Dialect("own", error), rank, OwnRank)
EXAMPLE = {"query": "a lamp for my desk", "items": ["desk lamp", "garden chair", "desk"], "history": ["oak desk"]}
add_route(router, "/v1/rank", RANK, EXAMPLE, "Rank items for a query and a history")


@router.get("/v1/rank", summary="What ranks: the model as its server describes it", tags=["own"])
async def describe(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    try:
        gateway.keys.of(request.headers)
        info = await gateway.backend.info()
    except Refusal as refusal:
        return _refused(refusal)
    except RankError as failure:
        return _refused(refusal_of(failure, gateway.load.queued_seconds))
    return Response(msgspec.json.encode(info), media_type="application/json")


def _refused(refusal: Refusal) -> Response:
    status = STATUS[refusal.kind]
    return Response(msgspec.json.encode(error(status, refusal)), status, media_type="application/json")
