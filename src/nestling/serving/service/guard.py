"""ASGI middleware before every route: key, readiness, the size of the body; headers and counters of the answer."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestling.serving.service.answers import RefusedError
from nestling.serving.service.limits import BODY, EMBED_BODY
from nestling.serving.service.service import Service

WITHOUT_KEY = frozenset({"/", "/health"})
WHILE_LOADING = frozenset({"/health", "/metrics", "/openapi.json"})
EMBEDDINGS = frozenset({"/embed", "/v1/embeddings"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """The outermost middleware; `routes` are the paths that are counted under their own names."""

    app: ASGIApp
    service: Service
    refusal: Callable[[RefusedError], Response]
    routes: Collection[str]
    key: str | None = None

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
        if self.key is not None and path not in WITHOUT_KEY:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            is_key = hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode())
            if scheme.lower() != "bearer" or not is_key:
                message = "this server wants its key, as in Authorization: Bearer KEY"
                challenge = {"WWW-Authenticate": "Bearer"}
                return RefusedError(401, message, reason="key", code="invalid_api_key", headers=challenge)
        if self.service.state != "ready" and path not in WHILE_LOADING:
            return RefusedError(503, "the server is loading; try again", reason="loading", headers={"Retry-After": "2"})
        return None
