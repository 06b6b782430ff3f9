"""Pages that the gateway serves for people: files of a package, with headers that let nothing foreign in."""

from collections.abc import Sequence
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

THEME = "theme.css"
"""Of all pages: colours, fonts, header."""
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}


def page_routes(package: str, names: Sequence[str], place: str, policy: str) -> APIRouter:
    """Routes of a page and its files, and of the style sheet that all pages have in common.

    Args:
        package: whose folder ``page`` holds them.
        names: of the files; ``index.html`` is the page.
        place: relative path from the parent, such as ``playground/``, so that the way there works behind a proxy that
            puts the gateway below a path.
        policy: the Content-Security-Policy.
    """
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    pages = APIRouter(include_in_schema=False)
    for name in (*names, THEME):
        content = (files(__package__ if name == THEME else package) / "page" / name).read_bytes()
        kind = KINDS[name.rpartition(".")[2]]
        _serve(pages, "/" if name == "index.html" else f"/{name}", content, kind, headers)

    @pages.get("")
    def lead_there() -> RedirectResponse:
        return RedirectResponse(place)

    return pages


def _serve(pages: APIRouter, path: str, content: bytes, kind: str, headers: dict[str, str]) -> None:
    @pages.get(path)
    def page() -> Response:
        return Response(content, media_type=kind, headers=headers)
