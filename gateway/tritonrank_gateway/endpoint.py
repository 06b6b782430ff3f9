"""A dialect's handler as an HTTP endpoint: keys before the body is read, bounds, hang-ups, errors, metrics, log.

One way for all dialects, so that none forgets a bound. A dialect differs in two things here: how it words an error and
which status code it gives to it.
"""

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tritonrank_gateway.call import Call, Gateway
from tritonrank_gateway.exact_paths import Endpoint
from tritonrank_gateway.keys import Role
from tritonrank_gateway.metrics import candidate_bucket
from tritonrank_gateway.refusal import OUTCOME, STATUS, Kind, Refusal

Handler = Callable[[Call], Awaitable[Any]]
"""Answers with what is written as JSON."""
MOST_HELD_BYTES = 2**29
"""Of the bodies of all requests that are here at once."""
MOST_PLACES_TOLD = 100
"""Of documents that could not be scored, in a header: others would make it too long for some proxies."""
FAILED = 500
"""The least status code of a failure that is not the caller's, as OpenTelemetry counts them."""
ACCESS = logging.getLogger("tritonrank_gateway.access")
FAULTS = logging.getLogger("tritonrank_gateway")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How errors are said.

    Attributes:
        name: of the dialect, for the log.
        error: status code and refusal -> the body.
        status: where it differs from the usual status codes.
    """

    name: str
    error: Callable[[int, Refusal], Any]
    status: Mapping[Kind, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """A handler together with the dialect that it speaks, the body that it takes and the role that its key needs."""

    dialect: Dialect
    handler: Handler
    body: type | None = None
    role: Role = "rank"


def add_route(
    router: APIRouter,
    path: str,
    route: Route,
    example: Any,
    said: str,
    *,
    method: str = "POST",
    media_type: str = "application/json",
) -> None:
    """Serve a handler under a path, with its place in the OpenAPI page.

    Args:
        router: the dialect's.
        path: such as /v1/rerank.
        route: what answers.
        example: a body that works; None where there is none to send.
        said: one line about it.
        method: of HTTP.
        media_type: of the body.
    """
    routes = {route.dialect.name: (route, example)}
    add_routes(router, path, routes, lambda body, request: route, said, method=method, media_type=media_type)


def add_routes(
    router: APIRouter,
    path: str,
    routes: Mapping[str, tuple[Route, Any]],
    choose: Callable[[bytes, Request], Route],
    said: str,
    *,
    method: str = "POST",
    media_type: str = "application/json",
) -> None:
    """Serve several dialects under one path.

    Args:
        routes: by name, each with a body that works.
        choose: which one a request speaks, by its body and headers; by its headers alone while the body is empty.
        said: one line about it.
        method: of HTTP.
        media_type: of the body.
    """

    shown = path.replace(":path}", "}")

    async def endpoint(request: Request) -> Response:
        gateway: Gateway = request.app.state.gateway
        with gateway.tracing.request(request.method, shown, request.headers) as span:
            return await _answer(Call.of(request, gateway, span), shown, choose)

    bodies = [route.body for route, _ in routes.values() if route.body is not None]
    schemas = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in bodies]
    content: dict[str, Any] = {
        "schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas},
        "examples": {name: {"value": example} for name, (_, example) in routes.items()},
    }
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=said,
        tags=list(routes),
        openapi_extra={"requestBody": {"required": True, "content": {media_type: content}}} if bodies else None,
        response_class=Response,
    )
    BODIES.update({body.__name__: body for body in bodies})
    if "{" not in path:
        EXACT[method, path] = endpoint


BODIES: dict[str, type] = {}
"""The bodies of all routes by name, for the OpenAPI page."""
EXACT: dict[tuple[str, str], Endpoint] = {}
"""The endpoints of all paths without parameters, by method and path."""


async def _answer(call: Call, path: str, choose: Callable[[bytes, Request], Route]) -> Response:
    gateway, request = call.gateway, call.http
    expected = choose(b"", request)
    dialect = expected.dialect
    refusal: Refusal | None = None
    content: Any = None
    try:
        call.key = gateway.keys.of(request.headers, expected.role)
        if call.key is not None:
            call.key.take_request(time.monotonic())
        call.body = await _read_body(request, call)
        route = choose(call.body, request)
        dialect = route.dialect
        call.read_deadline()
        content = await _unless_hung_up(request, route.handler(call))
    except Refusal as error:
        refusal = error
    except ClientDisconnect:
        refusal = Refusal("hung_up", "the caller hung up")
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer without a traceback
        frames = " <- ".join(
            f"{one.filename}:{one.lineno}" for one in reversed(traceback.extract_tb(error.__traceback__))
        )
        FAULTS.error("%s: %s at %s", path, type(error).__name__, frames)
        refusal = Refusal("fault", f"the gateway failed ({type(error).__name__}); its log has the details")
    finally:
        gateway.load.held_bytes -= call.held_bytes
    response = _response(call, dialect, content, refusal)
    _observe(call, path, dialect, response.status_code, refusal)
    return response


async def _read_body(request: Request, call: Call) -> bytes:
    """The body, which has to come in time and be of a size; all bodies together are bounded, too.

    Raises:
        Refusal: it is too large, or too slow, or too many are here.
    """
    settings, load = call.gateway.settings, call.gateway.load
    said = f"the body has more than {settings.max_body_bytes} bytes"
    if int(request.headers.get("content-length") or 0) > settings.max_body_bytes:
        raise Refusal("too_large", said)
    pieces = []
    try:
        async with asyncio.timeout(call.seconds_left):
            async for piece in request.stream():
                pieces.append(piece)
                call.held_bytes += len(piece)
                load.held_bytes += len(piece)
                if call.held_bytes > settings.max_body_bytes:
                    raise Refusal("too_large", said)
                if load.held_bytes > MOST_HELD_BYTES:
                    raise Refusal("overloaded", "too many bodies are being read; the request was refused as a whole")
    except TimeoutError:
        raise Refusal("unreadable", f"the body did not come within {settings.deadline_s:g} s") from None
    return b"".join(pieces)


async def _unless_hung_up(request: Request, work: Awaitable[Any]) -> Any:
    """What `work` gives; it is cancelled when the caller goes away.

    Raises:
        Refusal: the caller hung up.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refusal("hung_up", "the caller hung up")
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(call: Call, dialect: Dialect, content: Any, refusal: Refusal | None) -> Response:
    headers = {"X-Request-Id": call.request_id}
    if call.gateway.load.is_draining:
        headers["Connection"] = "close"  # so that a balancer sends nothing more on this one
    if refusal is None:
        done = call.done
        spent, total = 1_000 * done.backend_seconds, 1_000 * (time.monotonic() - call.started)
        headers |= {
            "X-Artifact": done.artifact,
            "X-Score-Type": done.score_type,
            "Server-Timing": f"triton;dur={spent:.2f}, total;dur={total:.2f}",  # https://www.w3.org/TR/server-timing/
        }
        if done.level:
            headers["X-Adapt-Level"] = str(done.level)
        if done.spared:
            headers["X-Unranked-Documents"] = str(done.spared)
        if done.truncated:
            headers["X-Truncated-Documents"] = str(done.truncated)
        if done.unscored:
            headers["X-Unscored-Documents"] = ",".join(map(str, done.unscored[:MOST_PLACES_TOLD]))
        return Response(msgspec.json.encode(content), headers=headers, media_type="application/json")
    status = dialect.status.get(refusal.kind, STATUS[refusal.kind])
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.kind == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    body = msgspec.json.encode(dialect.error(status, refusal))
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _observe(call: Call, path: str, dialect: Dialect, status: int, refusal: Refusal | None) -> None:
    metrics, done = call.gateway.metrics, call.done
    seconds = time.monotonic() - call.started
    if refusal is not None:
        metrics.requests(path, OUTCOME[refusal.kind]).inc()
        metrics.refused(path, refusal.kind).inc()
    else:
        metrics.requests(path, "degraded" if done.degraded else "answered").inc()
        for reason in done.degraded:
            metrics.degraded(path, reason).inc()
        labels = (path, done.artifact, candidate_bucket(done.candidates))
        exemplar = {"trace_id": call.trace_id} if call.trace_id else None
        metrics.seconds(*labels).observe(seconds, exemplar)
        metrics.queue_seconds(*labels).observe(done.queue_seconds)
        metrics.documents(*labels).inc(done.candidates - done.spared)
        if done.tokens is not None:
            metrics.tokens(*labels).observe(done.tokens)
        if done.truncated:
            metrics.truncated(*labels).inc(done.truncated)
        if done.unscored:
            metrics.unscored(*labels).inc(len(done.unscored))
        if done.cached:
            metrics.cached(*labels).inc(done.cached)
    if done.side is not None:
        outcome = "answered" if refusal is None else OUTCOME[refusal.kind]
        call.gateway.versions.called(done.side, outcome, is_degraded=bool(done.degraded))
    call.span.tell(_told(call, dialect, status, refusal), refusal.kind if refusal and status >= FAILED else "")
    if call.gateway.settings.access_log:
        ACCESS.info("%s", json.dumps(_line(call, path, dialect, status, seconds, refusal)))


