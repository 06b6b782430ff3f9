"""A page's own `fetch` in a real Chromium: other origins may call only where the gateway names them."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import open_browser, open_page
from gateways import running_gateway
from misbehaving_server import MisbehavingServer
from playwright.sync_api import Browser

FETCH = """async ([url, body]) => {
  try {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Deadline-Ms": "5000" },
      body: JSON.stringify(body),
    });
    return { status: answer.status, artifact: answer.headers.get("x-artifact"), body: await answer.json() };
  } catch (error) {
    return { error: String(error) };
  }
}"""
BODIES: dict[str, dict[str, Any]] = {
    "/v1/rank": {"query": "q", "items": ["a", "ccc", "bb"]},
    "/v1/rerank": {"query": "q", "documents": ["a", "ccc", "bb"]},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def triton() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    """A page of another origin."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = b"<!doctype html><title>shop</title>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_address[1]}"
    listener.shutdown()
    listener.server_close()


def test_a_page_of_a_named_origin_ranks(browser: Browser, triton: MisbehavingServer, shop: str, tmp_path: Path) -> None:
    with (
        running_gateway(triton.urls["grpc"], tmp_path, "--cors", shop) as gateway,
        open_page(browser, shop) as page,
    ):
        for path, body in BODIES.items():
            answer = page.evaluate(FETCH, [gateway.url + path, body])
            assert answer.get("status") == 200, answer
            places = answer["body"].get("ranking") or answer["body"]["results"]
            assert [place["index"] for place in places] == [1, 2, 0]
            assert answer["artifact"] == "fake-1", "the page may read our headers"


def test_no_other_page_may_call(browser: Browser, triton: MisbehavingServer, shop: str, tmp_path: Path) -> None:
    triton.asked.clear()
    with (
        running_gateway(triton.urls["grpc"], tmp_path, "--cors", "http://127.0.0.1:1") as gateway,
        open_page(browser, shop, refusals=True) as page,
    ):
        answer = page.evaluate(FETCH, [gateway.url + "/v1/rank", BODIES["/v1/rank"]])
        assert "error" in answer
    assert not triton.asked


def test_the_page_of_the_routes_sends_its_examples(browser: Browser, triton: MisbehavingServer, tmp_path: Path) -> None:
    with running_gateway(triton.urls["grpc"], tmp_path) as gateway, open_page(browser, f"{gateway.url}/docs") as page:
        section = page.locator("section", has_text="POST /v1/rank")
        section.first.get_by_role("button", name="Send").click()
        section.first.locator("pre").filter(has_text="200 in").wait_for(timeout=10_000)
        assert '"ranking"' in section.first.locator("pre").inner_text()
