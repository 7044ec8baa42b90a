"""Bounds of a server: what it takes from a client, and how long it waits."""

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
BODY, EMBED_BODY = 1_000_000, 16_000_000
"""Bytes of a request, and of one for embeddings; beyond is 413."""
CONNECTIONS = 800
"""Open at a time, below the 1,024 files that a process may usually open; beyond is 503."""
KEEP_ALIVE = 15
"""Seconds that an idle connection stays open."""
HEADERS = 16_384
"""Bytes of a request's headers."""


@dataclass(frozen=True)
class Limits:
    """Bounds that the command line sets.

    Attributes:
        max_batch: texts of one call of the encoder.
        max_wait: seconds that a text waits for others to be encoded with.
        queue: texts that wait for the encoder, and searches that wait for a thread; beyond it is 429.
        timeout: seconds until an answer is there, for every 64 texts; beyond it is 504.
    """

    max_batch: int = 64
    max_wait: float = 0.002
    queue: int = 256
    timeout: float = 10.0

    def __post_init__(self) -> None:
        for name, value, least in (("--max-batch", self.max_batch, 1), ("--queue", self.queue, TEXTS)):
            if value < least:
                raise InputError(f"{name} must be {least:,} or more, not {value:,}")
        if not 0 <= self.max_wait <= 1:
            raise InputError(f"--max-wait-ms must be between 0 and 1000, not {1000 * self.max_wait:g}")
        if not 0 < self.timeout <= 600:
            raise InputError(f"--timeout must be above 0 and at most 600 seconds, not {self.timeout:g}")
