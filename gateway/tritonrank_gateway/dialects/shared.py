"""Paths that two servers use for different bodies.

    /rerank      TEI has `texts`, vLLM has `documents`
    /v1/rerank   Jina and Cohere's first version send the same; answers hold what both expect. Cohere's own clients name
                 themselves, and only Cohere has `rank_fields` and `max_chunks_per_doc`

What a body holds is seen without reading its values (`msgspec.Raw`).
"""

import msgspec
from fastapi import APIRouter
from starlette.requests import Request

from tritonrank_gateway.dialects import cohere, jina, tei, vllm
from tritonrank_gateway.endpoint import Route, add_routes

router = APIRouter()
ABSENT = msgspec.Raw()


class Names(msgspec.Struct):
    """The fields that tell bodies apart."""

    texts: msgspec.Raw = ABSENT
    documents: msgspec.Raw = ABSENT
    rank_fields: msgspec.Raw = ABSENT
    max_chunks_per_doc: msgspec.Raw = ABSENT


NAMES = msgspec.json.Decoder(Names)


def _names(body: bytes) -> Names:
    try:
        return NAMES.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Names()  # whoever reads the body says what is wrong with it


def _has(value: msgspec.Raw) -> bool:
    return value is not ABSENT and bytes(value) != b"null"


def tei_or_vllm(body: bytes, request: Request) -> Route:
    names = _names(body)
    return vllm.RERANK_ROUTE if _has(names.documents) and not _has(names.texts) else tei.RERANK_ROUTE


def jina_or_cohere(body: bytes, request: Request) -> Route:
    headers, names = request.headers, _names(body)
    is_cohere = headers.get("x-fern-sdk-name") == "cohere" or headers.get("user-agent", "").startswith("cohere/")
    has_its_fields = _has(names.rank_fields) or _has(names.max_chunks_per_doc)
    return cohere.ROUTE if is_cohere or has_its_fields else jina.ROUTE


add_routes(
    router,
    "/rerank",
    {"tei": (tei.RERANK_ROUTE, tei.RERANK_EXAMPLE), "vllm": (vllm.RERANK_ROUTE, vllm.RERANK_EXAMPLE)},
    tei_or_vllm,
    "Rerank as TEI (texts) or vLLM (documents) does",
)
add_routes(
    router,
    "/v1/rerank",
    {"jina": (jina.ROUTE, jina.EXAMPLE), "cohere": (cohere.ROUTE, cohere.EXAMPLE)},
    jina_or_cohere,
    "Rerank as Jina or Cohere's first version does",
)
