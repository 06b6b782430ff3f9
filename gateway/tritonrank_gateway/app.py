"""The gateway as ASGI applications: one for callers, one with health and metrics for those who run it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from tritonrank_recommend.engine import Recommender
from tritonrank_recommend.stores import GuardedStore

from tritonrank_gateway.about_metrics import AboutMetrics
from tritonrank_gateway.adapt.compose import pace_of
from tritonrank_gateway.adapt.tuning import adapt
from tritonrank_gateway.admin import AdminDoor, refused
from tritonrank_gateway.call import Gateway
from tritonrank_gateway.dialects import routers
from tritonrank_gateway.endpoint import BODIES, EXACT
from tritonrank_gateway.exact_paths import ExactPaths
from tritonrank_gateway.keys import read_keys
from tritonrank_gateway.load import Load
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.openapi_page import page
from tritonrank_gateway.process_metrics import process_metrics
from tritonrank_gateway.quality import Quality
from tritonrank_gateway.quality.exposure import Exposure
from tritonrank_gateway.ranking import Backend
from tritonrank_gateway.readiness import Readiness
from tritonrank_gateway.recommend import routers as recommend_routers
from tritonrank_gateway.recommend.events import count_clicks
from tritonrank_gateway.recommend.log_metrics import LogMetrics
from tritonrank_gateway.recommend.store_metrics import StoreMetrics
from tritonrank_gateway.recommend.stream_metrics import StreamMetrics
from tritonrank_gateway.refusal import Refusal
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.tracing import NO_TRACING, Tracing
from tritonrank_gateway.versions.compose import change_versions, versions_of
from tritonrank_gateway.versions.routes import version_routes

SCHEMAS = "#/components/schemas/{name}"
HEADERS_TO_PAGES = [
    "X-Request-Id",
    "X-Adapt-Level",
    "X-Artifact",
    "X-Score-Type",
    "X-Truncated-Documents",
    "X-Unranked-Documents",
    "X-Unscored-Documents",
    "Retry-After",
    "Server-Timing",
]


def create_app(
    settings: GatewaySettings,
    backend: Backend,
    metrics: Metrics | None = None,
    recommender: Recommender | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application for callers; it closes the backend when it ends.

    Args:
        settings: of this gateway; keys are read from its file and from the environment.
        backend: what ranks: versions, or the one that there is to begin with.
        metrics: where a part behind the backend counts, too.
        recommender: None where there is neither a catalogue nor a store; it is started and closed with the application.
        tracing: None makes no traces; it is closed with the application.

    Raises:
        ValueError: a key or the reference is wrong.
    """
    metrics, tracing = metrics or Metrics(), tracing or NO_TRACING
    load = Load(settings.max_in_flight, settings.max_queued_s)
    metrics.watch(lambda: load.in_flight, lambda: load.queued_seconds)
    quality = Quality(settings.reference_file)
    metrics.registry.register(quality)
    exposure = None
    if recommender is not None and recommender.parts.catalogue.is_wanted:
        folder = recommender.parts.catalogue
        exposure = Exposure(lambda: folder.opened, recommender.parts.store)
        metrics.registry.register(exposure)
    if recommender is not None and recommender.parts.log is not None:
        metrics.registry.register(LogMetrics(recommender.parts.log.state))
    if recommender is not None and recommender.parts.intake is not None:
        metrics.registry.register(StreamMetrics(recommender.parts.intake.state))
    if recommender is not None and isinstance(recommender.parts.store, GuardedStore):
        metrics.last_event = StoreMetrics(recommender.parts.store, metrics.registry).last_event
    versions = versions_of(backend, settings, metrics, tracing)
    if recommender is not None:
        recommender.span = tracing.step
    pace = pace_of(settings, load, metrics)
    metrics.registry.register(AboutMetrics(versions, recommender))
    keys = read_keys(settings.keys_file, os.environ)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if recommender is not None:
            await recommender.start()
        if exposure is not None:
            exposure.start()
        pace.start()
        async with process_metrics(metrics):
            yield
        await pace.close()
        if exposure is not None:
            await exposure.close()
        if recommender is not None:
            await recommender.close()
        await versions.close()
        await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="tritonrank gateway",
        version=version("tritonrank"),
        docs_url=None,  # FastAPI's page loads its parts from a CDN
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gateway = Gateway(settings, versions, keys, load, metrics, pace, quality, recommender, tracing, exposure)
    if recommender is not None and recommender.parts.intake is not None:
        recommender.parts.intake.watch(partial(count_clicks, app.state.gateway))
    for router in [*routers(), *recommend_routers()]:
        app.include_router(router)
    home = "/docs"
    has_catalogue = recommender is not None and recommender.parts.catalogue.is_wanted
    for name, is_on in (("playground", settings.playground), ("storefront", settings.storefront and has_catalogue)):
        if is_on and find_spec(f"tritonrank_gateway.{name}") is not None:
            app.include_router(import_module(f"tritonrank_gateway.{name}").router(), prefix=f"/{name}")
            home = f"/{name}/"
    app.add_api_route("/docs", page, include_in_schema=False)
    app.add_api_route("/", lambda: RedirectResponse(home), include_in_schema=False)
    app.add_middleware(ExactPaths, endpoints=EXACT)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "X-API-Key",
                "X-Deadline-Ms",
                "X-Documents-In-Order",
                "X-Request-Id",
                "X-User-Id",
            ],
            expose_headers=HEADERS_TO_PAGES,
        )
    app.openapi = _openapi(app)  # type: ignore[method-assign]  # as FastAPI documents it
    return app


def create_metrics_app(gateway: Gateway) -> Starlette:
    """/metrics, /health/live, /health/ready, /reference, /adapt and /versions, to be served on a port of their own.

    Whatever changes something there needs an admin key (``admin.py``).
    """

    async def metrics(request: Request) -> Response:
        # OpenMetrics for who asks for it: that alone has exemplars, the trace of one request in a bucket.
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(gateway.metrics.registry), headers={"Content-Type": content_type})

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    readiness = Readiness(gateway)

    async def ready(_: Request) -> Response:
        if gateway.load.is_draining:
            return JSONResponse({"ready": False, "draining": True}, status_code=503)
        is_ready, ranks = await readiness.now()
        return JSONResponse({"ready": is_ready, "ranker": ranks}, status_code=200 if is_ready else 503)

    async def reference(_: Request) -> Response:
        now = gateway.quality.reference_now()
        if now is None:
            return JSONResponse({"error": "drift is not measured; start the gateway with --reference"}, status_code=404)
        return Response(msgspec.json.format(msgspec.json.encode(now)), media_type="application/json")

    async def tune(request: Request) -> Response:
        return await adapt(request, gateway)

    private = Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/reference", reference),
            Route("/adapt", tune, methods=["GET", "PUT"]),
            *version_routes(change_versions(gateway)),
        ],
        middleware=[Middleware(AdminDoor, gateway.keys)],
        exception_handlers={Refusal: refused},
    )
    private.state.keys = gateway.keys
    return private


def _openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The OpenAPI page with the bodies, which FastAPI does not see because msgspec reads them."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, components = msgspec.json.schema_components(list(BODIES.values()), ref_template=SCHEMAS)
            made.setdefault("components", {}).setdefault("schemas", {}).update(components)
            bearer = {"type": "http", "scheme": "bearer"}
            made["components"]["securitySchemes"] = {"key": bearer}
            if len(app.state.gateway.keys):
                made["security"] = [{"key": []}]
            app.openapi_schema = made
        return app.openapi_schema

    return described
