"""The search page: one file whose style and script are inline, and the policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from starlette.responses import Response


def load_page(*, login: bool = False) -> Response:
    """Return the page, which holds no data: its script asks the server for all that it displays.

    Its Content-Security-Policy allows its own style and script by their hashes, and requests to its own origin.

    Args:
        login: it asks for the server's key first.
    """
    templates = resources.files("nestling.serving.service") / "templates"
    style, script, html = ((templates / f"search.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    html = html.replace(" data-login", "" if login else " hidden")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Frame-Options": "DENY"}
    html = html.replace("/*style*/", style).replace("/*script*/", script)
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
