"""One page to try a ranker: type a query, a history and candidates, see the ranking and where its time went.

A few files and nothing else: no build step, nothing from another host, nothing inline, so that it works offline and
under the strictest Content-Security-Policy, which it is sent with. It speaks to the gateway as any other caller does.
"""

from fastapi import APIRouter

from tritonrank_gateway.pages import page_routes

FILES = ("index.html", "style.css", "app.js", "view.js", "examples.js")
# Scripts and styles are this gateway's own; requests may go to another gateway too, to compare with it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' http: https:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def router() -> APIRouter:
    """The page and its files; to be mounted at /playground."""
    return page_routes(__package__, FILES, "playground/", POLICY)