def _told(call: Call, dialect: Dialect, status: int, refusal: Refusal | None) -> dict[str, Any]:
    """Attributes of the request's span."""
    done = call.done
    return {
        "http.response.status_code": status,
        "dialect": dialect.name,
        "artifact": done.artifact,
        "candidates": done.candidates,
        "characters": done.characters,
        "tokens": done.tokens or 0,
        "truncated": done.truncated,
        "cached": done.cached,
        "side": done.side or "live",
        "queue_seconds": done.queue_seconds,
        "degraded": done.degraded,
        "refused": "" if refusal is None else refusal.kind,
    }


def _line(
    call: Call, path: str, dialect: Dialect, status: int, seconds: float, refusal: Refusal | None
) -> dict[str, Any]:
    """A line of the access log: what was asked for and done, and none of its texts."""
    done = call.done
    return {
        "at": round(time.time(), 3),
        "route": path,
        "dialect": dialect.name,
        "status": status,
        "reason": "" if refusal is None else refusal.kind,
        "ms": round(1_000 * seconds, 2),
        "key": "" if call.key is None else call.key.name,
        "candidates": done.candidates,
        "characters": done.characters,
        "tokens": done.tokens,
        "truncated": done.truncated,
        "unscored": len(done.unscored),
        "cached": done.cached,
        "level": done.level,
        "artifact": done.artifact,
        "side": done.side or "live",
        "request_id": call.request_id,
        "trace_id": call.trace_id,
    }
