"""What every request passes before its route: host, key, readiness, size and speed of the body."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from nestling.serving.service.answers import RefusedError, busy, error_body
from nestling.serving.service.limits import BODIES, EMBED_BODY, Limits
from nestling.serving.service.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEALTH, PAGE = "/health", "/"
EMBEDDINGS = frozenset({"/embed", "/v1/embeddings"})
OPEN_WHILE_NOT_READY = frozenset({HEALTH, "/metrics", "/openapi.json"})
LINGER = 1.0
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class _GoneError(Exception):
    """The client hung up."""


class Guard:
    """ASGI middleware around the app, the outermost."""

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        metrics: Metrics,
        state: Callable[[], str],
        routes: Collection[str],
        hosts: Collection[str] | None = None,
        key: str | None = None,
    ) -> None:
        """Wrap an app.

        Args:
            state: `loading`, `ready` or `stopping`.
            routes: paths that are counted under their own names.
            hosts: names that a Host header may hold, without port; None for any. What stops a page of another site
                whose name was rebound to this machine's address.
            key: what `Authorization: Bearer KEY` must hold, for all but /health and the page, which holds no
                data; None asks for none.
        """
        self.app, self.limits, self.metrics, self.state = app, limits, metrics, state
        self.routes, self.hosts = frozenset(routes), None if hosts is None else frozenset(hosts)
        self._key = None if key is None else key.encode("utf-8")
        self.under_way = self._bytes = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        self.under_way += 1
        try:
            await self._guarded(scope, receive, counted)
        except RefusedError as refused:
            await self._refuse(refused, receive, counted, linger=refused.status in (413, 429))
        except _GoneError:
            pass
        finally:
            self.under_way -= 1
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.request(route, status, time.perf_counter() - began)

    async def _guarded(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        path = scope["path"]
        if self.hosts is not None and _host(headers) not in self.hosts:
            raise RefusedError(400, "this host name is not served here", reason="host")
        if self._key is not None and path not in (HEALTH, PAGE) and not _has_key(headers, self._key):
            raise RefusedError(
                401,
                "this server wants its key, as in Authorization: Bearer KEY",
                reason="key",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        state = self.state()
        if state != "ready" and path not in OPEN_WHILE_NOT_READY:
            what = "is loading" if state == "loading" else "is shutting down"
            raise RefusedError(503, f"the server {what}; try again", reason=state, headers={"Retry-After": "2"})
        parts: list[bytes] = []
        try:
            await self._read(headers, receive, parts, EMBED_BODY if path in EMBEDDINGS else self.limits.body)
            await self._answer(scope, b"".join(parts), receive, send)
        finally:
            self._bytes -= sum(map(len, parts))

    async def _answer(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive, parts: list[bytes], most: int) -> None:
        large = RefusedError(
            413, f"a request's body may have {most:,} bytes", reason="body", headers={"Connection": "close"}
        )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > most:
            raise large
        total = 0
        try:
            async with asyncio.timeout(self.limits.reading):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    part = message.get("body", b"")
                    total += len(part)
                    if total > most:
                        raise large
                    if self._bytes + len(part) > BODIES:
                        full = busy()
                        full.headers["Connection"] = "close"
                        raise full
                    parts.append(part)
                    self._bytes += len(part)
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            raise RefusedError(
                408,
                f"the body did not come within {self.limits.reading:g} s",
                reason="slow",
                headers={"Connection": "close"},
            ) from None

    async def _refuse(self, refused: RefusedError, receive: Receive, send: Send, *, linger: bool = False) -> None:
        if refused.reason:
            self.metrics.rejected(refused.reason)
        body = error_body(refused.status, refused.message, param=refused.param, code=refused.code)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode("ascii")),
            *((name.lower().encode("ascii"), value.encode("ascii")) for name, value in refused.headers.items()),
        ]
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": linger})
        if linger:
            await self._drain(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drain(self, receive: Receive) -> None:
        """Throw away a little more, since closing on unread bytes resets the connection before the answer is read."""
        read = 0
        try:
            async with asyncio.timeout(LINGER):
                while read <= self.limits.body:
                    message = await receive()
                    read += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _host(headers: Mapping[bytes, bytes]) -> str:
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _has_key(headers: Mapping[bytes, bytes], key: bytes) -> bool:
    kind, _, given = headers.get(b"authorization", b"").partition(b" ")
    return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), key)
