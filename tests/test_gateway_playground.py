"""The playground in a real Chromium, with a real gateway and Triton behind it."""

from collections.abc import Iterator

import httpx
import pytest
from browser import DESKTOP, PHONE, open_browser, open_page
from conftest import Served
from gateways import RunningGateway, running_gateway
from playwright.sync_api import Browser, Page, expect
from tritonrank_client import RankClient

ITEMS = ["oak desk", "brass lamp", "garden chair", "<img src=x onerror=alert(1)>"]


@pytest.fixture(scope="module")
def gateway(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(served.urls["grpc"], tmp_path_factory.mktemp("gateway"), "--cache-mb", "1") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, gateway: RunningGateway) -> Iterator[Page]:
    with open_page(browser, f"{gateway.url}/playground/", viewport=DESKTOP) as opened:
        yield opened


def rows(page: Page, side: int = 0) -> list[str]:
    """The ranked texts, best first."""
    return page.locator(".side").nth(side).locator(".ranking .text").all_inner_texts()


def ask(page: Page, query: str, items: list[str], history: str = "") -> None:
    page.get_by_label("Query").fill(query)
    page.get_by_label("History", exact=False).first.fill(history)
    page.get_by_label("Candidates", exact=False).first.fill("\n".join(items))
    with page.expect_response("**/v1/rank"):
        page.get_by_role("button", name="Rank").click()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def test_a_ranking_greets_the_visitor(page: Page) -> None:
    expect(page.locator(".ranking li")).to_have_count(8)
    expect(page.locator("#server")).to_have_class("server well")


def test_it_shows_what_the_ranker_says(page: Page, served: Served) -> None:
    page.get_by_text("Settings", exact=True).first.click()
    page.locator("#side-a").get_by_label("Scores").select_option("logit")
    ask(page, "a desk", ITEMS, "lamp\nchair")
    with RankClient(served.urls["grpc"]) as client:
        expected = client.rank(query="a desk", history=["lamp", "chair"], items=ITEMS)
    assert rows(page) == [place.item for place in expected.ranking]
    scores = page.locator(".ranking output").all_inner_texts()
    assert scores == [f"{score:.3f}" for score in expected.scores]
    assert page.locator(".artifact").inner_text() == expected.artifact
    facts = page.locator(".facts").inner_text()
    assert "logit" in facts
    assert "token" in facts
    latency = page.locator(".latency").inner_text()
    assert "Triton" in latency
    assert "gateway" in latency


def test_texts_are_never_markup(page: Page) -> None:
    ask(page, "a desk", ITEMS)
    assert page.locator("#results img").count() == 0


def test_it_works_by_keyboard_alone(page: Page) -> None:
    expect(page.locator(".ranking li")).to_have_count(8)
    page.get_by_label("Candidates", exact=False).first.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("first\nsecond and longer")
    with page.expect_response("**/v1/rank"):
        page.keyboard.press("Control+Enter")
    expect(page.locator(".ranking li")).to_have_count(2)
    # From the top, Tab reaches everything in the order of the page, and says what it is.
    page.reload()
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("(document.activeElement.labels?.[0] || document.activeElement).innerText.split('\\n')[0]")
        )
    for name in ("Skip to the ranking", "Shop search", "Query", "History", "Candidates", "Rank", "Compare", "Settings"):
        assert any(said.startswith(name) for said in reached), (name, reached)


def test_fields_truncation_and_nothing_to_read(page: Page) -> None:
    ask(page, "desk", ['{"title": "Oak desk", "genres": ["wood"]}', "", "word " * 2_000, "lamp"])
    expect(page.locator(".ranking li")).to_have_count(4)
    assert page.locator(".fields dd").first.inner_text() == "Oak desk"
    last = page.locator(".ranking li").last
    assert "no text" in last.inner_text()
    long = page.locator(".ranking li", has_text="word word")
    assert "truncated" in long.inner_text()
    before = long.bounding_box()
    long.get_by_role("button", name="show all").click()
    after = long.bounding_box()
    assert before is not None
    assert after is not None
    assert after["height"] > 2 * before["height"]


def test_two_settings_side_by_side(page: Page) -> None:
    page.get_by_label("Compare two", exact=False).check()
    second = page.locator("#side-b")
    second.get_by_label("Scores").select_option("sigmoid")
    second.get_by_label("Best").fill("2")
    ask(page, "a desk", ITEMS, "lamp")
    expect(page.locator(".side")).to_have_count(2)
    assert (len(rows(page, 0)), len(rows(page, 1))) == (4, 2)
    assert rows(page, 0)[:2] == rows(page, 1)
    assert all(0 < float(score) < 1 for score in page.locator(".side").nth(1).locator("output").all_inner_texts())
    assert page.locator(".side").nth(1).locator(".same").count() == 2


