"""Counters of a server, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._all = every = CollectorRegistry()
        ProcessCollector(registry=every)
        self.requests = Counter(
            "nestling_requests", "Requests by route and status.", ("route", "status"), registry=every
        )
        about = "From the headers of a request to the end of its answer."
        self.seconds = Histogram("nestling_request_seconds", about, ("route",), buckets=SECONDS, registry=every)
        about = "Texts of a call of the encoder."
        self.batch = Histogram("nestling_encoder_batch_texts", about, buckets=TEXTS, registry=every)
        self.queue = Gauge("nestling_queue_texts", "Texts that wait for the encoder.", registry=every)
        self.rejected = Counter("nestling_rejected", "Requests refused, by reason.", ("reason",), registry=every)
        self.swaps = Counter("nestling_index_swaps", "New generations of an index.", ("outcome",), registry=every)

    def text(self) -> bytes:
        """Return all of it, in the text exposition format 0.0.4."""
        return generate_latest(self._all)
