"""The indexes that a server has open: one encoder for all that share a model, and new generations swapped in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from nestling.errors import InputError
from nestling.models.encoder import Encoder, prepare
from nestling.serving.index.files import Manifest, read_manifest
from nestling.serving.index.index import Index
from nestling.serving.service.compare import MOST_DOCUMENTS, Cells, Judged

logger = logging.getLogger(__name__)

SAMPLE = 2_000
"""Documents of an index by which an engine is chosen."""
AGAIN_AFTER = 60.0
"""Seconds until a generation that could not be opened is tried again, unless another comes first."""


@dataclass(frozen=True)
class Source:
    """An index to serve; `model` is used instead of its own."""

    name: str
    path: Path
    model: str | None = None


@dataclass(frozen=True, eq=False)
class Served:
    """One generation of an index, and its parts for requests; `model` is the name that clients see."""

    name: str
    model: str
    index: Index
    count_tokens: Callable[[str], int]
    cells: Cells
    judged: Judged

    @property
    def bytes_per_document(self) -> float:
        """Bytes of a document in what a search scans."""
        shortlist: Any = self.index.shortlist
        return self.index.manifest.bytes_per_document(getattr(shortlist, "exact", shortlist).codec)

    @property
    def about(self) -> dict[str, Any]:
        """Description for clients: an `IndexAnswer`."""
        return {
            "name": self.name,
            "model": self.model,
            "documents": len(self.index),
            "dim": self.index.manifest.dim,
            "modes": self.index.modes,
            "fields": list(self.index.documents.filters),
            "bytes": self.bytes_per_document,
            "dims": self.cells.dims,
            "precisions": self.cells.precisions,
            "note": self.cells.note,
        }


class Indexes:
    """Indexes by name, the default first. Reading is safe from any thread; opening is for one.

    `on_swap` is called with `opened` or `failed` for each new generation.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        judged: Judged | None = None,
        opener: Callable[[Source], Index] | None = None,
    ) -> None:
        self.on_swap: Callable[[str], None] = lambda outcome: None
        self.names = tuple(source.name for source in sources)
        self._sources, self._judged = sources, judged or Judged()
        self._opener = opener or (lambda source: Index.open(source.path, model=source.model))
        self._served: dict[str, Served] = {}
        self._encoders: WeakValueDictionary[tuple[str, str], Encoder] = WeakValueDictionary()
        self._failed: dict[str, tuple[Manifest | str, float]] = {}

    def get(self, name: str | None) -> Served | None:
        """Return an index by name, the first for None; None where there is no such."""
        return self._served.get(self.names[0] if name is None else name)

    def find(self, model: str | None) -> Served | None:
        """Return an index by its own name or its model's, the first without one."""
        return self.get(model) or next((served for served in self.all() if served.model == model), None)

    def all(self) -> list[Served]:
        return [self._served[name] for name in self.names]

    def open(self) -> None:
        for source in self._sources:
            self._served[source.name] = self._opened(source)

    def refresh(self, *, force: bool = False) -> list[str]:
        """Open new generations, and return the names of their indexes.

        One that cannot be opened is logged, and tried again after a minute, with the next one, or with `force`.
        """
        return [source.name for source in self._sources if self._refreshed(source, force)]

    def _refreshed(self, source: Source, force: bool) -> bool:
        name = source.name
        latest: Manifest | str
        try:
            latest = read_manifest(source.path)
        except InputError as error:
            latest = str(error)
        if latest == self._served[name].index.manifest:
            self._failed.pop(name, None)
            return False
        failed, at = self._failed.get(name, (None, 0.0))
        if failed == latest and not force and time.monotonic() - at < AGAIN_AFTER:
            return False
        try:
            if isinstance(latest, str):
                raise InputError(latest)
            self._served[name] = self._opened(source)
        # Whatever is wrong with the new generation, the old one is served.
        except Exception as error:
            self._failed[name] = latest, time.monotonic()
            logger.error("index %s: its new generation is not served, the old one goes on: %s", name, error)
            self.on_swap("failed")
            return False
        self._failed.pop(name, None)
        logger.info("index %s: generation %s is served", name, self._served[name].index.manifest.generation)
        self.on_swap("opened")
        return True

    def _opened(self, source: Source) -> Served:
        index = self._opener(source)
        # Of the new encoder, since a shared one may be encoding.
        count_tokens = token_counter(index.encoder)
        inside = source.path / "model"
        model = source.model or (str(inside) if inside.is_dir() else index.manifest.model)
        encoder = self._encoders.get((model, index.encoder.fingerprint))
        if encoder is None:
            encoder = index.encoder
            prepare(encoder, lambda: index.documents.sample(SAMPLE), texts=None)
            self._encoders[model, encoder.fingerprint] = encoder
        index = replace(index, encoder=encoder)
        judged = self._judged
        if judged.relevant and len(index) <= MOST_DOCUMENTS:
            judged = judged.within(index.documents)
        # Without the folders that it lies in, which tell of a machine.
        public_name = Path(source.model or index.manifest.model).name or "model"
        return Served(source.name, public_name, index, count_tokens, Cells(index), judged)


def token_counter(encoder: Encoder) -> Callable[[str], int]:
    """Return a thread-safe counter of the tokens that an encoder reads of a text; of words without such a tokenizer."""
    tokens: Any = getattr(encoder, "_tokens", None)
    if tokens is not None:
        return lambda text: len(tokens.ids([text])[0])
    model: Any = getattr(encoder, "model", None)
    tokenizer = getattr(model, "tokenizer", None)
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        return lambda text: len(text.split())
    # A copy, since the encoder changes the settings of its own while it encodes.
    copy: Any = type(backend).from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    longest = getattr(model, "max_seq_length", None) or 10**9
    return lambda text: min(len(copy.encode(text).ids), longest)
