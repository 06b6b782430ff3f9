"""The private API for versions over HTTP; ``shapes.py`` says what it is asked and answers.

It stands behind ``door.py``: every request needs the key.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tritonrank.errors import TritonRankError
from tritonrank.serve.versions.door import fault
from tritonrank.serve.versions.shelf import RefusedError, VersionShelf

LONGEST_BODY = 16_384
"""Bytes."""


def admin_app(shelf: VersionShelf) -> Starlette:
    """The application.

    Args:
        shelf: what is asked.
    """

    async def list_versions(_: Request) -> Response:
        return JSONResponse(asdict(await run_in_threadpool(shelf.told)))

    async def put_version(request: Request) -> Response:
        name, source = request.path_params["name"], await field(request, "source")
        return JSONResponse(asdict(await run_in_threadpool(shelf.put, name, source)), 202)

    async def delete_version(request: Request) -> Response:
        return JSONResponse(asdict(await run_in_threadpool(shelf.delete, request.path_params["name"])), 202)

    async def put_live(request: Request) -> Response:
        return JSONResponse(asdict(await run_in_threadpool(shelf.make_live, await field(request, "name"))))

    routes = [
        Route("/versions", list_versions, methods=["GET"]),
        Route("/versions/{name}", put_version, methods=["PUT"]),
        Route("/versions/{name}", delete_version, methods=["DELETE"]),
        Route("/live", put_live, methods=["PUT"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Response]] = {
        RefusedError: lambda _, error: fault(error.status, error.code, str(error)),
        TritonRankError: lambda _, error: fault(500, "failed", str(error)),
    }
    return Starlette(routes=routes, exception_handlers=handlers)


async def field(request: Request, name: str) -> str:
    """The one field of a body.

    Raises:
        RefusedError: there is no such body.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise RefusedError(413, "body", f"the body is longer than {LONGEST_BODY} bytes")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict) or set(asked) != {name} or not isinstance(asked[name], str) or not asked[name]:
        raise RefusedError(422, "body", f'expected a JSON object with one text: {{"{name}": "..."}}')
    return str(asked[name])
