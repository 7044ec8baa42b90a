"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        ProcessCollector(registry=self._all)
        self.requests = Counter(
            "nestling_requests", "Requests by route and status.", ("route", "status"), registry=self._all
        )
        self.seconds = Histogram(
            "nestling_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._all,
        )
        self.batch = Histogram(
            "nestling_encoder_batch_texts", "Texts of a call of the encoder.", buckets=TEXTS, registry=self._all
        )
        self.queue = Gauge("nestling_queue_texts", "Texts that wait for the encoder.", registry=self._all)
        self.rejected = Counter("nestling_rejected", "Requests refused, by reason.", ("reason",), registry=self._all)
        self.swaps = Counter("nestling_index_swaps", "New generations of an index.", ("outcome",), registry=self._all)

    def text(self) -> bytes:
        """Return all of it, in the text exposition format 0.0.4."""
        return generate_latest(self._all)
