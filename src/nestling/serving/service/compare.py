"""Ways to search side by side: an index's vectors at other sizes and precisions, and what raters judged relevant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import PRECISIONS
from nestling.environment import needed
from nestling.errors import InputError
from nestling.judgments.identity import normalise
from nestling.retrieval.codec import Codec, Codes
from nestling.retrieval.vectors import truncate
from nestling.serving.index.documents import Documents
from nestling.serving.index.index import Index
from nestling.serving.index.shortlist import Exact, encode, fit

MOST_DOCUMENTS = 200_000
CELLS = 8
"""Kept in memory beside one for each size: the last that were searched."""
SMALLEST = 8


def dims_of(full: int) -> tuple[int, ...]:
    """Return the sizes to offer: the full one and its halves, down to 8."""
    halves = (full >> n for n in range(1, full.bit_length()))
    return (full, *(dim for dim in halves if dim >= SMALLEST))


@dataclass(frozen=True, eq=False)
class Cut:
    """Codes of floats, cut from an index's (n, full) float16 vectors when needed; so float32 is no finer than that."""

    vectors: NDArray[np.float16]
    codec: Codec

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Codes:
        return self.codec.encode(truncate(self.vectors[rows].astype(np.float32), self.codec.dim))


def make_cell(vectors: NDArray[np.float16], dim: int, precision: str) -> Exact:
    """Return documents at one size and precision, with codes as `nestling index` makes them."""
    codec = fit(vectors, dim, precision)
    return Exact(codec, Cut(vectors, codec) if codec.is_float else encode(vectors, codec))


class Cells:
    """The cells of one index, each made when it is first searched; none for a large index, as `note` says."""

    def __init__(self, index: Index, *, most_documents: int = MOST_DOCUMENTS) -> None:
        small = 0 < len(index) <= most_documents
        self.dims = dims_of(index.manifest.dim) if small else ()
        self.precisions: tuple[str, ...] = PRECISIONS if small else ()
        self.note = None if small else f"more than {most_documents:,} documents: searched only as served"
        self._cell = lru_cache(CELLS + len(self.dims))(lambda dim, precision: make_cell(index.vectors, dim, precision))

    def cell(self, dim: int | None, precision: str | None) -> Exact:
        """Return a cell, by default of the full size in float32; raise InputError where there is no such."""
        if not self.dims:
            raise InputError("this index is too large for other sizes and precisions; leave dim and precision out")
        dim, precision = dim or self.dims[0], precision or PRECISIONS[0]
        if dim not in self.dims or precision not in self.precisions:
            known = ", ".join(map(str, self.dims))
            raise InputError(f"no cell of {dim} dims and {precision}; dims are {known}, at {', '.join(PRECISIONS)}")
        return self._cell(dim, precision)


def recall(ids: Sequence[str], relevant: frozenset[str]) -> float:
    """Return the share of the relevant documents among some, 0 to 1."""
    return len(relevant.intersection(ids)) / len(relevant)


@dataclass(frozen=True)
class Judged:
    """Queries as first judged, in order; and by normalised query the ids of its relevant documents, none empty."""

    texts: tuple[str, ...] = ()
    relevant: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def of(self, query: str) -> frozenset[str] | None:
        """Return the ids that are relevant for a query; None where it was not judged."""
        return self.relevant.get(normalise(query))

    def within(self, documents: Documents) -> Judged:
        """Return the judgments of these documents only."""
        known = {documents[row].id for row in range(len(documents))}
        relevant = {query: ids & known for query, ids in self.relevant.items() if ids & known}
        return Judged(tuple(text for text in self.texts if normalise(text) in relevant), relevant)


def read_judged(split: Path, *, threshold: float | None = None) -> Judged:
    """Read the test side of a folder that `nestling split` wrote; a document is relevant above the threshold."""
    needed("--split", "polars")
    from nestling.judgments.split_files import read_split
    from nestling.judgments.threshold import settle_threshold

    test = read_split(split).test
    positives = test.above(settle_threshold(test, threshold)).frame
    texts: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    for query, document in positives.select("query", "document_id").iter_rows():
        texts.setdefault(normalise(query), query)
        relevant.setdefault(normalise(query), set()).add(document)
    return Judged(tuple(texts.values()), {query: frozenset(ids) for query, ids in relevant.items()})
