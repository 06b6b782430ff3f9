"""The storefront in a real Chromium: real Triton, gateway, catalogue and SQLite behind it."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import DESKTOP, PHONE, open_browser, open_page
from conftest import Served
from gateways import RunningGateway, running_gateway
from playwright.sync_api import Browser, Locator, Page, expect
from small_shop import make_shop, running_shop
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.server import LocalTriton

USER = "user-00001"
LIST_SECONDS = 1.0
"""In which a click has to change the list."""


@pytest.fixture(scope="module")
def shop(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_shop(served.workspace, served.urls["grpc"], tmp_path_factory.mktemp("shop") / "tiny") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, shop: RunningGateway) -> Iterator[Page]:
    with open_page(browser, f"{shop.url}/storefront/", viewport=DESKTOP) as opened:
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        ready(opened)
        yield opened
        assert all(url.startswith(shop.url) for url in asked), "a request left for elsewhere"


def ready(page: Page) -> None:
    expect(page.locator("#results .card, #results .side li").first).to_be_visible(timeout=20_000)
    settled(page)


def settled(page: Page) -> None:
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true", timeout=20_000)


def ids(page: Page) -> list[str]:
    return [str(card.get_attribute("data-item")) for card in page.locator(".card").all()]


def button(card: Locator, event: str) -> Locator:
    return card.locator(f"[data-event={event}]").last


def as_new_visitor(page: Page) -> None:
    page.get_by_label("Customer").first.select_option("new")
    expect(page.locator(".note.cold")).to_be_visible(timeout=20_000)
    settled(page)


def test_a_known_customer_is_greeted_with_a_list(page: Page, shop: RunningGateway) -> None:
    expect(page.locator(".card")).to_have_count(12)
    assert page.get_by_label("Customer").first.input_value() == USER
    expect(page.locator(".note")).to_have_count(0)
    status = page.locator("#status").inner_text()
    for step in ("who you are", "find", "rank"):
        assert step in status
    answer = httpx.post(f"{shop.url}/v1/recommend", json={"user_id": USER, "size": 12}).json()
    assert ids(page) == [item["item_id"] for item in answer["items"]]
    card = page.locator(".card").first
    fields = answer["items"][0]["fields"]
    for shown in (fields["title"], fields["brand"], str(fields["price"])):
        assert shown in card.inner_text()


def test_a_click_changes_the_next_list_within_a_second(page: Page) -> None:
    as_new_visitor(page)
    before, card = ids(page), page.locator(".card").nth(5)
    card.locator("button.name").click()
    expect(page.locator(".said")).to_contain_text("changed the list within", timeout=20_000)
    settled(page)
    assert ids(page) != before
    expect(page.locator(".note.cold")).to_have_count(0)
    said = page.locator(".said").inner_text()
    amount, unit = re.search(r"within ([\d.]+) (\w+)", said).groups()  # type: ignore[union-attr]
    assert unit == "ms"
    assert float(amount) < 1_000 * LIST_SECONDS, said
    moved = page.locator(".card .moved").all_inner_texts()
    assert len(moved) == sum(map(int, re.findall(r"(\d+) (?:new|moved)", said)))


def test_what_is_bought_or_not_wanted_goes(page: Page) -> None:
    as_new_visitor(page)
    for event in ("purchase", "skip"):
        item = ids(page)[0]
        button(page.locator(".card").first, event).click()
        expect(page.locator(f"[data-item={item}]")).to_have_count(0, timeout=20_000)
        settled(page)


def test_a_query_and_the_words_in_the_explanation(page: Page, shop: RunningGateway) -> None:
    page.get_by_label("Search").fill("waterproof jacket")
    with page.expect_response("**/v1/recommend"):
        page.keyboard.press("Enter")
    settled(page)
    asked = {"user_id": USER, "query": "waterproof jacket", "size": 12}
    answer = httpx.post(f"{shop.url}/v1/recommend", json=asked).json()
    assert ids(page) == [item["item_id"] for item in answer["items"]]
    card = page.locator(".card").first
    card.get_by_role("button", name="Why this?").click()
    expect(card.locator(".sentence")).to_be_visible(timeout=20_000)
    kinds = set(card.locator(".reasons .kind").all_inner_texts())
    assert kinds & {"your words", "what you did"}, kinds
    numbers = card.locator(".reasons output").all_inner_texts()
    assert all(re.fullmatch(r"[+\u2212]\d+\.\d\d", number) for number in numbers)
    card.get_by_role("button", name="Why this?").click()
    expect(card.locator(".why")).to_be_hidden()


def test_the_second_page_continues_the_first(page: Page) -> None:
    first = ids(page)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".card")).to_have_count(24, timeout=20_000)
    assert ids(page)[:12] == first
    assert len(set(ids(page))) == 24
    places = page.locator(".card .place span:first-child").all_inner_texts()
    assert places == [str(number) for number in range(1, 25)]


def test_retrieval_and_ranked_side_by_side(page: Page) -> None:
    page.get_by_label("Search").fill("desk")
    page.get_by_label("Compare two").check()
    expect(page.locator(".side")).to_have_count(2, timeout=20_000)
    settled(page)
    left, right = (side.locator("li").all() for side in page.locator(".side").all())
    assert len(left) == len(right) == 15
    assert [one.get_attribute("data-item") for one in left] != [one.get_attribute("data-item") for one in right]
    expect(page.locator(".side h2").first).to_have_text("Retrieval only")
    page.get_by_label("Right").select_option("retrieval")
    expect(page.locator(".side .moved.same")).to_have_count(30, timeout=20_000)


def test_filters_by_what_items_have(page: Page) -> None:
    page.get_by_label("Only where").first.select_option("category")
    choice = page.get_by_label("Value")
    category = choice.locator("option").nth(1).get_attribute("value")
    assert category
    with page.expect_response("**/v1/recommend"):
        choice.select_option(category)
    settled(page)
    assert all(category in card.inner_text() for card in page.locator(".card").all())
    page.get_by_label("Only where").first.select_option("price")
    with page.expect_response("**/v1/recommend"):
        page.get_by_label("At most").fill("30")
        page.keyboard.press("Tab")
    settled(page)
    prices = [float(price) for price in page.locator(".card .price").all_inner_texts()]
    assert prices
    assert max(prices) <= 30


def test_each_request_can_be_copied_and_works(page: Page, shop: RunningGateway) -> None:
    page.get_by_label("Search").fill("it's a desk")
    with page.expect_response("**/v1/recommend"):
        page.keyboard.press("Enter")
    settled(page)
    page.get_by_text("What this page asked").click()
    command = page.locator("#curls code").first.inner_text()
    words = shlex.split(command)
    assert words[0] == "curl"
    curl = shutil.which("curl")
    if curl is None:
        assert httpx.post(words[1], content=words[-1]).status_code == 200
    else:
        told = subprocess.run([curl, "-s", *words[1:]], capture_output=True, text=True, check=True).stdout
        assert '"items"' in told


def test_it_works_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.labels?.[0] || document.activeElement).innerText"))
    for name in ("Customer", "Search", "Only where", "Compare", "API key", "Add to cart", "Buy", "Why this?"):
        assert any(said.startswith(name) for said in reached), (name, reached)
    page.locator(".card button.name").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_be_visible(timeout=20_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(browser: Browser, shop: RunningGateway, scheme: str) -> None:
    long = "Wärmedämmverbundsystembefestigungsschraubenaufbewahrungskoffer"
    item = {"title": f"{long} {long}", "brand": long, "price": 12.0, "category": "long words", "attributes": long}
    assert httpx.put(f"{shop.url}/v1/items/long", json={"fields": item}).status_code == 200
    with open_page(
        browser, f"{shop.url}/storefront/", viewport=PHONE, is_mobile=True, has_touch=True, color_scheme=scheme
    ) as page:
        ready(page)
        page.get_by_label("Search").fill(long)
        with page.expect_response("**/v1/recommend"):
            page.keyboard.press("Enter")
        settled(page)
        while not page.locator("[data-item=long]").count():  # the tiny ranker puts it anywhere
            with page.expect_response("**/v1/recommend"):
                page.get_by_role("button", name="Show more").click()
            settled(page)
        page.locator("[data-item=long]").get_by_role("button", name="Why this?").tap()
        expect(page.locator("[data-item=long] .sentence")).to_be_visible(timeout=20_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        box = page.locator("[data-item=long] [data-event=purchase]").bounding_box()
        assert box is not None
        assert box["height"] >= 40
        page.get_by_label("Compare two").check()
        expect(page.locator(".side")).to_have_count(2, timeout=20_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_key_is_asked_for_and_sent(
    browser: Browser, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("keyed") / "tiny"
    flags = make_shop(served.workspace, root)
    with (
        running_gateway(
            served.urls["grpc"],
            root / "gateway",
            *flags,
            environment={"TRITONRANK_GATEWAY_KEYS": "shop=secret-key-of-16-chars"},
        ) as keyed,
        open_page(browser, f"{keyed.url}/storefront/", refusals=True, viewport=DESKTOP) as page,
    ):
        expect(page.get_by_role("alert")).to_contain_text("401")
        page.locator("#key").fill("secret-key-of-16-chars")
        page.keyboard.press("Tab")
        ready(page)
        page.get_by_text("What this page asked").click()
        assert "secret-key" not in page.locator("#curls").inner_text()


@pytest.mark.slow  # a server of its own, to be killed
def test_without_triton_there_is_still_a_list_and_it_says_so(
    browser: Browser, workspace: Workspace, tmp_path: Path
) -> None:
    with (
        LocalTriton(workspace.repository) as triton,
        running_shop(workspace, triton.grpc_url, tmp_path / "tiny") as running,
        open_page(browser, f"{running.url}/storefront/", viewport=DESKTOP) as page,
    ):
        ready(page)
        without_ranker = page.locator(".note.degraded", has_text="ranker was not heard")
        expect(without_ranker).to_have_count(0)  # of the store a busy machine may not hear in time, either
        triton.kill()
        page.get_by_label("Search").fill("desk")
        page.keyboard.press("Enter")
        expect(without_ranker).to_be_visible(timeout=30_000)
        settled(page)
        assert len(ids(page)) == 12
        page.locator(".card").first.get_by_role("button", name="Why this?").click()
        expect(page.locator(".card").first.locator(".sentence")).to_be_visible(timeout=30_000)


def test_nothing_foreign_and_nothing_inline(shop: RunningGateway) -> None:
    page = httpx.get(f"{shop.url}/storefront/")
    policy = page.headers["content-security-policy"]
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page.text
    assert " style=" not in page.text
    assert " onclick=" not in page.text
    assert httpx.get(f"{shop.url}/storefront").headers["location"].endswith("storefront/")
    assert httpx.get(f"{shop.url}/").headers["location"].endswith("storefront/")


def test_it_is_there_only_with_a_catalogue(served: Served, tmp_path: Path) -> None:
    with running_gateway(served.urls["grpc"], tmp_path) as without:
        assert httpx.get(f"{without.url}/storefront/").status_code == 404
        assert httpx.get(f"{without.url}/").headers["location"].endswith("playground/")