def test_one_side_that_fails_leaves_the_other(browser: Browser, gateway: RunningGateway) -> None:
    with open_page(browser, f"{gateway.url}/playground/", refusals=True, viewport=DESKTOP) as page:
        page.get_by_label("Compare two", exact=False).check()
        page.locator("#side-b").get_by_label("Gateway").fill("http://127.0.0.1:1")
        ask(page, "a desk", ITEMS)
        expect(page.locator(".side .ranking li")).to_have_count(4)
        expect(page.get_by_role("alert")).to_contain_text("--cors")


def test_two_gateways_side_by_side(
    browser: Browser, gateway: RunningGateway, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flags = ("--model", "rank_joint", "--cors", gateway.url)
    with (
        running_gateway(served.urls["grpc"], tmp_path_factory.mktemp("other"), *flags) as other,
        open_page(browser, f"{gateway.url}/playground/", viewport=DESKTOP) as page,
    ):
        page.get_by_label("Compare two", exact=False).check()
        page.locator("#side-b").get_by_label("Gateway").fill(other.url)
        ask(page, "a desk", ITEMS)
        expect(page.locator(".side .ranking li")).to_have_count(8)
        first, second = page.locator(".artifact").all_inner_texts()
        assert first != second
        assert "Triton" in page.locator(".latency").nth(1).inner_text()


def test_a_kept_answer_is_told(page: Page) -> None:
    for _ in range(2):
        ask(page, "asked twice", ITEMS)
    assert "the cache" in page.locator(".facts").inner_text()


@pytest.mark.parametrize(
    ("items", "said"),
    [([], "none"), (["desk", '{"title": '], "line 2"), (["a"] * 1_001, "1000")],
    ids=["none", "no JSON", "too many"],
)
def test_what_is_wrong_is_said(browser: Browser, gateway: RunningGateway, items: list[str], said: str) -> None:
    with open_page(browser, f"{gateway.url}/playground/", refusals=True, viewport=DESKTOP) as page:
        expect(page.locator(".ranking li")).to_have_count(8)
        page.get_by_label("Candidates", exact=False).first.fill("\n".join(items))
        page.get_by_role("button", name="Rank").click()
        expect(page.get_by_role("alert")).to_contain_text(said)


def test_a_key_is_asked_for_and_sent(
    browser: Browser, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("keyed")
    with running_gateway(
        served.urls["grpc"], folder, environment={"TRITONRANK_GATEWAY_KEYS": "shop=secret-key-of-16-chars"}
    ) as keyed:
        assert httpx.post(f"{keyed.url}/v1/rank", json={"items": ["a"]}).status_code == 401
        with open_page(browser, f"{keyed.url}/playground/", refusals=True, viewport=DESKTOP) as page:
            expect(page.locator("#server")).to_have_text("needs an API key")
            page.get_by_role("button", name="Rank").click()
            expect(page.get_by_role("alert")).to_contain_text("401")
            page.locator("#key").fill("secret-key-of-16-chars")
            page.keyboard.press("Control+Enter")
            expect(page.locator(".ranking li")).to_have_count(8)


def test_a_gateway_that_is_gone(browser: Browser, served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        running_gateway(served.urls["grpc"], tmp_path_factory.mktemp("gone")) as running,
        open_page(browser, f"{running.url}/playground/", refusals=True, viewport=DESKTOP) as page,
    ):
        expect(page.locator(".ranking li")).to_have_count(8)
        running.process.terminate()
        running.process.wait(20)
        page.get_by_role("button", name="Rank").click()
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(browser: Browser, gateway: RunningGateway, scheme: str) -> None:
    with open_page(
        browser, f"{gateway.url}/playground/", viewport=PHONE, is_mobile=True, has_touch=True, color_scheme=scheme
    ) as page:
        page.get_by_role("button", name="Long texts").click()
        expect(page.locator(".ranking li")).to_have_count(4)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        # The answer came into sight by itself, and what is to be touched is large enough.
        expect(page.locator(".side h2")).to_be_in_viewport()
        button = page.get_by_role("button", name="Rank").bounding_box()
        assert button is not None
        assert button["height"] >= 40


def test_the_page_needs_no_other_host_and_nothing_inline(gateway: RunningGateway) -> None:
    page = httpx.get(f"{gateway.url}/playground/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page.text.replace("https://host:port", "")
    assert " style=" not in page.text
    assert " onclick=" not in page.text
    redirect = httpx.get(f"{gateway.url}/playground")
    assert redirect.is_redirect
    assert redirect.headers["location"].endswith("playground/")


def test_it_can_be_switched_off(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_gateway(served.urls["grpc"], tmp_path_factory.mktemp("off"), "--no-playground") as without:
        assert httpx.get(f"{without.url}/playground/").status_code == 404
