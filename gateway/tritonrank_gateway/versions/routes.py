"""/versions on the port of metrics: see ``wire.py``. A restart forgets what was changed here."""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tritonrank_gateway.admin import require_admin
from tritonrank_gateway.versions.changing import Changing
from tritonrank_gateway.versions.checking import NotTakenError
from tritonrank_gateway.versions.wire import ROLES, SHARED_ROLES, Role, Version

MOST_BODY_BYTES = 65_536
DECODER = msgspec.json.Decoder(Version)


def version_routes(changing: Changing) -> list[Route]:
    """What tells of versions and changes them."""
    versions = changing.versions

    async def told(request: Request) -> Response:
        require_admin(request)  # addresses and paths are nobody else's business
        return _json(versions.told())

    async def compared(request: Request) -> Response:
        require_admin(request)
        return _json(versions.compared())

    async def put(request: Request) -> Response:
        role = _role(request)
        if role is None:
            return _wrong(404, f"no role {request.path_params['role'][:32]!r}; there are {', '.join(ROLES)}")
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BODY_BYTES:
                return _wrong(413, f"the body has more than {MOST_BODY_BYTES} bytes")
        try:
            version = DECODER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            place, at, where = str(error).partition(" - at `$.")
            return _wrong(422, f"{where.rstrip('`')}: {place}" if at else str(error))
        try:
            await changing.put(role, version)
        except NotTakenError as error:
            return _wrong(409, str(error))
        return _json(versions.told())

    async def delete(request: Request) -> Response:
        role = _role(request)
        if role not in SHARED_ROLES:
            return _wrong(404, f"only {' and '.join(SHARED_ROLES)} can be removed; put another version live instead")
        await changing.delete(role)
        return _json(versions.told())

    return [
        Route("/versions", told),
        Route("/versions/comparison", compared),
        Route("/versions/{role}", put, methods=["PUT"]),
        Route("/versions/{role}", delete, methods=["DELETE"]),
    ]


def _role(request: Request) -> Role | None:
    return next((role for role in ROLES if role == request.path_params["role"]), None)


def _json(content: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _wrong(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)
