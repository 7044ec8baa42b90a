"""ASGI middleware before every route: key, readiness, the size of the body; headers and counters of the answer."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestling.serving.service.answers import RefusedError
from nestling.serving.service.limits import BODY, EMBED_BODY
from nestling.serving.service.service import Service

HEALTH, PAGE = "/health", "/"
EMBEDDINGS = frozenset({"/embed", "/v1/embeddings"})
OPEN_WHILE_LOADING = frozenset({HEALTH, "/metrics", "/openapi.json"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """The outermost middleware."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        *,
        refusal: Callable[[RefusedError], Response],
        routes: Collection[str],
        key: str | None = None,
    ) -> None:
        """Wrap an app.

        Args:
            refusal: makes the answer of a request that is refused.
            routes: paths that are counted under their own names.
            key: what `Authorization: Bearer KEY` must hold, for all but /health and the page, which holds no
                data; None asks for none.
        """
        self.app, self.service, self.refusal, self.routes = app, service, refusal, frozenset(routes)
        self._key = None if key is None else key.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, size, path = time.perf_counter(), 0, 0, scope["path"]
        most = EMBED_BODY if path in EMBEDDINGS else BODY
        too_large = RefusedError(413, f"a request's body may have {most:,} bytes", reason="body")

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise too_large
            return message

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        refused = self._refused(path, headers)
        if refused is None and int(headers.get("content-length", 0)) > most:
            refused = too_large
        try:
            await (self.refusal(refused) if refused else self.app)(scope, limited, counted)
        finally:
            route, metrics = path if path in self.routes else "other", self.service.metrics
            metrics.requests.labels(route, str(status)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _refused(self, path: str, headers: Headers) -> RefusedError | None:
        if self._key is not None and path not in (HEALTH, PAGE):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key):
                return RefusedError(
                    401,
                    "this server wants its key, as in Authorization: Bearer KEY",
                    reason="key",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if self.service.state != "ready" and path not in OPEN_WHILE_LOADING:
            return RefusedError(503, "the server is loading; try again", reason="loading", headers={"Retry-After": "2"})
        return None
