"""What a server does with a request, apart from HTTP: encode, search, compare."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.retrieval.vectors import truncate
from nestling.serving.index.index import Index, Mode
from nestling.serving.service import compare
from nestling.serving.service.answers import QueueFullError, RefusedError, encoded
from nestling.serving.service.batcher import Batcher, Encode
from nestling.serving.service.limits import EMBED_CHARACTERS, Limits
from nestling.serving.service.metrics import Metrics
from nestling.serving.service.served import Indexes, Served, bytes_of, described
from nestling.serving.service.shapes import Column, CompareRequest, EmbedRequest, SearchRequest, SizesRequest

logger = logging.getLogger(__name__)

COMPARISONS = 16
TOP = 10
UNNAMED = "text-embedding-ada-002"
"""What LangChain and LlamaIndex send when no model was named."""
Vectors = NDArray[np.float32]


class _Threads(ThreadPoolExecutor):
    """A pool that refuses rather than lets more than `most` jobs run or wait."""

    def __init__(self, threads: int, most: int) -> None:
        super().__init__(threads)
        self._room = threading.Semaphore(most)

    async def run(self, job: Callable[[], bytes]) -> bytes:
        """Run a job in a thread. When the caller is cancelled, a job that has begun still counts until it ends."""
        if not self._room.acquire(blocking=False):
            raise QueueFullError
        future = self.submit(job)
        future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)


class Service:
    """Indexes, the encoder's queue and the threads that search."""

    def __init__(self, indexes: Indexes, *, limits: Limits, metrics: Metrics) -> None:
        self.indexes, self.limits, self.metrics = indexes, limits, metrics
        self.state: Literal["loading", "ready"] = "loading"
        self._batcher = Batcher(
            max_batch=limits.max_batch, max_wait=limits.max_wait, queue=limits.queue, on_batch=metrics.batch.observe
        )
        indexes.on_swap = lambda outcome: metrics.swaps.labels(outcome).inc()
        metrics.queue.set_function(lambda: self._batcher.waiting)
        self._searching = _Threads(max(2, min(8, os.cpu_count() or 2)), limits.queue)
        # Comparisons may make cells, which takes seconds, so that they have a thread of their own.
        self._comparing = _Threads(1, COMPARISONS)

    def close(self) -> None:
        """End all threads, once what they do is done."""
        self._batcher.close()
        for threads in (self._searching, self._comparing):
            threads.shutdown(cancel_futures=True)

    async def search(self, asked: SearchRequest) -> bytes:
        """Answer a search."""
        began = time.perf_counter()
        served = self._served(asked.index)
        mode = _mode(served, asked.mode)
        queries = asked.texts
        vectors = await self._encode(served.encoding.query, queries) if mode != "lexical" else None
        encode_ms = _since(began)

        def job() -> bytes:
            at = time.perf_counter()
            found = _found(served.index, queries, vectors, mode, asked)
            search_ms = _since(at)
            results = [
                {
                    "query": query,
                    "hits": [
                        {"rank": h.rank, "id": h.document_id, "score": h.score, "text": h.text, "fields": h.fields}
                        for h in hits
                    ],
                }
                for query, hits in zip(queries, found, strict=True)
            ]
            timings = {"encode_ms": encode_ms, "search_ms": search_ms, "total_ms": _since(began)}
            return encoded({"index": served.source.name, "mode": mode, "results": results, "timings": timings})

        return await self._work(self._searching, job)

    async def embed(self, asked: EmbedRequest) -> bytes:
        """Answer as OpenAI's embeddings API does."""
        served = self._model(asked.model)
        encoding, texts = served.encoding, [text[:EMBED_CHARACTERS] for text in asked.texts]
        full = encoding.encoder.dim
        dim = asked.dimensions or full
        if dim > full:
            message = f"dimensions: {served.model} has {full}, so give 1 to {full}"
            raise RefusedError(422, message, param="dimensions")
        vectors = await self._encode(encoding.query if asked.input_type == "query" else encoding.document, texts)

        def job() -> bytes:
            def sent(row: NDArray[np.float32]) -> str | list[float]:
                as_text = asked.encoding_format == "base64"
                return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") if as_text else row.tolist()

            # Row by row, and text by text: whatever takes long at a stretch keeps all other threads waiting.
            rows = [
                encoded({"object": "embedding", "index": n, "embedding": sent(row)})
                for n, row in enumerate(truncate(vectors, dim))
            ]
            tokens = sum(encoding.count([text]) for text in texts)
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            rest = encoded({"object": "list", "model": served.model, "usage": usage})
            return b'{"data":[' + b",".join(rows) + b"]," + rest[1:]

        return await self._work(self._searching, job)

    async def compare(self, asked: CompareRequest) -> bytes:
        """Answer one query in one or two ways."""
        ways = []
        for column in asked.columns:
            served = self._served(column.index)
            mode = _mode(served, column.mode)
            at = time.perf_counter()
            vector = await self._encode(served.encoding.query, [asked.query]) if mode != "lexical" else None
            ways.append((column, served, mode, vector, _since(at)))

        def job() -> bytes:
            columns = [
                _column(asked, column, served, mode, vector, encode_ms)
                for column, served, mode, vector, encode_ms in ways
            ]
            judged = any(served.judged.of(asked.query) is not None for _, served, _, _, _ in ways)
            return encoded({"query": asked.query, "judged": judged, "columns": columns})

        return await self._work(self._comparing, job)

    async def sizes(self, asked: SizesRequest) -> bytes:
        """Answer what shrinking does to one query."""
        served = self._served(asked.index)
        if not served.cells.dims:
            raise RefusedError(422, served.cells.note or "this index has no other sizes")
        vector = await self._encode(served.encoding.query, [asked.query])

        def job() -> bytes:
            def top(cell: compare.Cell) -> list[str]:
                return [hit["id"] for hit in compare.hits_of(served.index, cell.top_k(vector, TOP))]

            judged = served.judged.of(asked.query)
            wanted = judged or frozenset(top(served.cells.cell(None, None)))
            sizes = []
            for dim in served.cells.dims:
                cell = served.cells.cell(dim, asked.precision)
                kept = compare.recall(top(cell), wanted)
                sizes.append({"dim": dim, "bytes": cell.codec.bytes_per_vector, "recall": kept})
            return encoded(
                {
                    "index": served.source.name,
                    "precision": asked.precision,
                    "against": "judged" if judged else "full size",
                    "wanted": len(wanted),
                    "sizes": sizes,
                }
            )

        return await self._work(self._comparing, job)

    def models(self) -> bytes:
        """Return the names under which embeddings are had, as OpenAI lists models."""
        names = dict.fromkeys([*self.indexes.names, *(one.model for one in self.indexes.all())])
        return encoded({"object": "list", "data": [_as_model(name) for name in names]})

    def model(self, name: str) -> bytes:
        """Return one of them."""
        self._model(name)
        return encoded(_as_model(name))

    def described(self) -> bytes:
        """Return what is served."""
        every = self.indexes.all()
        return encoded({"indexes": [described(one) for one in every], "judged": len(every[0].judged.texts)})

    def queries(self, limit: int) -> bytes:
        """Return judged queries of the first index that has some."""
        texts = next((one.judged.texts for one in self.indexes.all() if one.judged.texts), ())
        return encoded({"queries": texts[:limit]})

    def _model(self, name: str | None) -> Served:
        served = self.indexes.find(None if name == UNNAMED else name)
        if served is None:
            known = ", ".join(dict.fromkeys(one.model for one in self.indexes.all()))
            message = f"no such model is served; there is {known}"
            raise RefusedError(404, message, param="model", code="model_not_found")
        return served

    def _served(self, name: str | None) -> Served:
        served = self.indexes.get(name)
        if served is None:
            raise RefusedError(404, f"no index of that name is served; there is {', '.join(self.indexes.names)}")
        return served

    async def _encode(self, encode: Encode, texts: Sequence[str]) -> Vectors:
        try:
            return await asyncio.wrap_future(self._batcher.submit(encode, texts))
        except QueueFullError:
            raise
        # What a model raises on a text is not known beforehand, and its words may name files.
        except Exception:
            logger.exception("the encoder failed on a request")
            raise RefusedError(500, "the encoder failed on a text of this request", reason="encoder") from None

    async def _work(self, threads: _Threads, job: Callable[[], bytes]) -> bytes:
        try:
            return await threads.run(job)
        except InputError as error:
            # What was asked has been checked, so it is the index; the line names a file, which is for the log.
            logger.error("a request could not be answered: %s", error)
            raise RefusedError(500, "a file of this index is damaged; the server's log names it") from None


