"""The door of the private port: what changes something there needs an admin key, whoever can reach the port.

Everything but reading is asked for the key before its route is looked up, so that no route can forget it. A route that
reads what only an admin may see calls `require_admin` itself. Where no admin key is set nothing can be changed: a port
that is reached by everybody on this machine, or in this cluster's network, is no proof of who asks.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tritonrank_gateway.keys import Key, Keys
from tritonrank_gateway.refusal import STATUS, Refusal

READING = ("GET", "HEAD", "OPTIONS")


def require_admin(request: Request) -> Key:
    """The admin key that a request to the private port shows.

    Raises:
        Refusal: it shows none that is one; `refused` makes the answer of it.
    """
    keys: Keys = request.app.state.keys
    return keys.admin(request.headers)


async def refused(_: Request, refusal: Exception) -> Response:
    """A refusal as this port says it; an exception handler of Starlette's."""
    assert isinstance(refusal, Refusal)
    headers = {"WWW-Authenticate": "Bearer"} if refusal.kind == "unauthorized" else {}
    return JSONResponse({"error": str(refusal)}, status_code=STATUS[refusal.kind], headers=headers)


class AdminDoor:
    """ASGI middleware: whatever is not reading needs an admin key.

    Args:
        app: behind the door.
        keys: of the gateway.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in READING:
            request = Request(scope)
            try:
                self._keys.admin(request.headers)
            except Refusal as refusal:
                await (await refused(request, refusal))(scope, receive, send)
                return
        await self._app(scope, receive, send)
