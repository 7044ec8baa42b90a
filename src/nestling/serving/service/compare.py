"""An index's vectors at other sizes and precisions, searched exactly, to be set beside one another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import PRECISIONS
from nestling.errors import InputError
from nestling.retrieval.bm25 import PairScores
from nestling.retrieval.codec import Codec, Codes
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.fusion import Top
from nestling.retrieval.vectors import truncate
from nestling.serving.index.index import Hit, Index, Mode
from nestling.serving.index.shortlist import encode, fit

MOST_DOCUMENTS = 200_000
MOST_BYTES = 512 * 2**20
SMALLEST = 8


def dims_of(full: int) -> tuple[int, ...]:
    """Return the sizes to offer: the full one and its halves, down to 8."""
    dims = [full]
    while dims[-1] // 2 >= SMALLEST:
        dims.append(dims[-1] // 2)
    return tuple(dims)


@dataclass(frozen=True, eq=False)
class Cell:
    """Documents at one size and precision, as `top_k` takes them.

    Attributes:
        vectors: (n, full) float16: what the index holds, so float32 is no finer than that.
        codes: of int8, int4 and binary; floats are cut from the index's vectors as they are needed.
    """

    codec: Codec
    vectors: NDArray[np.float16]
    codes: Codes | None = None

    @classmethod
    def make(cls, vectors: NDArray[np.float16], dim: int, precision: str) -> Cell:
        """Fit a codec and encode all documents, as `nestling index` does."""
        codec = fit(vectors, dim, precision)
        return cls(codec, vectors, None if codec.is_float else encode(vectors, codec))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return 0 if self.codes is None else self.codes.nbytes

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Codes:
        if self.codes is not None:
            return self.codes[rows]
        return self.codec.encode(truncate(self.vectors[rows].astype(np.float32), self.codec.dim))

    def top_k(self, query: NDArray[np.float32], k: int) -> Top:
        """Return the `k` best documents of a query's own vector, (1, full), cut to the size."""
        return top_k(truncate(query, self.codec.dim), self, k, self.codec)

    def pair_scores(self, query: NDArray[np.float32]) -> PairScores:
        """Return what scores pairs of one query, (1, full), with documents."""
        asked = truncate(query, self.codec.dim)[0]

        def of_pairs(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = np.einsum("nd,d->n", self.codec.decode(self[columns]), asked)
            return found

        return of_pairs


class Cells:
    """The cells of one index, made when first asked for and kept within a bound. Safe from several threads."""

    def __init__(self, index: Index, *, most_documents: int = MOST_DOCUMENTS, most_bytes: int = MOST_BYTES) -> None:
        """Offer what an index can give; nothing where it has more documents than `most_documents`."""
        self.index = index
        small = 0 < len(index) <= most_documents
        self.dims = dims_of(index.manifest.dim) if small else ()
        self.precisions: tuple[str, ...] = PRECISIONS if small else ()
        self._most_documents, self._most_bytes = most_documents, most_bytes
        self._kept: OrderedDict[tuple[int, str], Cell] = OrderedDict()
        self._one_at_a_time = threading.Lock()

    @property
    def note(self) -> str | None:
        """Why there are none, if so."""
        if self.dims:
            return None
        return f"more than {self._most_documents:,} documents: searched only as served"

    def cell(self, dim: int | None, precision: str | None) -> Cell:
        """Return a cell, made or kept.

        Raises:
            InputError: there is no such cell.
        """
        if not self.dims:
            raise InputError("this index is too large for other sizes and precisions; leave dim and precision out")
        dim, precision = dim or self.dims[0], precision or PRECISIONS[0]
        if dim not in self.dims or precision not in self.precisions:
            known = ", ".join(map(str, self.dims))
            raise InputError(f"no cell of {dim} dims and {precision}; dims are {known}, at {', '.join(PRECISIONS)}")
        key = dim, precision
        with self._one_at_a_time:
            if key not in self._kept:
                self._kept[key] = Cell.make(self.index.vectors, dim, precision)
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(cell.nbytes for cell in self._kept.values()) > self._most_bytes:
                self._kept.popitem(last=False)
            return self._kept[key]

    def search(self, cell: Cell, query: str, vector: NDArray[np.float32], k: int, *, fused: bool) -> Top:
        """Search a cell, with BM25 added by the index's own fusion if wished.

        Args:
            vector: (1, full) float32 of the query.

        Raises:
            InputError: the index has no fusion.
        """
        if not fused:
            return cell.top_k(vector, k)
        return self.index.fuse([query], k, lambda depth: cell.top_k(vector, depth), cell.pair_scores(vector))


def recall(found: Sequence[str], wanted: frozenset[str]) -> float:
    """Return the share of the wanted documents among those found, 0 to 1."""
    return len(wanted.intersection(found)) / len(wanted)


def hits_of(index: Index, top: Top) -> list[dict[str, Any]]:
    """Return one query's results as they are sent."""
    return _sent(index.hits(top)[0])


def as_served(index: Index, query: str, vector: NDArray[np.float32] | None, k: int, mode: Mode) -> list[dict[str, Any]]:
    """Search an index in its own way; `vector`, (1, full), is needed but for `lexical`."""
    if mode == "lexical" or vector is None:
        return _sent(index.search([query], k, mode="lexical")[0])
    return _sent(index.search_vectors(vector, k, queries=[query] if mode == "fused" else None)[0])


def _sent(hits: list[Hit]) -> list[dict[str, Any]]:
    return [
        {"rank": hit.rank, "id": hit.document_id, "score": hit.score, "text": hit.text, "fields": hit.fields}
        for hit in hits
    ]
