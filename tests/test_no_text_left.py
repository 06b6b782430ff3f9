"""Texts and ids of users are planted in every route, right and wrong, and searched for in all that a run leaves."""

import copy
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
from gateways import RunningGateway
from otlp_receiver import otlp_receiver
from small_shop import running_shop
from test_supervisor import serve_command, wait_until
from tritonrank.artifacts.workspace import Workspace
from tritonrank_client import RankClient, RankError

TEXT, USER, ITEM = "Zwetschgentext", "Zwetschgenuser", "Zwetschgenitem"
"""Parts of what is planted, found nowhere else: of texts, of users' ids, of ids and fields of items."""
USERS_FIELDS, ITEMS_FIELDS = ("user_id", "user", "event_id"), ("item_id", "item_ids", "recent")
KEPT_WORDS = ("type", "score_type", "truncation_direction", "details", "order", "model")
"""Fields of a few words, of which another one only makes a request wrong."""
SECRETS = {
    "TRITONRANK_ADMIN_KEY": "Zwetschgen-admin-key-0123",
    "TRITONRANK_PSEUDONYM_KEY": "Zwetschgen-pseudonym-key-0123",
    "TRITONRANK_PRIVATE_FIELDS": "query,page",
}
ADMIN = {"Authorization": f"Bearer {SECRETS['TRITONRANK_ADMIN_KEY']}"}


def planted(value: Any, field: str = "") -> Any:
    """A body with something planted in place of every text."""
    if isinstance(value, dict):
        return {name: planted(one, name if field not in ITEMS_FIELDS else field) for name, one in value.items()}
    if isinstance(value, list):
        return [planted(one, field) for one in value]
    if not isinstance(value, str) or field in KEPT_WORDS:
        return value
    if field in USERS_FIELDS:
        return f"{USER}-{value}"
    return f"{ITEM}-{value}" if field in (*ITEMS_FIELDS, "fields", "title", "brand") else f"{TEXT} {value}"


def requests(page: dict[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    """Method, path and body of every route: right, wrong in each field, torn, and too deep."""
    for path, methods in page["paths"].items():
        # What is said of items is kept; of whatever else nothing may be.
        text, user = (ITEM, ITEM) if "/items" in path else (TEXT, USER)
        url = path.replace("{item_id}", f"{ITEM}-1").replace("{user_id}", f"{USER}-1")
        for method, said in methods.items():
            content = said.get("requestBody", {}).get("content", {})
            examples = [one["value"] for body in content.values() for one in body["examples"].values()]
            if not content:
                yield method, url, b""
                yield method, f"{url}?{TEXT}={USER}", b""
            for example in examples:
                body = planted(example)
                whole = json.dumps(body).encode()
                yield method, url, whole
                yield method, url, whole[:-3]
                yield method, f"{url}?{user}={text}", b"[" * 5_000 + f'"{text}"'.encode()
                for name in body if isinstance(body, dict) else ():
                    for wrong in (f"{text}-{user}", {text: user}, [[text]], 1e300):
                        yield method, url, json.dumps(copy.copy(body) | {name: wrong}).encode()
                yield method, url, json.dumps({text: user} | (body if isinstance(body, dict) else {})).encode()


def use(gateway: RunningGateway, triton: dict[str, str]) -> dict[int, int]:
    """Ask for everything; how often each status came."""
    statuses: dict[int, int] = {}
    headers = {"X-User-Id": f"{USER}-header", "Referer": f"https://shop.example/{TEXT}", "User-Agent": TEXT} | ADMIN
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=30) as http:
        page = http.get("/openapi.json").json()
        for method, path, body in requests(page):
            status = http.request(method, path, content=body).status_code
            statuses[status] = statuses.get(status, 0) + 1
        event = {"type": "click", "user_id": f"{USER}-buyer", "item_id": "i1", "query": f"{TEXT} boots", "value": 1.0}
        assert http.post("/v1/events", json=event).status_code == 200
        for size in (2, 3):
            asked = {"user_id": f"{USER}-buyer", "query": f"{TEXT} lamp", "size": size, "explain": True}
            first = http.post("/v1/recommend", json=asked)
            assert first.status_code == 200, first.text
            more = {"user_id": f"{USER}-buyer", "cursor": first.json()["cursor"], "size": 2}
            assert http.post("/v1/recommend", json=more).status_code == 200
        for path in (f"/{TEXT}", f"/v1/users/{quote(USER + '/../' + TEXT)}", f"/v1/similar/{ITEM}%00"):
            http.get(path)
        http.get("/v1/rank", headers={"Authorization": f"Bearer {TEXT}-and-more-characters"})
        http.post("/v1/rank", headers={"X-Deadline-Ms": USER}, json={"items": ["a"], "query": TEXT})
    httpx.put(f"{gateway.metrics_url}/adapt", json={TEXT: USER}, headers=ADMIN)
    httpx.get(f"{gateway.metrics_url}/{TEXT}", headers={"X-User-Id": USER})
    for url in (gateway.url, gateway.metrics_url, triton["HTTP"]):
        address = urlsplit(url)
        for line in (f"{TEXT} {USER}", f"GET /{TEXT} HTTP/9.9", f"POST /v2/models/{TEXT}/infer HTTP/1.1"):
            with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=2) as connection:
                connection.sendall(f"{line}\r\n\r\n".encode())
    for protocol in ("gRPC", "HTTP"):
        with RankClient(triton[protocol], timeout=20) as client:
            items = [f"{TEXT} one", {"title": f"{TEXT} two", TEXT: TEXT}]
            client.rank(query=f"{TEXT} query", items=items, item_ids=[ITEM, USER])
            for wrong in ({"items": [f"{TEXT} x" * 100_000]}, {"items": [{TEXT: TEXT}], "strict": True}):
                try:
                    client.rank(query=f"{TEXT} query", **wrong)  # type: ignore[arg-type]
                except RankError:
                    continue
    body = {"inputs": [{"name": TEXT, "datatype": "BYTES", "shape": [1], "data": [USER]}]}
    for path in ("rank/infer", "ranker/infer", f"{TEXT}/infer", "rank/generate"):
        httpx.post(f"{triton['HTTP']}/v2/models/{path}", json=body, timeout=20)
    return statuses


