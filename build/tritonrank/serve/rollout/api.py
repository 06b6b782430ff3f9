"""The controller over HTTP, behind the same door as a Triton's versions (``versions/door.py``).

    GET  /rollout             -> the status, see ``status.py``
    POST /rollout             {"source": PATH or URL, "name": ..., "rules": {...}} -> 202 and the status
                              or, where the version runs already: {"triton": ["HOST:PORT"], "model": ..., "name": ...}
    POST /rollout/promote     {"to": "step" or "live"} -> the status; without a body: a step
    POST /rollout/hold        -> the status
    POST /rollout/back        -> the status

What is refused comes as {"error": {"code": ..., "message": ...}}: 401 (no key or another one), 409 (not now), 422.
"""

import json
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tritonrank.errors import ServerError
from tritonrank.serve.rollout.book import NotNowError
from tritonrank.serve.rollout.controller import Controller, Running
from tritonrank.serve.versions.door import fault

LONGEST_BODY = 65_536
"""Bytes."""
STARTED_BY = {"source": str, "name": str, "rules": dict, "triton": list, "model": str}
TO = ("step", "live")


class BodyError(Exception):
    """A request that cannot be read; says what is wrong."""


def rollout_routes(controller: Controller) -> list[Route]:
    """What tells of rollouts and steers them."""

    async def status(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(controller.status))

    async def start(request: Request) -> Response:
        return await _answer(controller, request, lambda body: _start(controller, body), 202)

    async def promote(request: Request) -> Response:
        return await _answer(controller, request, lambda body: _promote(controller, body))

    async def hold(request: Request) -> Response:
        return await _answer(controller, request, lambda _: controller.hold())

    async def back(request: Request) -> Response:
        return await _answer(controller, request, lambda _: controller.back())

    return [
        Route("/rollout", status, methods=["GET"]),
        Route("/rollout", start, methods=["POST"]),
        Route("/rollout/promote", promote, methods=["POST"]),
        Route("/rollout/hold", hold, methods=["POST"]),
        Route("/rollout/back", back, methods=["POST"]),
    ]


async def _answer(
    controller: Controller, request: Request, do: Callable[[dict[str, Any]], Any], status: int = 200
) -> Response:
    try:
        body = await _body(request)
        await run_in_threadpool(do, body)
    except BodyError as error:
        return fault(422, "body", str(error))
    except NotNowError as error:
        return fault(409, "not_now", str(error))
    except ServerError as error:
        return fault(422, "refused", str(error))
    return JSONResponse(await run_in_threadpool(controller.status), status)


async def _body(request: Request) -> dict[str, Any]:
    """A JSON object; nothing is an empty one."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise BodyError(f"the body is longer than {LONGEST_BODY} bytes")
    if not body.strip():
        return {}
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise BodyError("expected a JSON object")
    return asked


def _start(controller: Controller, body: dict[str, Any]) -> None:
    for name, value in body.items():
        if name not in STARTED_BY:
            raise BodyError(f"{name}: is not known; there are {', '.join(STARTED_BY)}")
        if not isinstance(value, STARTED_BY[name]):
            raise BodyError(f"{name}: expected a {STARTED_BY[name].__name__}")
    addresses = body.get("triton")
    if addresses is not None and not (addresses and all(isinstance(one, str) and one for one in addresses)):
        raise BodyError('triton: expected addresses, such as ["127.0.0.1:8001"]')
    running = Running(addresses, body.get("model", "rank")) if addresses else None
    controller.start(body.get("source", ""), body.get("name", ""), body.get("rules"), running)


def _promote(controller: Controller, body: dict[str, Any]) -> None:
    to = body.get("to", TO[0])
    if to not in TO or body.keys() - {"to"}:
        raise BodyError(f'expected {{"to": ...}} with one of {", ".join(TO)}')
    controller.promote(to_live=to == "live")
