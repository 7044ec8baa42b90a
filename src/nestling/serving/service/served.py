"""The indexes that a server has open: one encoder for all that share a model, and new generations swapped in."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nestling.errors import InputError
from nestling.models.encoder import Encoder, prepare
from nestling.serving.index.files import INVERTED, Manifest, read_manifest
from nestling.serving.index.index import Index
from nestling.serving.service.batcher import Encode
from nestling.serving.service.compare import MOST_DOCUMENTS, Cells
from nestling.serving.service.judged import Judged

logger = logging.getLogger(__name__)

SAMPLE = 2_000
"""Documents of an index by which to settle what encodes."""
AGAIN_AFTER = 60.0
"""Seconds until a generation that could not be opened is tried again, unless another comes first."""

Opener = Callable[["Source"], Index]


@dataclass(frozen=True)
class Source:
    """An index to serve: its name, its folder, and the model to use instead of its own."""

    name: str
    path: Path
    model: str | None = None


class Encoding:
    """An encoder as a batcher takes it: one object a kind of text, the same for all indexes of the model."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.count = encoder, token_counter(encoder)
        self.query: Encode = partial(encoder.encode, kind="query")
        self.document: Encode = partial(encoder.encode, kind="document")


@dataclass(frozen=True, eq=False)
class Served:
    """One generation of an index, with what goes with it."""

    source: Source
    model: str
    index: Index
    encoding: Encoding
    cells: Cells
    judged: Judged


class Indexes:
    """Opens indexes and keeps them up to date. Reading is safe from any thread; opening is done one at a time.

    Attributes:
        on_swap: called with `opened` or `failed` for each new generation.
    """

    def __init__(
        self, sources: Sequence[Source], *, judged: Judged | None = None, opener: Opener | None = None
    ) -> None:
        """Take what to open; nothing is opened yet.

        Args:
            opener: opens an index; by default `Index.open`.
        """
        self.on_swap: Callable[[str], None] = lambda outcome: None
        self._sources = {source.name: source for source in sources}
        self._judged = judged or Judged()
        self._open = opener or (lambda source: Index.open(source.path, model=source.model))
        self._served: dict[str, Served] = {}
        self._encodings: dict[tuple[str, str], Encoding] = {}
        self._failed: dict[str, tuple[Manifest | str, float]] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names, the default first."""
        return tuple(self._sources)

    def get(self, name: str | None) -> Served | None:
        """Return an index by name, the first without one; None where there is no such."""
        return self._served.get(self.names[0] if name is None else name)

    def find(self, model: str | None) -> Served | None:
        """Return an index by its own name, its model's or its model's fingerprint, the first without one."""
        if model is None:
            return self.get(None)
        return self.get(model) or next(
            (one for one in self.all() if model in (one.model, one.index.manifest.fingerprint)), None
        )

    def all(self) -> list[Served]:
        """Return all of them, the default first."""
        return [self._served[name] for name in self.names]

    def open(self) -> None:
        """Open all.

        Raises:
            InputError: one cannot be opened.
        """
        with self._lock:
            for source in self._sources.values():
                self._served[source.name] = self._opened(source)

    def refresh(self, *, force: bool = False) -> list[str]:
        """Open what has a new generation, and return the names of those swapped.

        One that cannot be opened is logged, and the old one goes on; it is tried again after a minute, when there is
        another, or when `force` is given.
        """
        with self._lock:
            return [name for name, source in self._sources.items() if self._refreshed(name, source, force)]

    def _refreshed(self, name: str, source: Source, force: bool) -> bool:
        found: Manifest | str
        try:
            found = read_manifest(source.path)
        except InputError as error:
            found = str(error)
        if found == self._served[name].index.manifest:
            self._failed.pop(name, None)
            return False
        before, at = self._failed.get(name, (None, 0.0))
        if before == found and not force and time.monotonic() - at < AGAIN_AFTER:
            return False
        try:
            if isinstance(found, str):
                raise InputError(found)
            self._served[name] = self._opened(source)
        # Whatever is wrong with what came, what is served goes on.
        except Exception as error:
            self._failed[name] = found, time.monotonic()
            logger.error("index %s: its new generation is not served, the old one goes on: %s", name, error)
            self.on_swap("failed")
            return False
        self._failed.pop(name, None)
        in_use = {id(served.encoding) for served in self._served.values()}
        self._encodings = {key: one for key, one in self._encodings.items() if id(one) in in_use}
        logger.info("index %s: generation %s is served", name, self._served[name].index.manifest.generation)
        self.on_swap("opened")
        return True

    def _opened(self, source: Source) -> Served:
        index = self._open(source)
        inside = source.path / "model"
        name = source.model or (str(inside) if inside.is_dir() else index.manifest.model)
        key = name, index.encoder.fingerprint
        if key not in self._encodings:
            prepare(index.encoder, lambda: index.documents.some(SAMPLE), texts=None)
            self._encodings[key] = Encoding(index.encoder)
        encoding = self._encodings[key]
        index = replace(index, encoder=encoding.encoder)
        judged = self._judged
        if judged.relevant and len(index) <= MOST_DOCUMENTS:
            judged = judged.within(index.documents)
        # Without the folders that it lies in, which tell of a machine.
        public_name = Path(source.model or index.manifest.model).name or "model"
        return Served(source, public_name, index, encoding, Cells(index), judged)


def token_counter(encoder: Encoder) -> Callable[[Sequence[str]], int]:
    """Return what counts the tokens that an encoder reads of texts, truncated as it truncates; safe from any thread.

    Of an encoder whose tokenizer is not known here, words are counted.
    """
    tokens = getattr(encoder, "_tokens", None)
    if tokens is not None:
        return lambda texts: sum(map(len, tokens.ids(list(texts))))
    model = getattr(encoder, "model", None)
    tokenizer = None if model is None else _copied(model.tokenizer)
    if tokenizer is None:
        return lambda texts: sum(len(text.split()) for text in texts)
    most = getattr(model, "max_seq_length", None) or 10**9

    def count(texts: Sequence[str]) -> int:
        return sum(min(len(one.ids), most) for one in tokenizer.encode_batch(list(texts)))

    return count


def _copied(tokenizer: Any) -> Any:
    """Return the fast tokenizer within, apart from the encoder's, which changes its own while it encodes."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        return None
    copy = type(backend).from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def described(served: Served) -> Mapping[str, Any]:
    """Return what clients are told of an index."""
    index, cells = served.index, served.cells
    return {
        "name": served.source.name,
        "model": served.model,
        "documents": len(index),
        "dim": index.manifest.dim,
        "modes": list(index.modes),
        "fields": list(index.documents.filters),
        "bytes": bytes_of(index),
        "dims": list(cells.dims),
        "precisions": list(cells.precisions),
        "note": cells.note,
    }


def bytes_of(index: Index) -> float:
    """Return the bytes of a document in what a search scans: the code, or what an inverted file takes in all."""
    if index.manifest.lists and INVERTED in index.manifest.files:
        return index.manifest.files[INVERTED][0] / max(1, len(index))
    exact: Any = getattr(index.shortlist, "exact", index.shortlist)
    return float(exact.codec.bytes_per_vector)
