"""The requests of a server, apart from HTTP: encode, search, compare; and its counters."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from pydantic import Field
from starlette.responses import Response

from nestling.config.names import Kind
from nestling.retrieval.vectors import truncate
from nestling.serving.index.index import Hit, Mode
from nestling.serving.index.shortlist import Exact
from nestling.serving.service.answers import RefusedError, encoded
from nestling.serving.service.batcher import Batcher, Threads
from nestling.serving.service.compare import recall
from nestling.serving.service.limits import EMBED_CHARACTERS, TEXTS, Limits
from nestling.serving.service.served import Indexes, Served
from nestling.serving.service.shapes import Column, CompareRequest, EmbedRequest, SearchRequest, SizesRequest

logger = logging.getLogger(__name__)

COMPARISONS = 16
QUERIES = 1_000
TOP = 10
UNNAMED = "text-embedding-ada-002"
"""The model that LangChain and LlamaIndex send when none was named."""
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BUCKETS_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Vectors = NDArray[np.float32]


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._all = every = CollectorRegistry()
        ProcessCollector(registry=every)
        about = "Requests by route and status."
        self.requests = Counter("nestling_requests", about, ("route", "status"), registry=every)
        about = "From the headers of a request to the end of its answer."
        self.seconds = Histogram("nestling_request_seconds", about, ("route",), buckets=BUCKETS_SECONDS, registry=every)
        about = "Texts of a call of the encoder."
        self.batch = Histogram("nestling_encoder_batch_texts", about, buckets=BUCKETS_TEXTS, registry=every)
        self.queue = Gauge("nestling_queue_texts", "Texts that wait for the encoder.", registry=every)
        self.rejected = Counter("nestling_rejected", "Requests refused, by reason.", ("reason",), registry=every)
        self.swaps = Counter("nestling_index_swaps", "New generations of an index.", ("outcome",), registry=every)

    def text(self) -> bytes:
        """Return all of it, in the text exposition format 0.0.4 of Prometheus."""
        return generate_latest(self._all)


def in_time(method: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[Response]]:
    """Make a method of `Service` that gives JSON respond with it, or with 504 where it takes too long."""

    @wraps(method)
    async def respond(service: Service, **values: Any) -> Response:
        texts = getattr(values.get("request"), "texts", [""])
        seconds = service.limits.timeout * -(-len(texts) // TEXTS)
        try:
            async with asyncio.timeout(seconds):
                return Response(await method(service, **values), media_type="application/json")
        except TimeoutError:
            raise RefusedError(504, f"no answer within {seconds:g} s; try again", reason="timeout") from None

    return respond


class Service:
    """Indexes, the encoder's queue and the threads that search."""

    def __init__(self, indexes: Indexes, limits: Limits) -> None:
        self.indexes, self.limits, self.metrics = indexes, limits, Metrics()
        self.state: Literal["loading", "ready"] = "loading"
        self._batcher = Batcher(limits.max_batch, limits.max_wait, limits.queue, self.metrics.batch.observe)
        indexes.on_swap = lambda outcome: self.metrics.swaps.labels(outcome).inc()
        self.metrics.queue.set_function(lambda: self._batcher.waiting)
        self._searching = Threads(max(2, min(8, os.cpu_count() or 2)), limits.queue)
        # Comparisons may make cells, which takes seconds, so that they have a thread of their own.
        self._comparing = Threads(1, COMPARISONS)

    def close(self) -> None:
        """End all threads, once their work is done."""
        self._batcher.close()
        for threads in (self._searching, self._comparing):
            threads.shutdown(cancel_futures=True)

    @in_time
    async def search(self, request: SearchRequest) -> bytes:
        began, queries = time.perf_counter(), request.texts
        served, mode, vectors, encode_ms = await self._prepare(request.index, request.mode, queries)

        def job() -> bytes:
            at = time.perf_counter()
            hits = served.index.search(queries, request.k, mode=mode, filters=request.filters, vectors=vectors)
            search_ms = _since(at)
            results = [
                {"query": query, "hits": [_hit(hit) for hit in of_query]}
                for query, of_query in zip(queries, hits, strict=True)
            ]
            timings = {"encode_ms": encode_ms, "search_ms": search_ms, "total_ms": _since(began)}
            return encoded({"index": served.name, "mode": mode, "results": results, "timings": timings})

        return await self._searching.run(job)

    @in_time
    async def embed(self, request: EmbedRequest) -> bytes:
        served = self._model(request.model)
        texts = [text[:EMBED_CHARACTERS] for text in request.texts]
        full = served.index.encoder.dim
        dim = request.dimensions or full
        if dim > full:
            raise RefusedError(422, f"dimensions: {served.model} has {full}, so give 1 to {full}", param="dimensions")
        vectors = await self._encode(served, texts, request.input_type)

        def numbers(row: Vectors) -> str | list[float]:
            as_text = request.encoding_format == "base64"
            return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") if as_text else row.tolist()

        def job() -> bytes:
            # Row by row, and text by text: whatever takes long at a stretch keeps all other threads waiting.
            rows = [
                encoded({"object": "embedding", "index": n, "embedding": numbers(row)})
                for n, row in enumerate(truncate(vectors, dim))
            ]
            usage = dict.fromkeys(("prompt_tokens", "total_tokens"), sum(map(served.count_tokens, texts)))
            rest = encoded({"object": "list", "model": served.model, "usage": usage})
            return b'{"data":[' + b",".join(rows) + b"]," + rest[1:]

        return await self._searching.run(job)

    @in_time
    async def compare(self, request: CompareRequest) -> bytes:
        columns = [await self._column(request, column) for column in request.columns]
        judged = any(column["recall"] is not None for column in columns)
        return encoded({"query": request.query, "judged": judged, "columns": columns})

    async def _column(self, request: CompareRequest, column: Column) -> dict[str, Any]:
        served, mode, vector, encode_ms = await self._prepare(column.index, column.mode, [request.query])

        def job() -> dict[str, Any]:
            cell = None
            if vector is not None and (column.dim or column.precision):
                cell = served.cells.cell(column.dim, column.precision)
            at = time.perf_counter()
            [hits] = served.index.search([request.query], request.k, mode=mode, vectors=vector, cell=cell)
            search_ms = _since(at)
            relevant = served.judged.of(request.query)
            bytes_per_document = cell.codec.bytes_per_vector if cell else served.bytes_per_document
            return {
                "index": served.name,
                "mode": mode,
                "dim": cell.codec.dim if cell else None,
                "precision": cell.codec.precision if cell else None,
                "bytes": None if mode == "lexical" else bytes_per_document,
                "recall": recall([hit.document_id for hit in hits], relevant) if relevant else None,
                "encode_ms": encode_ms,
                "search_ms": search_ms,
                "hits": [{**_hit(hit), "relevant": relevant and hit.document_id in relevant} for hit in hits],
            }

        return await self._comparing.run(job)

    @in_time
    async def sizes(self, request: SizesRequest) -> bytes:
        served = self._served(request.index)
        if not served.cells.dims:
            raise RefusedError(422, served.cells.note or "this index has no other sizes")
        vector = await self._encode(served, [request.query])

        def top(cell: Exact) -> list[str]:
            [hits] = served.index.search([request.query], TOP, mode="dense", vectors=vector, cell=cell)
            return [hit.document_id for hit in hits]

        def job() -> bytes:
            judged = served.judged.of(request.query)
            wanted = judged or frozenset(top(served.cells.cell(None, None)))
            sizes = []
            for dim in served.cells.dims:
                cell = served.cells.cell(dim, request.precision)
                sizes.append({"dim": dim, "bytes": cell.codec.bytes_per_vector, "recall": recall(top(cell), wanted)})
            against = "judged" if judged else "full size"
            about = {"index": served.name, "precision": request.precision, "against": against, "wanted": len(wanted)}
            return encoded({**about, "sizes": sizes})

        return await self._comparing.run(job)

    @in_time
    async def models(self) -> bytes:
        names = dict.fromkeys([*self.indexes.names, *(served.model for served in self.indexes.all())])
        return encoded({"object": "list", "data": [_as_model(name) for name in names]})

    @in_time
    async def model(self, model: str) -> bytes:
        self._model(model)
        return encoded(_as_model(model))

    @in_time
    async def described(self) -> bytes:
        every = self.indexes.all()
        return encoded({"indexes": [served.about for served in every], "judged": len(every[0].judged.texts)})

    @in_time
    async def queries(self, limit: Annotated[int, Field(ge=1, le=QUERIES)] = QUERIES) -> bytes:
        texts = next((served.judged.texts for served in self.indexes.all() if served.judged.texts), ())
        return encoded({"queries": texts[:limit]})

    def _model(self, name: str | None) -> Served:
        served = self.indexes.find(None if name == UNNAMED else name)
        if served is None:
            known = ", ".join(dict.fromkeys(served.model for served in self.indexes.all()))
            message = f"no such model is served; there is {known}"
            raise RefusedError(404, message, param="model", code="model_not_found")
        return served

    def _served(self, name: str | None) -> Served:
        served = self.indexes.get(name)
        if served is None:
            raise RefusedError(404, f"no index of that name is served; there is {', '.join(self.indexes.names)}")
        return served

    async def _prepare(
        self, name: str | None, mode: Mode | None, queries: Sequence[str]
    ) -> tuple[Served, Mode, Vectors | None, float]:
        """Return an index, the mode to search it by, the queries' vectors if that needs them, and milliseconds."""
        began = time.perf_counter()
        served = self._served(name)
        modes = served.index.modes
        if mode is not None and mode not in modes:
            raise RefusedError(422, f"mode: index {served.name} can be searched by {', '.join(modes)}")
        mode = mode or modes[0]
        vectors = None if mode == "lexical" else await self._encode(served, queries)
        return served, mode, vectors, _since(began)

    async def _encode(self, served: Served, texts: Sequence[str], kind: Kind = "query") -> Vectors:
        future = self._batcher.submit(served.index.encoder, texts, kind)
        try:
            return await asyncio.wrap_future(future)
        # The errors of a model are not known beforehand, and their words may name files.
        except Exception:
            logger.exception("the encoder failed on a request")
            raise RefusedError(500, "the encoder failed on a text of this request", reason="encoder") from None


def _hit(hit: Hit) -> dict[str, Any]:
    return {"rank": hit.rank, "id": hit.document_id, "score": hit.score, "text": hit.text, "fields": hit.fields}


def _as_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "nestling"}


def _since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 3)
