"""Paths without parameters are answered as FastAPI would, and everything else by FastAPI."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from gateway_stand_ins import StandIn
from starlette.responses import Response
from tritonrank_gateway import app as app_module
from tritonrank_gateway.app import create_app
from tritonrank_gateway.endpoint import EXACT
from tritonrank_gateway.exact_paths import ExactPaths
from tritonrank_gateway.settings import GatewaySettings

SHOP = "http://shop.example"
BODY = {"query": "a lamp", "documents": ["a desk", "a lamp"]}


@asynccontextmanager
async def serving(**transport: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(GatewaySettings(cors=(SHOP,)), StandIn())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app, **transport), base_url="http://gateway") as client,
    ):
        yield client


ASKED = {
    "a ranking": ("POST", "/v1/rerank", BODY),
    "a body that is none": ("POST", "/v1/rerank", {"query": 1}),
    "no recommender": ("POST", "/v1/recommend", {"user_id": "ann"}),
    "another method": ("GET", "/v1/rerank", None),
    "a slash too many": ("POST", "/v1/rerank/", BODY),
    "a parameter": ("GET", "/v1/similar/a", None),
    "another page": ("GET", "/openapi.json", None),
    "no page": ("POST", "/v1/nothing", BODY),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
async def test_answers_are_those_of_the_routes(asked: tuple[str, str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    method, path, body = asked
    answers = []
    for endpoints in (EXACT, {}):
        monkeypatch.setattr(app_module, "EXACT", endpoints)
        async with serving() as http:
            answer = await http.request(method, path, json=body, headers={"X-Request-Id": "r1", "Origin": SHOP})
            answers.append((answer.status_code, answer.content, set(answer.headers)))
            assert answer.headers["access-control-allow-origin"] == SHOP
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("told", "is_exact"),
    [
        ({}, True),
        ({"method": "GET"}, False),
        ({"path": "/v1/rerank/"}, False),
        ({"root_path": "/shop"}, False),
        ({"type": "lifespan"}, False),
    ],
)
async def test_only_exact_calls_go_past_the_routes(told: dict[str, str], is_exact: bool) -> None:
    asked = {"type": "http", "method": "POST", "path": "/v1/rerank", "root_path": "", "headers": []} | told
    app, endpoint, send = AsyncMock(), AsyncMock(return_value=Response()), AsyncMock()
    await ExactPaths(app, {("POST", "/v1/rerank"): endpoint})(asked, AsyncMock(), send)
    assert (endpoint.await_count, app.await_count) == (is_exact, not is_exact)
    assert bool(send.await_count) == is_exact, "what the endpoint gave is sent"


async def test_what_is_asked_before_by_a_browser_is_answered_too() -> None:
    asks = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}
    async with serving() as http:
        answer = await http.options("/v1/rerank", headers=asks)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, SHOP)


async def test_below_another_path_the_routes_answer() -> None:
    """A proxy's prefix is part of the path there."""
    async with serving(root_path="/shop") as http:
        assert (await http.post("/shop/v1/rerank", json=BODY)).status_code == 200
        assert (await http.post("/v1/rerank", json=BODY)).status_code == 200


def test_every_call_without_parameters_is_there() -> None:
    app = create_app(GatewaySettings(), StandIn())
    described = {(method.upper(), path) for path, by in app.openapi()["paths"].items() for method in by}
    assert set(EXACT) <= described
    assert {one for one in described if one[0] == "POST" and "{" not in one[1]} <= set(EXACT)
