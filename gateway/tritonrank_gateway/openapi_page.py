"""The page /docs: every route of /openapi.json with an example to edit and send. Nothing comes from elsewhere."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse

PAGE = Path(__file__).parent / "openapi.html"
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def page() -> HTMLResponse:
    """The page as it lies beside this file, with headers that let no other code in."""
    text = PAGE.read_text(encoding="utf-8")
    own = {name: f"'sha256-{_digest(content)}'" for name, content in INLINE.findall(text)}
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {own['script']}; style-src {own['style']}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(text, headers=headers)


def _digest(content: str) -> str:
    """As https://www.w3.org/TR/CSP3/ has it: of what stands between the tags."""
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
