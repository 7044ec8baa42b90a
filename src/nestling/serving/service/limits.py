"""What a server takes from a client, and how long it waits: every bound in one place."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.errors import InputError

CHARACTERS = 8_192
TEXTS = 64
K = 1_000
HITS = 10_000
"""Queries times k: what one answer holds at most."""
FIELDS, VALUES = 16, 64
"""Of a filter: fields, and values of a field."""
EMBED_TEXTS = 2_048
"""Of one call for embeddings, as OpenAI takes them."""
EMBED_CHARACTERS = 65_536
"""Of a text to embed; what comes after them is not read. Models truncate before, but for tables."""
MANY = 8 * EMBED_TEXTS
"""Texts that wait in requests of more than 64."""
BODY = 1_000_000
EMBED_BODY = 16_000_000
BODIES = 256_000_000
"""Bytes of all bodies that are in memory at a time."""


@dataclass(frozen=True)
class Limits:
    """Bounds that the command line sets, and those that go with them.

    Attributes:
        max_batch: texts of one call of the encoder.
        max_wait: seconds that a text waits for others to be encoded with.
        queue: texts that wait for the encoder, and searches that wait for a thread; beyond it is 429.
        timeout: seconds until an answer is there, for every 64 texts; beyond it is 504.
        body: bytes of a request's body, but of one that asks for embeddings; beyond it is 413.
        reading: seconds for a client to send headers, then again for the body, and to read what it was sent.
        connections: open at a time; beyond it is 503, and from twice as many on they are closed unheard.
    """

    max_batch: int = 64
    max_wait: float = 0.002
    queue: int = 256
    timeout: float = 10.0
    body: int = BODY
    reading: float = 10.0
    connections: int = 2_000

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--max-batch", self.max_batch, 1),
            ("--queue", self.queue, TEXTS),
            ("the bound of a body", self.body, 1),
            ("the bound of connections", self.connections, 1),
        ):
            if value < least:
                raise InputError(f"{name} must be {least:,} or more, not {value:,}")
        if not 0 <= self.max_wait <= 1:
            raise InputError(f"--max-wait-ms must be between 0 and 1000, not {1000 * self.max_wait:g}")
        if not (0 < self.timeout <= 600 and self.reading > 0):
            raise InputError(f"--timeout must be above 0 and at most 600 seconds, not {self.timeout:g}")
