"""The page /docs: every route of /openapi.json with an example to edit and send. Nothing comes from elsewhere."""

from pathlib import Path

from starlette.responses import HTMLResponse

PAGE = Path(__file__).parent / "openapi.html"


def page() -> HTMLResponse:
    """The page as it lies beside this file."""
    return HTMLResponse(PAGE.read_text(encoding="utf-8"))
