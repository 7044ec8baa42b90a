"""Threads that search, with a bound on what waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from nestling.serving.service.batcher import QueueFullError

T = TypeVar("T")


class Workers:
    """A pool of threads that refuses rather than lets work pile up."""

    def __init__(self, threads: int, most: int, *, name: str) -> None:
        """Start a pool.

        Args:
            most: jobs that run or wait.
        """
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most, self._count = most, 0
        self._lock = threading.Lock()

    async def run(self, job: Callable[[], T]) -> T:
        """Run a job in a thread. When the caller is cancelled, a job that has begun still counts until it ends.

        Raises:
            QueueFullError: too many jobs run or wait.
        """
        with self._lock:
            if self._count >= self._most:
                raise QueueFullError
            self._count += 1
        future = self._pool.submit(job)
        future.add_done_callback(self._ended)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads, once what runs has ended; what waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ended(self, future: Future[Any]) -> None:
        with self._lock:
            self._count -= 1
