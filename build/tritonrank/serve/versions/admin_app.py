"""The private API for versions over HTTP; ``shapes.py`` says what it is asked and answers.

Whoever has the key decides which code the server runs, so every request needs it, whatever it asks, and nothing is told
to who has none. What is further mounted here (``rollout/``) is behind the same door.
"""

import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tritonrank.errors import TritonRankError
from tritonrank.serve.versions.shapes import KEY_VARIABLE
from tritonrank.serve.versions.shelf import RefusedError, VersionShelf

LONGEST_BODY = 16_384
"""Bytes."""
SCHEME = "bearer "


def admin_app(shelf: VersionShelf, key: str, further: Sequence[BaseRoute] = ()) -> ASGIApp:
    """The application.

    Args:
        shelf: what is asked.
        key: that every request has to bring.
        further: routes beside these.
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
        *further,
    ]
    handlers: dict[Any, Callable[[Request, Any], Response]] = {
        RefusedError: lambda _, error: fault(error.status, error.code, str(error)),
        TritonRankError: lambda _, error: fault(500, "failed", str(error)),
    }
    return KeyNeeded(Starlette(routes=routes, exception_handlers=handlers), key)


class KeyNeeded:
    """Answers who has no key, or another one; lets the others through."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and not self._is_allowed(scope):
            said = f"the Authorization header has to be: Bearer KEY, with the {KEY_VARIABLE} of the server"
            await fault(401, "key", said)(scope, receive, send)
        elif scope["type"] != "websocket":
            await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        told = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(told) != 1 or not told[0].decode("latin-1").lower().startswith(SCHEME):
            return False
        return hmac.compare_digest(told[0][len(SCHEME) :].strip(), self._key)


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


def fault(status: int, code: str, message: str) -> Response:
    """A refusal."""
    return JSONResponse({"error": {"code": code, "message": message}}, status)
