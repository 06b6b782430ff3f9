"""Scripts that were planted in what shops and callers write, on the pages that show it, in a real Chromium."""

from collections.abc import Iterator

import httpx
import pytest
from browser import DESKTOP, open_browser, open_page
from gateways import RunningGateway
from misbehaving_server import MisbehavingServer
from playwright.sync_api import Browser, Page, expect
from small_shop import running_shop
from tritonrank.artifacts.workspace import Workspace

PLANTED = (
    "<img src=x onerror=\"window.planted='img'\"><script>window.planted='script'</script>'\"><svg/onload=planted=1>"
)
LINK = "javascript:window.planted='link'"
LOOKED_FOR = "img[src=x], svg[onload], a[href^='javascript'], main script, form script, section script"


@pytest.fixture(scope="module")
def shop(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    triton = MisbehavingServer()
    try:
        with running_shop(workspace, triton.urls["grpc"], tmp_path_factory.mktemp("shop") / "tiny") as running:
            with httpx.Client(base_url=running.url, timeout=30) as http:
                shown = http.post("/v1/recommend", json={"size": 20}).json()["items"]
                hostile = {"title": PLANTED, "brand": PLANTED, "image": LINK, "url": LINK}
                items = [{"item_id": one["item_id"], "fields": one["fields"] | hostile} for one in shown]
                items.append({"item_id": PLANTED[:200], "fields": items[0]["fields"]})
                assert http.put("/v1/items", json={"items": items}).status_code == 200
                event = {"type": "purchase", "user_id": PLANTED[:200], "item_id": shown[0]["item_id"], "query": PLANTED}
                assert http.post("/v1/events", json=event).status_code == 200
            yield running
    finally:
        triton.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def assert_untouched(page: Page) -> None:
    assert page.evaluate("typeof window.planted") == "undefined"
    assert page.locator(LOOKED_FOR).count() == 0


@pytest.mark.slow
def test_the_storefront_shows_titles_brands_and_queries_as_text(browser: Browser, shop: RunningGateway) -> None:
    with open_page(browser, f"{shop.url}/storefront/", viewport=DESKTOP, refusals=True) as page:
        expect(page.locator(".card").first).to_be_visible(timeout=20_000)
        page.get_by_label("Search").fill(PLANTED)
        page.keyboard.press("Enter")
        expect(page.locator(".card", has_text="onerror=").first).to_be_visible(timeout=20_000)
        page.locator(".card").first.get_by_role("button", name="Why this?").click()
        expect(page.locator(".card .why").first).to_be_visible(timeout=20_000)
        page.locator(".card").nth(1).locator("button.name").click()
        page.wait_for_load_state("networkidle")
        assert_untouched(page)


@pytest.mark.slow
def test_the_playground_shows_documents_and_answers_as_text(browser: Browser, shop: RunningGateway) -> None:
    with open_page(browser, f"{shop.url}/playground/", viewport=DESKTOP, refusals=True) as page:
        page.get_by_label("Query").fill(PLANTED)
        page.get_by_label("Candidates").first.fill("\n".join([PLANTED, "oak desk", PLANTED + " again"]))
        page.keyboard.press("Control+Enter")
        expect(page.locator(".ranking .text", has_text="onerror=").first).to_be_visible(timeout=20_000)
        assert_untouched(page)


@pytest.mark.slow
def test_the_page_of_routes_shows_answers_as_text(browser: Browser, shop: RunningGateway) -> None:
    with open_page(browser, f"{shop.url}/docs", viewport=DESKTOP, refusals=True) as page:
        part = page.locator("section", has=page.get_by_label("Body for /v1/recommend"))
        part.locator("textarea").fill('{"size": 3}')
        part.get_by_role("button", name="Send").click()
        expect(part.locator("pre")).to_contain_text("onerror=", timeout=20_000)
        assert_untouched(page)


@pytest.mark.parametrize("path", ["/storefront/", "/playground/", "/docs"])
def test_pages_forbid_code_that_is_not_theirs(shop: RunningGateway, path: str) -> None:
    answer = httpx.get(f"{shop.url}{path}?q=<script>planted</script>", timeout=20)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy or "default-src 'self'" in policy
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "planted" not in answer.text
