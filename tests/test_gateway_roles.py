"""Keys of each role at every route, and the private port with and without an admin key."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_stand_ins import StandIn
from recommend_stand_ins import StandInCatalogue, recommender_of
from starlette.routing import Route
from tritonrank_gateway.app import create_app, create_metrics_app
from tritonrank_gateway.keys import ADMIN_VARIABLE, read_keys
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_recommend.stores import open_store

SECRETS = {name: f"{name}-key-of-sixteen-characters" for name in ("rank", "events", "admin", "usual")}
TOML = "".join(
    f'[keys.{name}]\nkey = "{secret}"\n' + (f'roles = ["{name}"]\n' if name != "usual" else "")
    for name, secret in SECRETS.items()
)
ADMIN_ROUTES = {("/v1/items", "PUT"), ("/v1/items", "DELETE"), ("/v1/items/bulk", "POST")} | {
    (path, method)
    for path, methods in (("/v1/items/{item_id}", ("PUT", "DELETE")), ("/v1/users/{user_id}", ("GET", "DELETE")))
    for method in methods
}
WITHOUT_KEY = {("/health", "get"), ("/info", "get")}
"""As TEI has them: whether it lives, and what is served."""


@asynccontextmanager
async def serving(
    tmp_path: Path, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient, dict[str, Any]]]:
    recommender = recommender_of(StandInCatalogue(20), None, store=open_store(f"sqlite:{tmp_path}/store.db"))
    app = create_app(GatewaySettings(access_log=False, **settings), StandIn(), None, recommender)
    side = create_metrics_app(app.state.gateway)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http,
        httpx.AsyncClient(transport=httpx.ASGITransport(side), base_url="http://gateway") as own,
    ):
        yield http, own, app.openapi()


def needed(path: str, method: str) -> str:
    if (path, method.upper()) in ADMIN_ROUTES:
        return "admin"
    return "events" if path == "/v1/events" else "rank"


async def test_every_route_wants_its_role(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(TOML)
    async with serving(tmp_path, keys_file=tmp_path / "keys.toml") as (http, _, page):
        found = set()
        for path, methods in page["paths"].items():
            for method in methods:
                if (path, method) in WITHOUT_KEY:
                    continue
                url, role = path.replace("{item_id}", "item-00").replace("{user_id}", "u1"), needed(path, method)
                found.add(role)
                assert (await http.request(method, url)).status_code == 401, (path, method)
                wrong = await http.request(method, url, headers={"X-API-Key": "a-key-that-nobody-ever-had"})
                assert wrong.status_code == 401
                for name, secret in SECRETS.items():
                    may = name in (role, "admin") or (name == "usual" and role != "admin")
                    answer = await http.request(method, url, headers={"Authorization": f"Bearer {secret}"})
                    assert (answer.status_code not in (401, 403)) == may, (path, method, name, answer.text)
                    if not may:
                        assert answer.status_code == 403
                        assert role in answer.text
                        assert secret not in answer.text
        assert found == {"rank", "events", "admin"}


async def test_an_admin_key_closes_what_needs_it_where_ranking_needs_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (http, _, _):
        assert (await http.delete("/v1/users/u1")).status_code == 200
    monkeypatch.setenv(ADMIN_VARIABLE, SECRETS["admin"])
    async with serving(tmp_path) as (http, _, _):
        assert (await http.delete("/v1/users/u1")).status_code == 401
        admin = {"X-API-Key": SECRETS["admin"]}
        assert (await http.delete("/v1/users/u1", headers=admin)).status_code == 200
        assert (await http.post("/v1/rank", json={"items": ["a"], "query": "b"})).status_code == 200


async def test_nothing_is_changed_on_the_private_port_without_an_admin_key(tmp_path: Path) -> None:
    assert ADMIN_VARIABLE not in os.environ
    (tmp_path / "keys.toml").write_text(TOML.replace('roles = ["admin"]', 'roles = ["rank"]'))
    async with serving(tmp_path, keys_file=tmp_path / "keys.toml") as (_, own, _):
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            answer = await own.request(method, "/adapt", headers={"X-API-Key": SECRETS["admin"]})
            assert (answer.status_code, ADMIN_VARIABLE in answer.json()["error"]) == (403, True)
        assert (await own.get("/adapt")).status_code == 200


async def test_every_write_of_the_private_port_wants_the_admin_key(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(TOML)
    async with serving(tmp_path, keys_file=tmp_path / "keys.toml") as (_, own, _):
        side: Any = own._transport.app  # type: ignore[attr-defined]
        paths = [route.path.replace("{role}", "live") for route in side.routes if isinstance(route, Route)]
        assert "/adapt" in paths
        for path in [*paths, "/nothing", "//adapt", "/adapt/", "/%61dapt"]:
            for method in ("PUT", "POST", "DELETE", "PATCH", "put", "QUERY"):
                assert (await own.request(method, path)).status_code == 401, (method, path)
                for name in ("rank", "events", "usual"):
                    answer = await own.request(method, path, headers={"X-API-Key": SECRETS[name]})
                    assert answer.status_code == 403, (method, path, name)
        answer = await own.put("/adapt", json={"queue_s": 0.5}, headers={"X-API-Key": SECRETS["admin"]})
        assert answer.json()["settings"]["queue_s"] == 0.5


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({ADMIN_VARIABLE: "short"}, "the admin key"),
        ({"TRITONRANK_GATEWAY_KEYS": "shop:boss=a-key-of-sixteen-ch"}, "shop: roles"),
        ({"TRITONRANK_GATEWAY_KEYS": "shop:=a-key-of-sixteen-ch"}, "shop: roles"),
        ({"TRITONRANK_GATEWAY_KEYS": "shop=a-key-of-sixteen-ch", ADMIN_VARIABLE: "a-key-of-sixteen-ch"}, "'shop'"),
    ],
    ids=["short", "unknown role", "no role", "the same key twice"],
)
def test_wrong_roles_and_keys_are_named_and_not_shown(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        read_keys(None, environment)
    assert "a-key-of-sixteen-ch" not in str(error.value)


def test_roles_come_from_the_environment_too() -> None:
    keys = read_keys(None, {"TRITONRANK_GATEWAY_KEYS": "a:rank=a-key-of-sixteen-ch, b:rank+admin=b-key-of-sixteen-ch"})
    key = keys.of({"x-api-key": "a-key-of-sixteen-ch"})
    assert key is not None
    assert key.roles == {"rank"}
    assert keys.has_admin
