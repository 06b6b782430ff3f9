"""A shop to look at recommendations as a customer does: search, click, buy, see the list change and ask why.

Made like the playground: no build step, nothing from another host, nothing inline. It speaks to the public routes of
this gateway alone, and shows each request as a command to copy, so that a developer sees what to call.
"""

from fastapi import APIRouter

from tritonrank_gateway.pages import page_routes

FILES = ("index.html", "style.css", "app.js", "api.js", "cards.js", "words.js")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def router() -> APIRouter:
    """The page and its files; to be mounted at /storefront."""
    return page_routes(__package__, FILES, "storefront/", POLICY)
