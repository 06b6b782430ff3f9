"""Requests for a path without parameters go straight to what answers it.

FastAPI's way there, through its middlewares, the routers in turn and the solving of dependencies that no endpoint here
has, takes 0.14 ms, a third of what a small rerank costs the gateway. Its routes stay: they describe the API, and answer
everything else (paths with parameters, another method, a slash too many).
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]
"""Answers whatever comes; what goes wrong is part of the answer."""


class ExactPaths:
    """ASGI middleware.

    Args:
        app: answers what is not told here.
        endpoints: by method and path.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[tuple[str, str], Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and not scope.get("root_path"):
            endpoint = self._endpoints.get((scope["method"], scope["path"]))
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
