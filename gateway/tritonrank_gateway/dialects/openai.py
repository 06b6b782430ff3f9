"""What OpenAI-style clients ask before anything else: GET /v1/models.

Beside what they know of stands what the ranker's template reads of an item; clients ignore fields that are new to them.
"""

import asyncio
import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tritonrank_client import RankError

from tritonrank_gateway.call import Gateway
from tritonrank_gateway.refusal import STATUS, Refusal

router = APIRouter()
STARTED = int(time.time())
LONGEST_WAIT_SECONDS = 1.0


@router.get("/v1/models", summary="What is served, as OpenAI says it", tags=["openai"])
@router.get("/models", include_in_schema=False)
async def models(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    try:
        gateway.keys.of(request.headers)
    except Refusal as refusal:
        headers = {"WWW-Authenticate": "Bearer"} if refusal.kind == "unauthorized" else {}
        told: dict[str, Any] = {"message": str(refusal), "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": told}, status_code=STATUS[refusal.kind], headers=headers)
    name = gateway.model_name
    model: dict[str, Any] = {
        "id": name, "object": "model", "created": STARTED, "owned_by": "tritonrank", "root": name, "parent": None
    }  # fmt: skip
    return JSONResponse({"object": "list", "data": [model | await _items(gateway)]})


async def _items(gateway: Gateway) -> dict[str, Any]:
    """Template and fields of an item; nothing where no ranker says them soon, for the list itself needs none."""
    try:
        async with asyncio.timeout(LONGEST_WAIT_SECONDS):
            known = await gateway.model.get()
    except (RankError, TimeoutError):
        return {}
    return {"item_template": known.template, "item_fields": known.fields} if known.template else {}