def _found(index: Index, queries: list[str], vectors: Vectors | None, mode: Mode, asked: SearchRequest) -> Any:
    try:
        allowed = index.documents.allowed(asked.filters)
    except InputError as error:
        raise RefusedError(422, str(error)) from None
    if vectors is None or mode == "lexical":
        return index.search(queries, asked.k, mode="lexical", filters=asked.filters)
    return index.search_vectors(vectors, asked.k, queries=queries if mode == "fused" else None, allowed=allowed)


def _column(
    asked: CompareRequest, column: Column, served: Served, mode: Mode, vector: Vectors | None, encode_ms: float
) -> dict[str, Any]:
    index, cell = served.index, None
    at = time.perf_counter()
    if vector is None or (column.dim is None and column.precision is None):
        hits = compare.as_served(index, asked.query, vector, asked.k, mode)
    else:
        try:
            cell = served.cells.cell(column.dim, column.precision)
        except InputError as error:
            raise RefusedError(422, str(error)) from None
        at = time.perf_counter()
        found = served.cells.search(cell, asked.query, vector, asked.k, fused=mode == "fused")
        hits = compare.hits_of(index, found)
    search_ms = _since(at)
    judged = served.judged.of(asked.query)
    for hit in hits:
        hit["relevant"] = None if judged is None else hit["id"] in judged
    size: float | None = cell.codec.bytes_per_vector if cell else bytes_of(index)
    return {
        "index": served.source.name,
        "mode": mode,
        "dim": cell.codec.dim if cell else None,
        "precision": cell.codec.precision if cell else None,
        "bytes": None if mode == "lexical" else size,
        "recall": compare.recall([hit["id"] for hit in hits], judged) if judged else None,
        "encode_ms": encode_ms,
        "search_ms": search_ms,
        "hits": hits,
    }


def _mode(served: Served, asked: Mode | None) -> Mode:
    modes = served.index.modes
    if asked is not None and asked not in modes:
        raise RefusedError(422, f"mode: index {served.source.name} can be searched by {', '.join(modes)}")
    return asked or modes[0]


def _as_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "nestling"}


def _since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 3)
