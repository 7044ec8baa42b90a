"""The routes of the server, and what they answer: FastAPI around a Service, with the guard before it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from nestling.environment import VERSION
from nestling.errors import InputError
from nestling.serving.service import shapes
from nestling.serving.service.answers import RefusedError, encoded, error_body
from nestling.serving.service.guard import Guard
from nestling.serving.service.limits import TEXTS
from nestling.serving.service.page import Page, load_page
from nestling.serving.service.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

DESCRIPTION = "Search in indexes that nestling index wrote, embeddings, and one query at several sizes side by side."
QUERIES = 1_000
REFUSALS = {
    400: "The body is no JSON, or the Host header names another place.",
    401: "The key is missing or wrong.",
    404: "No such index or model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The header Content-Type does not say application/json.",
    422: "A value is missing, odd or beyond its limit.",
    429: "Too many requests are waiting; Retry-After says when to try again.",
    500: "The encoder failed on a text of this request.",
    503: "The server is loading, shutting down or replacing an index; Retry-After says when to try again.",
    504: "No answer came in time.",
}


def create_app(service: Service, *, hosts: Collection[str] | None = None, key: str | None = None) -> Guard:
    """Return the ASGI application.

    Args:
        hosts: names that the Host header may hold; None for any.
        key: what clients must send as `Authorization: Bearer KEY`, but for /health and the page; None for an
            open server.

    Raises:
        InputError: fastapi is missing.
    """
    app = _routes(service, load_page(login=key is not None))
    schema = app.openapi()
    if key is not None:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        schema["paths"]["/health"]["get"]["security"] = []
    return Guard(
        app,
        limits=service.limits,
        metrics=service.metrics,
        state=lambda: service.state,
        routes={*schema["paths"], "/openapi.json"},
        hosts=hosts,
        key=key,
    )


def _routes(service: Service, page: Page) -> FastAPI:
    try:
        from fastapi import FastAPI, Response
        from fastapi.exceptions import RequestValidationError
        from starlette.exceptions import HTTPException
    except ModuleNotFoundError as error:
        raise InputError(f"nestling serve needs {error.name}: pip install 'nestling[serve]'") from None

    # No pages of documentation: FastAPI's load their script from another place.
    app = FastAPI(
        title="Nestling", version=VERSION, description=DESCRIPTION, docs_url=None, redoc_url=None, debug=False
    )

    def json(content: bytes, status: int = 200) -> Response:
        return Response(content, status_code=status, media_type="application/json")

    def refusal(status: int, message: str, headers: Any = None, **more: str | None) -> Response:
        body = error_body(status, message, **more)
        return Response(body, status, dict(headers or {}), media_type="application/json")

    def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {n: {"model": shapes.ErrorAnswer, "description": REFUSALS[n]} for n in (400, 401, *statuses, 503, 504)}

    def post(path: str, model: Any, summary: str) -> Callable[[Any], Any]:
        return app.post(
            path, response_model=model, summary=summary, responses=refusals(404, 408, 413, 415, 422, 429, 500)
        )

    def get(path: str, model: Any, summary: str) -> Callable[[Any], Any]:
        return app.get(path, response_model=model, summary=summary, responses=refusals(413, 422))

    async def answered(answer: Awaitable[bytes], *, texts: int = 1) -> Response:
        seconds = service.limits.timeout * -(-texts // TEXTS)
        try:
            async with asyncio.timeout(seconds):
                return json(await answer)
        except TimeoutError:
            raise RefusedError(504, f"no answer within {seconds:g} s; try again", reason="timeout") from None

    # FastAPI reads annotations when the module's names are all it knows, so routes return Any.
    @post("/search", shapes.SearchAnswer, "Search one index")
    async def search(asked: shapes.SearchRequest) -> Any:
        return await answered(service.search(asked))

    @post("/v1/embeddings", shapes.EmbedAnswer, "Encode texts, as OpenAI's embeddings API")
    async def embeddings(asked: shapes.EmbedRequest) -> Any:
        return await answered(service.embed(asked), texts=len(asked.texts))

    @post("/embed", shapes.EmbedAnswer, "Encode texts; the same as /v1/embeddings")
    async def embed(asked: shapes.EmbedRequest) -> Any:
        return await answered(service.embed(asked), texts=len(asked.texts))

    @post("/compare", shapes.CompareAnswer, "Search one query in two ways")
    async def compare(asked: shapes.CompareRequest) -> Any:
        return await answered(service.compare(asked))

    @post("/sizes", shapes.SizesAnswer, "Search one query at every size of an index")
    async def sizes(asked: shapes.SizesRequest) -> Any:
        return await answered(service.sizes(asked))

    @get("/v1/models", shapes.ModelsAnswer, "Names that /v1/embeddings takes as a model, as OpenAI lists them")
    async def models() -> Any:
        return json(service.models())

    @app.get(
        "/v1/models/{model:path}",
        response_model=shapes.ModelAnswer,
        summary="One of them",
        responses=refusals(404, 413),
    )
    async def model(model: str) -> Any:
        return json(service.model(model))

    @get("/indexes", shapes.IndexesAnswer, "What is served")
    async def indexes() -> Any:
        return json(service.described())

    @get("/queries", shapes.QueriesAnswer, "Judged queries")
    async def queries(limit: Annotated[int, Field(ge=1, le=QUERIES)] = QUERIES) -> Any:
        return json(service.queries(limit))

    @app.get(
        "/health",
        response_model=shapes.HealthAnswer,
        summary="Whether requests are answered",
        responses={
            503: {"model": shapes.HealthAnswer, "description": "Loading or shutting down."},
            **{n: one for n, one in refusals(413).items() if n in (400, 413)},
        },
    )
    async def health() -> Any:
        return json(encoded({"status": service.state}), 200 if service.state == "ready" else 503)

    plain = {"text/plain": {"schema": {"type": "string"}}}

    @app.get(
        "/metrics",
        summary="Counters for Prometheus",
        response_class=Response,
        responses={200: {"content": plain}, **refusals(413)},
    )
    async def metrics() -> Any:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def search_page() -> Any:
        headers = {"Content-Security-Policy": page.policy, "X-Frame-Options": "DENY"}
        return Response(page.html, media_type="text/html; charset=utf-8", headers=headers)

    @app.exception_handler(RefusedError)
    async def refused(_: Any, error: RefusedError) -> Response:
        if error.reason:
            service.metrics.rejected(error.reason)
        return refusal(error.status, error.message, error.headers, param=error.param, code=error.code)

    @app.exception_handler(RequestValidationError)
    async def invalid(asked: Any, error: RequestValidationError) -> Response:
        kind = asked.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A page of another site can send other kinds without asking the browser's leave, so they are not read.
        if asked.method == "POST" and not (kind == "application/json" or kind.endswith("+json")):
            return refusal(
                415,
                "send JSON with the header Content-Type: application/json (curl: -H 'content-type: application/json')",
            )
        where, what = _told(error.errors())
        return refusal(422, f"{where}: {what}" if where else what, param=where or None)

    @app.exception_handler(HTTPException)
    async def other(_: Any, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Any, error: Exception) -> Response:
        return refusal(500, "the server failed on this request")

    return app


def _told(errors: Any) -> tuple[str, str]:
    """Say where a request is wrong, and what is; nothing of what was sent but names is repeated."""
    # Where a text or a list may stand, a faulty list is also said to be no text.
    first = min(errors, key=lambda error: (error["type"] == "string_type", -len(error["loc"])))
    parts = [str(part)[:40] for part in first["loc"][1:]]
    where = ".".join(part for part in parts if not part.startswith(("constrained-", "function-after[", "list[")))
    return where, str(first["msg"]).removeprefix("Value error, ")
