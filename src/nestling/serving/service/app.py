"""The routes of the server and its search page: FastAPI around a Service, and the guard before it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestling.environment import VERSION
from nestling.serving.service import shapes
from nestling.serving.service.answers import RefusedError, error_body
from nestling.serving.service.limits import BODY, EMBED_BODY
from nestling.serving.service.service import Service

DESCRIPTION = "Search in indexes that nestling index wrote, embeddings, and one query at several sizes side by side."
REFUSALS = {
    400: "The body is no JSON, or the Host header names another place.",
    401: "The key is missing or wrong.",
    404: "No such index or model.",
    413: "The body is too large.",
    415: "The header Content-Type does not say application/json.",
    422: "A value is missing, odd or beyond its limit.",
    429: "Too many requests are waiting; Retry-After says when to try again.",
    500: "The encoder failed on a text of this request.",
    503: "The server is loading; Retry-After says when to try again.",
    504: "No answer came in time.",
}
NOT_JSON = "send JSON with the header Content-Type: application/json (curl: -H 'content-type: application/json')"
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


def create_app(service: Service, *, hosts: Sequence[str] = ("*",), key: str | None = None) -> Guard:
    """Return the ASGI application.

    Args:
        hosts: names that the Host header may hold, against pages of other sites whose name was rebound to this machine.
        key: what clients must send as `Authorization: Bearer KEY`, but for /health and the page; None opens all.
    """
    # No pages of documentation: FastAPI's load their script from another place.
    app = FastAPI(
        title="Nestling",
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        responses={n: {"model": shapes.ErrorAnswer, "description": text} for n, text in REFUSALS.items()},
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    page = load_page(login=key is not None)

    for method, path, endpoint, answer, summary in (
        ("POST", "/search", service.search, shapes.SearchAnswer, "Search one index"),
        ("POST", "/v1/embeddings", service.embed, shapes.EmbedAnswer, "Encode texts, as OpenAI's embeddings API"),
        ("POST", "/embed", service.embed, shapes.EmbedAnswer, "Encode texts; the same as /v1/embeddings"),
        ("POST", "/compare", service.compare, shapes.CompareAnswer, "Search one query in two ways"),
        ("POST", "/sizes", service.sizes, shapes.SizesAnswer, "Search one query at every size of an index"),
        ("GET", "/v1/models", service.models, shapes.ModelsAnswer, "Names that /v1/embeddings takes as a model"),
        ("GET", "/v1/models/{model:path}", service.model, shapes.ModelAnswer, "One of them"),
        ("GET", "/indexes", service.described, shapes.IndexesAnswer, "What is served"),
        ("GET", "/queries", service.queries, shapes.QueriesAnswer, "Judged queries"),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=answer, summary=summary)

    loading: dict[int | str, dict[str, Any]] = {503: {"model": shapes.HealthAnswer, "description": "Loading."}}

    @app.get("/health", response_model=shapes.HealthAnswer, summary="Whether requests are answered", responses=loading)
    async def health() -> Response:
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response, responses=text)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def search_page() -> Response:
        return page

    def refusal(error: HTTPException) -> Response:
        reason, param, code = (getattr(error, name, None) for name in ("reason", "param", "code"))
        if reason:
            service.metrics.rejected.labels(reason).inc()
        body = error_body(error.status_code, str(error.detail), param=param, code=code)
        return Response(body, error.status_code, error.headers, media_type="application/json")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A page of another site can send other kinds without asking the browser's leave, so they are not read.
        if request.method == "POST" and not (kind == "application/json" or kind.endswith("+json")):
            return refusal(RefusedError(415, NOT_JSON))
        where, what = _first_fault(error.errors())
        return refusal(RefusedError(422, f"{where}: {what}" if where else what, param=where or None))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return refusal(RefusedError(500, "the server failed on this request"))

    schema = app.openapi()
    if key is not None:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        schema["paths"]["/health"]["get"]["security"] = []
    return Guard(app, service, refusal, {*schema["paths"], "/openapi.json"}, key)


def _first_fault(errors: Any) -> tuple[str, str]:
    """Return the name of a faulty value and what is wrong with it; nothing of what was sent but names is repeated."""
    # Where a text or a list may stand, a faulty list is also said to be no text.
    first = min(errors, key=lambda error: (error["type"] == "string_type", -len(error["loc"])))
    parts = [str(part)[:40] for part in first["loc"][1:]]
    where = ".".join(part for part in parts if not part.startswith(("constrained-", "function-after[", "list[")))
    return where, str(first["msg"]).removeprefix("Value error, ")


def load_page(*, login: bool = False) -> Response:
    """Return the search page, which holds no data: its script asks the server, with `login` for the key first.

    Its Content-Security-Policy allows its own style and script by their hashes, and requests to its own origin.
    """
    templates = resources.files("nestling.serving.service") / "templates"
    style, script, html = ((templates / f"search.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    html = html.replace(" data-login", "" if login else " hidden")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Frame-Options": "DENY"}
    html = html.replace("/*style*/", style).replace("/*script*/", script)
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)
