"""A real Chromium for the pages that the gateway serves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium as the system installs it. Without root nobody can install it, so a test without it is skipped;
    CI installs it, and takes a skip for a failure."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def _failure_of(request: Request) -> list[str]:
    """Why it failed; a page may give up a request of its own."""
    return [] if request.failure == "net::ERR_ABORTED" else [f"{request.url}: {request.failure}"]


@contextmanager
def open_page(browser: Browser, url: str, *, refusals: bool = False, **options: object) -> Iterator[Page]:
    """A page in a session of its own; whatever it logs as an error, or fails to load, fails the test.

    Args:
        browser: from `open_browser`.
        url: what to open.
        refusals: the test is about requests that fail, which the browser logs as errors.
        options: of the session, such as viewport=PHONE or color_scheme="dark".
    """
    faults: list[str] = []
    context = browser.new_context(**options)  # type: ignore[arg-type]  # of several types
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", lambda request: faults.extend(_failure_of(request)))
        page.goto(url)
        yield page
    finally:
        context.close()
    assert refusals or not faults, faults
