"""Text Embeddings Inference: /rerank (see `shared`), /predict, /info, /health.

Source: router/src/http of huggingface/text-embeddings-inference, 1.9. What differs here: a text that is too long is
truncated unless the body says `"truncate": false` (TEI's own default depends on a flag of the server); objects with a
`text` are taken, too; `top_n`, which clients send and TEI ignores, is honoured.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tritonrank_client import RankError

from tritonrank_gateway.call import Call, Gateway
from tritonrank_gateway.documents import Document, items_of, told
from tritonrank_gateway.endpoint import Dialect, Route, add_route
from tritonrank_gateway.ranking import RankRequest
from tritonrank_gateway.refusal import Kind, Refusal

router = APIRouter()
LABEL = "LABEL_0"
"""What transformers calls the one label of a ranker."""


class TeiRerank(msgspec.Struct):
    """A body of TEI's /rerank."""

    query: str
    texts: list[Document]
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    top_n: Annotated[int, Meta(ge=0)] | None = None


Sequences = str | list[str | list[str]]


class TeiPredict(msgspec.Struct):
    """A body of /predict: a text, a pair of texts, or a batch of `[text]` and `[text, text]`."""

    inputs: Sequences
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    raw_scores: bool | None = None


RERANK = msgspec.json.Decoder(TeiRerank)
PREDICT = msgspec.json.Decoder(TeiPredict)


async def rerank(call: Call) -> list[dict[str, Any]]:
    body = call.decode(RERANK)
    asked = RankRequest(
        query=body.query,
        items=items_of(body.texts, "texts"),
        top_k=body.top_n or 0,
        truncate_left=_is_left(body.truncation_direction),
    )
    ranking = await call.rank(asked, "texts", may_truncate=body.truncate is not False)
    scores = await call.tell(ranking, "logit" if body.raw_scores else "probability")
    places: list[dict[str, Any]] = [
        {"index": index, "score": score} for index, score in zip(ranking.indices, scores, strict=True)
    ]
    if body.return_text:
        for place in places:
            place["text"] = told(body.texts[place["index"]]).get("text")
    return places


async def predict(call: Call) -> list[Any]:
    body = call.decode(PREDICT)
    pairs, is_batch = _pairs(body.inputs)
    scores = [0.0] * len(pairs)
    for query in dict.fromkeys(query for query, _ in pairs):  # what shares its first text is one request
        places = [place for place, pair in enumerate(pairs) if pair[0] == query]
        asked = RankRequest(
            query=query,
            items=[pairs[place][1] for place in places],
            truncate_left=_is_left(body.truncation_direction),
        )
        ranking = await call.rank(asked, "inputs", may_truncate=body.truncate is not False)
        told_scores = await call.tell(ranking, "logit" if body.raw_scores else "probability")
        for index, score in zip(ranking.indices, told_scores, strict=True):
            scores[places[index]] = score
    answers = [[{"score": score, "label": LABEL}] for score in scores]
    return answers if is_batch else answers[0]


def _pairs(inputs: Sequences) -> tuple[list[tuple[str, str]], bool]:
    """The (query, text) of each sequence, and whether they are a batch."""
    if isinstance(inputs, str):
        return [("", inputs)], False
    if not inputs:
        raise Refusal("empty", "inputs: empty; at least one text is needed")
    if isinstance(inputs[0], str):
        return [_pair(inputs, "inputs")], False
    pairs = []
    for place, one in enumerate(inputs):
        if isinstance(one, str):
            raise Refusal("invalid", f"inputs[{place}]: expected [text] or [text, text] as before it, got text")
        pairs.append(_pair(one, f"inputs[{place}]"))
    return pairs, True


def _pair(texts: Sequence[Any], where: str) -> tuple[str, str]:
    if not 1 <= len(texts) <= 2 or not all(isinstance(text, str) for text in texts):
        raise Refusal("invalid", f"{where}: expected one or two texts, got {len(texts)} elements")
    return ("", texts[0]) if len(texts) == 1 else (texts[0], texts[1])


def _is_left(direction: str | None) -> bool:
    return direction is not None and direction.lower() == "left"


@router.get("/info", summary="What is served, as TEI says it", tags=["tei"])
async def info(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    try:
        model = await gateway.model.get()
    except RankError:
        return JSONResponse({"error": "no ranker can be reached now", "error_type": "unhealthy"}, status_code=503)
    settings = gateway.settings
    return JSONResponse(
        {
            "model_id": gateway.model_name,
            "model_sha": gateway.model.artifact or None,
            "model_dtype": "",
            "model_type": {"reranker": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}},
            "max_concurrent_requests": settings.max_in_flight,
            "max_client_batch_size": min(settings.max_documents, model.max_candidates),
            "auto_truncate": True,
            "version": request.app.version,
        }
    )


@router.get("/health", summary="200 when a request would be answered", tags=["tei", "vllm"])
async def health(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return Response(status_code=200 if await gateway.backend.ready() else 503)


ERROR_TYPES: dict[Kind, str] = {
    "empty": "empty",
    "too_large": "validation",
    "rate_limited": "overloaded",
    "overloaded": "overloaded",
    "unavailable": "unhealthy",
    "invalid": "tokenizer",
    "unreadable": "tokenizer",
}


def error(status: int, refusal: Refusal) -> dict[str, Any]:
    return {"error": str(refusal), "error_type": ERROR_TYPES.get(refusal.kind, "backend")}


DIALECT = Dialect("tei", error, {"empty": 400, "fault": 424})
RERANK_ROUTE = Route(DIALECT, rerank, TeiRerank)
RERANK_EXAMPLE = {"query": "What is deep learning?", "texts": ["Deep learning is ...", "cheese"], "raw_scores": False}
add_route(
    router,
    "/predict",
    Route(DIALECT, predict, TeiPredict),
    {"inputs": [["What is deep learning?", "Deep learning is ..."], ["What is deep learning?", "cheese"]]},
    "Score texts or pairs of texts, as TEI does",
)