def told(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below a folder, with the rows of those that are compressed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            rows = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
            yield path, str(path) + path.read_bytes().decode("latin-1") + rows


@pytest.mark.slow
def test_no_text_and_no_user_is_left_behind(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workspace.repository, tmp_path / "repository")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    pages: list[str] = []
    with otlp_receiver() as traces:
        for name, value in traces.environment.items():
            monkeypatch.setenv(name, value)
        with serve_command(tmp_path / "repository", tmp_path, "--log-file", str(tmp_path / "server.log")) as served:
            flags = ("--events-log", str(tmp_path / "log"), "--tracing")
            with running_shop(workspace, served.urls["gRPC"], tmp_path / "shop", *flags) as gateway:
                address = urlsplit(served.urls["gRPC"]).netloc
                for role in ("shadow", "canary"):  # they are told of in logs and figures of their own
                    version = {"name": role, "triton": [address], "model": "rank", "share": 0.5}
                    put = httpx.put(f"{gateway.metrics_url}/versions/{role}", json=version, headers=ADMIN, timeout=30)
                    assert put.status_code == 200, put.text
                statuses = use(gateway, served.urls)
                own = [psutil.Process(pid) for pid in (gateway.process.pid, served.program.pid)]
                told_to_all = [one.cmdline() for one in [*own, served.triton, *served.triton.children(recursive=True)]]
                assert len(told_to_all) >= 4
                assert not [words for words in told_to_all if "Zwetschgen" in str(words)]
                assert statuses[200] > 10
                assert sum(number for status, number in statuses.items() if 400 <= status < 500) > 100
                assert not statuses.get(500), gateway.log
                with httpx.Client(timeout=20) as http:
                    pages += [http.get(f"{gateway.metrics_url}/metrics").text, http.get(served.urls["metrics"]).text]
                    pages += [http.get(f"{gateway.metrics_url}/{path}").text for path in ("adapt", "reference")]
                    compared = http.get(f"{gateway.metrics_url}/versions/comparison", headers=ADMIN)
                    assert compared.status_code == 200
                    pages.append(compared.text)
                wait_until(lambda: len(traces.spans) > 20, 20, lambda: "no spans")
                for process in served.triton.children():  # what is lost is told, and told without texts
                    process.kill()
                    break
        spans = [body.decode("latin-1") for body in traces.bodies]
    (tmp_path / "pages").write_text("\n".join([*pages, *spans]), encoding="utf-8")
    found = {}
    for path, text in told(tmp_path):
        is_store = (tmp_path / "log") in path.parents or path.name.startswith("store")
        for mark in (TEXT, USER, "Zwetschgen-") if is_store else (TEXT, USER, ITEM, "Zwetschgen"):
            if mark in text:
                at = text.index(mark)
                found[str(path.relative_to(tmp_path)), mark] = text[max(0, at - 200) : at + 100]
    assert not found
    assert (tmp_path / "shop" / "gateway" / "gateway.log").stat().st_size > 10_000
    assert (tmp_path / "server.log").stat().st_size > 1_000
    assert any((tmp_path / "log").rglob("*.parquet"))
