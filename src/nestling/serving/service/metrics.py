"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from nestling.errors import InputError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        """Make them all.

        Raises:
            InputError: prometheus_client is missing.
        """
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
        except ModuleNotFoundError:
            raise InputError("nestling serve needs prometheus_client: pip install 'nestling[serve]'") from None
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "nestling_requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "nestling_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._batch = Histogram(
            "nestling_encoder_batch_texts", "Texts of a call of the encoder.", buckets=TEXTS, registry=registry
        )
        self._queue = Gauge("nestling_queue_texts", "Texts that wait for the encoder.", registry=registry)
        self._rejected = Counter("nestling_rejected", "Requests refused, by reason.", ("reason",), registry=registry)
        self._swaps = Counter("nestling_index_swaps", "New generations of an index.", ("outcome",), registry=registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Take the queue's length from here whenever it is asked for."""
        self._queue.set_function(length)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, texts: int) -> None:
        """Count a call of the encoder."""
        self._batch.observe(texts)

    def rejected(self, reason: str) -> None:
        """Count a refusal."""
        self._rejected.labels(reason).inc()

    def swap(self, outcome: str) -> None:
        """Count a new generation: `opened` or `failed`."""
        self._swaps.labels(outcome).inc()

    def text(self) -> bytes:
        """Return all of it, in the text exposition format 0.0.4."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))
