"""Looks at the pages again and again, and shows what happened between."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console, RenderableType
from rich.live import Live

from tritonrank.errors import ServerError
from tritonrank.serve.watch.alerts import Alerts
from tritonrank.serve.watch.page import render
from tritonrank.serve.watch.scrape import Scrape, Span, read_page

USUAL_URLS = ("http://127.0.0.1:8081/metrics", "http://127.0.0.1:8002/metrics")
"""Of a gateway and of a Triton on this machine, unless they were told other ports."""
WINDOW_SECONDS = 30.0
"""Rates are of about so long: shorter ones jump, longer ones tell too late."""


class Watch:
    """What is shown of some metrics pages.

    Args:
        urls: of the pages.

    Raises:
        ServerError: none of them answers, or the library that reads them is not installed.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(dict.fromkeys(urls))
        self._looks: deque[Mapping[str, Scrape]] = deque()
        self._alerts = Alerts()
        self._pool = ThreadPoolExecutor(len(self._urls), "watch")
        first = self._read()
        if all(page.problem for page in first.values()):
            told = "; ".join(f"{page.url}: {page.problem}" for page in first.values())
            raise ServerError(
                f"no metrics page answers ({told}). Start a server (tritonrank serve NAME), or name the page: "
                "tritonrank watch http://HOST:PORT/metrics"
            )
        self._looks.append(first)

    def look(self) -> RenderableType:
        """The page as it is now."""
        later = self._read()
        newest = max(page.at for page in later.values())
        while len(self._looks) > 1 and self._oldest() < newest - WINDOW_SECONDS:
            self._looks.popleft()
        span = Span(self._looks[0], later)
        self._looks.append(later)
        self._alerts.look(span, later)
        return render(span, later, self._alerts.last)

    def close(self) -> None:
        """End the threads that read."""
        self._pool.shutdown(wait=False)

    def _read(self) -> dict[str, Scrape]:
        return dict(zip(self._urls, self._pool.map(read_page, self._urls), strict=True))

    def _oldest(self) -> float:
        return max(page.at for page in self._looks[0].values())


def watch(urls: Sequence[str], every_seconds: float, *, once: bool, console: Console) -> None:
    """Show the page until Ctrl+C, or once.

    Args:
        urls: of the metrics pages; a server's address alone has /metrics added.
        every_seconds: between two looks.
        once: print one page, of two looks, and end.
        console: to show it on.

    Raises:
        ServerError: as of Watch.
    """
    watched = Watch([page_of(url) for url in urls] or USUAL_URLS)
    try:
        time.sleep(every_seconds)
        if once:
            console.print(watched.look())
            return
        with Live(watched.look(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every_seconds)
                live.update(watched.look(), refresh=True)
    except KeyboardInterrupt:
        return
    finally:
        watched.close()


def page_of(url: str) -> str:
    """The metrics page that a user means: a host and port alone are enough."""
    full = url if "://" in url else f"http://{url}"
    if not full.startswith(("http://", "https://")):
        raise ServerError(f"{url}: expected a metrics page such as {USUAL_URLS[0]}")
    rest = full.partition("://")[2]
    return full if rest.partition("/")[2] else f"{full.rstrip('/')}/metrics"
