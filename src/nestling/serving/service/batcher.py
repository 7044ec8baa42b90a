"""Bounded queues of work: texts of many clients encoded together in one thread, and other jobs in pools of threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import Kind
from nestling.errors import InputError
from nestling.models.encoder import Encoder
from nestling.serving.index.documents import DamagedError
from nestling.serving.service.answers import QueueFullError, RefusedError
from nestling.serving.service.limits import MANY, TEXTS

logger = logging.getLogger(__name__)

CHARACTERS = 32_768
"""Of a batch, so that a search never waits long behind long texts."""

Vectors = NDArray[np.float32]
Answer = TypeVar("Answer")


class Threads(ThreadPoolExecutor):
    """A pool that refuses rather than lets more than `most` jobs run or wait."""

    def __init__(self, threads: int, most: int) -> None:
        super().__init__(threads)
        self._room = threading.Semaphore(most)

    async def run(self, job: Callable[[], Answer]) -> Answer:
        """Run a job in a thread. When the caller is cancelled, a job that has begun still counts until it ends."""
        if not self._room.acquire(blocking=False):
            raise QueueFullError
        future = self.submit(job)
        future.add_done_callback(lambda _: self._room.release())
        try:
            return await asyncio.wrap_future(future)
        except DamagedError as error:
            # The line names a file, which is for the log.
            logger.error("a request could not be answered: %s", error)
            raise RefusedError(500, "a file of this index is damaged; the server's log names it") from None
        except InputError as error:
            raise RefusedError(422, str(error)) from None


@dataclass(eq=False)
class _Request:
    encoder: Encoder
    kind: Kind
    texts: tuple[str, ...]
    future: Future[Vectors] = field(default_factory=Future)
    rows: dict[int, Vectors] = field(default_factory=dict)

    def end(self, error: Exception | None = None) -> None:
        """Resolve the future, unless nobody waits any more."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(np.stack([self.rows[place] for place in range(len(self.texts))]))
        else:
            self.future.set_exception(error)


_Piece = tuple[_Request, int]


class Batcher:
    """Encodes the texts of requests in a thread of its own, as many at a time as wait, up to a bound.

    Requests of up to 64 texts are taken turn by turn with larger ones, so that neither waits for more than a batch.
    Where a call of the encoder fails, each of its requests is encoded apart, so that only the one to blame fails; a
    vector with NaN or infinite values fails its request too.
    """

    def __init__(
        self, max_batch: int, max_wait: float, queue: int, on_batch: Callable[[int], None] = lambda texts: None
    ) -> None:
        """Start the thread; see `Limits`. `on_batch` is called with the number of texts of each call."""
        self._max_batch, self._max_wait, self._queue, self._on_batch = max_batch, max_wait, queue, on_batch
        self._few: deque[_Piece] = deque()
        self._many: deque[_Piece] = deque()
        self._turns = cycle((self._few, self._many))
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="nestling-encoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of texts that wait."""
        return len(self._few) + len(self._many)

    def submit(self, encoder: Encoder, texts: Sequence[str], kind: Kind = "query") -> Future[Vectors]:
        """Queue texts, or raise QueueFullError; the future gives (len(texts), dim) float32.

        Cancelling it takes back what no call has begun.
        """
        if not texts:
            raise ValueError("a request needs at least one text")
        request = _Request(encoder, kind, tuple(texts))
        queue, room = (self._few, self._queue) if len(texts) <= TEXTS else (self._many, MANY)
        with self._changed:
            if self._closed:
                raise ValueError("the batcher is closed")
            if len(queue) + len(texts) > room:
                raise QueueFullError
            queue.extend((request, place) for place in range(len(texts)))
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Take nothing new, finish what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while pieces := self._collect():
            batches: dict[tuple[int, Kind], list[_Piece]] = {}
            for request, place in pieces:
                if not request.future.done():
                    batches.setdefault((id(request.encoder), request.kind), []).append((request, place))
            for batch in sorted(batches.values(), key=len):
                self._encode(batch)

    def _collect(self) -> list[_Piece]:
        """Wait for a batch; empty once closed and done."""
        pieces: list[_Piece] = []
        characters = 0
        with self._changed:
            self._changed.wait_for(lambda: self.waiting or self._closed)
            self._changed.wait_for(lambda: self.waiting >= self._max_batch or self._closed, self._max_wait)
            while self.waiting and len(pieces) < self._max_batch and characters < CHARACTERS:
                if queue := next(self._turns):
                    request, place = queue.popleft()
                    pieces.append((request, place))
                    characters += len(request.texts[place])
        return pieces

    def _encode(self, pieces: list[_Piece]) -> None:
        requests = list(dict.fromkeys(request for request, _ in pieces))
        texts = [request.texts[place] for request, place in pieces]
        try:
            self._on_batch(len(texts))
            vectors = requests[0].encoder.encode(texts, kind=requests[0].kind)
            if vectors.ndim != 2 or len(vectors) != len(texts):
                raise RuntimeError(f"{len(texts)} texts were encoded to vectors of shape {vectors.shape}")
        except Exception as error:
            if len(requests) == 1:
                requests[0].end(error)
                return
            logger.warning("a batch of %d texts failed (%s); its requests are encoded apart", len(texts), error)
            for request in requests:
                self._encode([piece for piece in pieces if piece[0] is request])
            return
        for (request, place), vector in zip(pieces, vectors, strict=True):
            request.rows[place] = vector
            if not np.isfinite(vector).all():
                request.end(RuntimeError("the encoder returned a vector with NaN or infinite values"))
            elif len(request.rows) == len(request.texts):
                request.end()
