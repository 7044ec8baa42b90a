"""Threads for the jobs of requests, with a bound on how many wait."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nestling.errors import InputError
from nestling.serving.index.documents import DamagedError
from nestling.serving.service.answers import QueueFullError, RefusedError

logger = logging.getLogger(__name__)

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
