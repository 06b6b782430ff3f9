"""The controller as a process, steered from the command line and watched by its page of metrics."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from metric_pages import ROLLOUT, documented, told
from rollout_stand_ins import KEY, StandInGateway, StandInTriton, running
from starlette.applications import Starlette
from starlette.types import ASGIApp
from tritonrank import cli
from tritonrank.errors import ServerError
from tritonrank.serve.rollout.api import rollout_routes
from tritonrank.serve.rollout.controller import Controller
from tritonrank.serve.rollout.gateways import Gateways
from tritonrank.serve.rollout.places import urls_of
from tritonrank.serve.rollout.tritons import Tritons
from tritonrank.serve.versions.door import KeyNeeded
from typer.testing import CliRunner

PATIENCE_SECONDS = 60.0
RULES = "least_minutes = 0\ncanary_shares = [0.5]\nleast_pairs = 50\nleast_answers = 10\n"


@dataclass(frozen=True)
class Controlled:
    """A controller's process, and what it controls."""

    url: str
    metrics_url: str
    gateway: StandInGateway
    triton: StandInTriton
    process: subprocess.Popen[str]


@pytest.fixture
def controlled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controlled]:
    monkeypatch.setenv("TRITONRANK_ADMIN_KEY", KEY)
    gateway, triton = StandInGateway(), StandInTriton()
    (tmp_path / "gateways").write_text(f"{gateway.url}  # the only one\n")
    (tmp_path / "rules.toml").write_text(RULES)
    command = [sys.executable, "-m", "tritonrank", "rollout", "run", "--gateway", f"file:{tmp_path / 'gateways'}"]
    command += ["--triton-admin", triton.url, "--state", str(tmp_path / "state"), "--port", "0", "--metrics-port", "0"]
    command += ["--rules", str(tmp_path / "rules.toml")]
    with running(gateway, triton), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            urls = json.loads(process.stdout.readline())
            yield Controlled(urls["url"], urls["metrics_url"], gateway, triton, process)
        finally:
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ASGIApp]:
    controller = Controller(Gateways(["http://127.0.0.1:9"], KEY), Tritons([], KEY), tmp_path)
    yield KeyNeeded(Starlette(routes=rollout_routes(controller)), KEY)
    controller.close()


def ask(controlled: Controlled, *arguments: str) -> str:
    result = CliRunner().invoke(
        cli.app, ["rollout", *arguments], env={"COLUMNS": "200", "TRITONRANK_ROLLOUT": controlled.url}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.slow
def test_a_rollout_from_the_command_line(controlled: Controlled, tmp_path: Path) -> None:
    assert "No rollout yet" in ask(controlled, "status")
    ask(controlled, "start", str(tmp_path / "build"), "--name", "new")
    until(lambda: controlled.gateway.roles["shadow"] is not None, "no shadow")
    assert controlled.triton.versions["new"]["source"] == str(tmp_path / "build")
    ask(controlled, "hold")
    controlled.gateway.feed(200)
    until(lambda: "good" in ask(controlled, "status"), "no reading")
    ask(controlled, "promote")
    until(lambda: controlled.gateway.roles["canary"] is not None, "no canary")
    page = ask(controlled, "status")
    for said in ("canary for 50% of the users", "least_overlap", "promote", controlled.gateway.url):
        assert said in page
    metrics = told(httpx.get(f"{controlled.metrics_url}/metrics").text)
    mine = {name: one for name, one in metrics.items() if name.startswith("tritonrank_rollout_")}
    written = documented(ROLLOUT)
    assert {*mine} == {*written}
    for name, one in mine.items():
        assert (written[name].kind, written[name].labels) == (one.kind, one.labels), name
    ask(controlled, "back")
    until(lambda: json.loads(ask(controlled, "status", "--json"))["rollout"]["phase"] == "back", "not back")
    assert controlled.gateway.roles["canary"] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/rollout", None, 401),
        ("POST", "/rollout", {}, 422),
        ("POST", "/rollout", {"sauce": "x"}, 422),
        ("POST", "/rollout", {"source": 1}, 422),
        ("POST", "/rollout", {"triton": [1]}, 422),
        ("POST", "/rollout", {"source": "x", "rules": {"least_overlop": 1}}, 422),
        ("POST", "/rollout/promote", None, 409),
        ("POST", "/rollout/promote", {"to": "moon"}, 422),
        ("POST", "/rollout/back", None, 409),
        ("POST", "/rollout/back", [], 422),
    ],
    ids=lambda one: "" if isinstance(one, dict | list) or one is None else str(one),
)
def test_what_the_api_refuses(api: ASGIApp, method: str, path: str, body: object, status: int) -> None:
    headers = {} if status == 401 else {"Authorization": f"Bearer {KEY}"}

    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://controller") as http:
            return await http.request(method, path, json=body, headers=headers)

    answer = asyncio.run(asked())
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--gateway", "ftp://x"], "--gateway 'ftp://x': expected"),
        (["run", "--triton-admin", "dns:x"], "--triton-admin 'dns:x'"),
        (["run", "--rules", "nothing.toml"], "nothing.toml"),
        (["status", "--controller", "http://127.0.0.1:9"], "http://127.0.0.1:9: no answer"),
    ],
    ids=["gateway", "triton", "rules", "away"],
)
def test_what_the_command_refuses(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONRANK_ADMIN_KEY", KEY)
    with pytest.raises(ServerError, match=said):
        CliRunner().invoke(cli.app, ["rollout", *arguments], catch_exceptions=False)


def test_without_a_key_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("", "short"):
        monkeypatch.setenv("TRITONRANK_ADMIN_KEY", key)
        for verb in ("run", "status"):
            with pytest.raises(ServerError, match="openssl rand"):
                CliRunner().invoke(cli.app, ["rollout", verb], catch_exceptions=False)


def test_places_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# none yet\n\n10.0.0.1:8081\nhttps://a:1 # one\n10.0.0.1:8081\n")
    assert urls_of([f"file:{tmp_path / 'list'}"]) == ["http://10.0.0.1:8081", "https://a:1"]
    assert "http://127.0.0.1:8081" in urls_of(["dns:localhost:8081", "http://127.0.0.1:8081/"])
    with pytest.raises(OSError, match="gone"):
        urls_of([f"file:{tmp_path / 'gone'}"])
