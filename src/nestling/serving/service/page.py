"""The search page: one file whose style and script are inline, and the policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Page:
    """A page as it is sent.

    Attributes:
        policy: its Content-Security-Policy: its own style and script by their hashes, and requests to its own origin.
    """

    html: bytes
    policy: str


def load_page(*, login: bool = False) -> Page:
    """Put the page together. It holds no data: its script asks the server for all that it shows.

    Args:
        login: it asks for the server's key first.
    """
    style, script, html = (_template(f"search.{ending}") for ending in ("css", "js", "html"))
    html = html.replace(" data-login", "" if login else " hidden")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(html.replace("/*style*/", style).replace("/*script*/", script).encode("utf-8"), policy)


def _template(name: str) -> str:
    return (resources.files("nestling.serving.service") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
