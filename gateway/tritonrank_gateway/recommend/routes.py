"""POST /v1/recommend, POST /v1/explain, GET /v1/similar/{item_id}: what to show, why, and what is like this item."""

from typing import Any

import msgspec
from fastapi import APIRouter
from tritonrank_recommend.engine.wire import (
    MOST_SIZE,
    ExplainAnswer,
    ExplainRequest,
    RecommendAnswer,
    RecommendRequest,
    SimilarAnswer,
)

from tritonrank_gateway.call import Call
from tritonrank_gateway.endpoint import Route, add_route
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.recommend.access import DIALECT, recommender_of, refused
from tritonrank_gateway.recommend.ranker import CallRanker
from tritonrank_gateway.refusal import Refusal

router = APIRouter()
DECODER = msgspec.json.Decoder(RecommendRequest)
EXPLAIN_DECODER = msgspec.json.Decoder(ExplainRequest)
FILTERS = msgspec.json.Decoder(dict[str, Any])


async def recommend(call: Call) -> RecommendAnswer:
    recommender = recommender_of(call)
    request = call.decode(DECODER)
    if request.deadline_ms is None and not call.names_a_deadline:
        call.shorten_deadline(call.gateway.settings.recommend_deadline_s)
    ranker = CallRanker(call, is_shown=True)
    with refused():
        answer = await recommender.recommend(request, seconds=call.seconds_left, ranker=ranker)
    if ranker.over_quota is not None:
        raise ranker.over_quota
    call.span.tell({"cold": answer.cold, "items": len(answer.items)})
    _observe(call.gateway.metrics, answer)
    call.done.degraded = answer.lacking
    call.gateway.quality.shown(item.position for item in answer.items)
    if call.gateway.exposure is not None:
        call.gateway.exposure.shown([item.item_id for item in answer.items])
    if call.gateway.versions.has_canary:
        user = recommender.parts.privacy.user(request.user_id) or call.user  # as the ranker was told
        call.gateway.versions.shown(user, [item.position for item in answer.items])
    return answer


async def explain(call: Call) -> ExplainAnswer:
    recommender = recommender_of(call)
    request = call.decode(EXPLAIN_DECODER)
    ranker = CallRanker(call)
    with refused():
        answer = await recommender.explain(
            request,
            seconds=call.seconds_left,
            ranking_seconds=call.gateway.settings.recommend_deadline_s,
            ranker=ranker,
        )
    if ranker.over_quota is not None:
        raise ranker.over_quota
    return answer


def _observe(metrics: Metrics, answer: RecommendAnswer) -> None:
    for step, milliseconds in answer.milliseconds.items():
        metrics.step_seconds(step).observe(milliseconds / 1_000)
    metrics.recommended("yes" if answer.cold else "no", "yes" if answer.degraded else "no").inc()


async def similar(call: Call) -> SimilarAnswer:
    recommender = recommender_of(call)
    asked = call.http.query_params
    unknown = set(asked) - {"size", "filters"}
    if unknown:
        raise Refusal("invalid", f"{min(unknown)}: no parameter of this route; there are size and filters")
    size = asked.get("size", "20")
    if not size.isascii() or not size.isdigit() or not 1 <= int(size) <= MOST_SIZE:
        raise Refusal("invalid", f"size: expected 1 to {MOST_SIZE}, got {size[:20]!r}")
    try:
        filters = FILTERS.decode(asked["filters"]) if "filters" in asked else {}
    except msgspec.DecodeError as error:
        raise Refusal("invalid", f'filters: expected JSON such as {{"brand": "Oak"}}: {error}') from None
    item_id = call.http.path_params["item_id"]
    with refused():
        try:
            return await recommender.similar(item_id, int(size), filters)
        except KeyError:
            raise Refusal("not_found", "item_id: not in the catalogue") from None


EXPLAIN_EXAMPLE = {"user_id": "u1", "recent": ["p1", "p2"], "query": "a lamp for my desk", "item_ids": ["p3"]}
EXAMPLE = {"user_id": "u1", "recent": ["p1", "p2"], "query": "a lamp for my desk", "size": 5, "filters": {}}
add_route(
    router, "/v1/recommend", Route(DIALECT, recommend, RecommendRequest), EXAMPLE, "What should this user see now"
)
add_route(router, "/v1/explain", Route(DIALECT, explain, ExplainRequest), EXPLAIN_EXAMPLE, "Why this item")
add_route(router, "/v1/similar/{item_id:path}", Route(DIALECT, similar), None, "What is like this item", method="GET")
