"""One page to try a ranker: type a query, a history and candidates, see the ranking and where its time went.

Three files and nothing else: no build step, nothing from another host, nothing inline, so that it works offline and
under the strictest Content-Security-Policy, which it is sent with. It speaks to the gateway as any other caller does.
"""

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

KINDS = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "examples.js": "text/javascript; charset=utf-8",
}
HEADERS = {
    # Scripts and styles are this gateway's own; requests may go to another gateway too, to compare with it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self' http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def router() -> APIRouter:
    """The page and its files; to be mounted at /playground."""
    pages = APIRouter(include_in_schema=False)
    for name, kind in KINDS.items():
        _serve(pages, "/" if name == "index.html" else f"/{name}", _content(name), kind)

    @pages.get("")
    def lead_there() -> RedirectResponse:
        # Relative, so that it also leads there behind a proxy that puts the gateway below a path.
        return RedirectResponse("playground/")

    return pages


def _serve(pages: APIRouter, path: str, content: bytes, kind: str) -> None:
    @pages.get(path)
    def page() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)


def _content(name: str) -> bytes:
    return (files(__package__) / "page" / name).read_bytes()
