"""What OpenAI-style clients ask before anything else: GET /v1/models."""

import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tritonrank_gateway.call import Gateway
from tritonrank_gateway.refusal import Refusal

router = APIRouter()
STARTED = int(time.time())


@router.get("/v1/models", summary="What is served, as OpenAI says it", tags=["openai"])
@router.get("/models", include_in_schema=False)
async def models(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    try:
        gateway.keys.of(request.headers)
    except Refusal as refusal:
        told: dict[str, Any] = {"message": str(refusal), "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": told}, status_code=401, headers={"WWW-Authenticate": "Bearer"})
    name = gateway.model_name
    model = {"id": name, "object": "model", "created": STARTED, "owned_by": "tritonrank", "root": name, "parent": None}
    return JSONResponse({"object": "list", "data": [model]})
