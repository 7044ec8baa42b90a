"""The first step of a search: few candidates from few bytes a document, exactly or by an inverted file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling.environment import needed
from nestling.retrieval.codec import Codec, Codes
from nestling.retrieval.vectors import truncate

Allowed = NDArray[np.bool_] | None

BLOCK = 32_768
ROUNDING = 1e-6
FEW = 50_000
"""So many allowed documents or fewer are scored one by one, whatever the index."""
LISTS_A_ROOT = {"binary": 1, "int4": 4, "int8": 4}
"""Lists of an inverted file: this times the root of the number of documents. Its keys can be so searched."""
TRAINED_ON = 64
"""Documents a list that the lists' centres are fitted on."""
ROUNDS = 10
SCALAR = {"int8": "QT_8bit", "int4": "QT_4bit"}


class Shortlist(Protocol):
    """What finds candidates."""

    def candidates(
        self, queries: NDArray[np.float32], m: int, allowed: Allowed, lists: int | None
    ) -> NDArray[np.int64]:
        """Return rows, (n_queries, m) int64, -1 where there are no more; in no order.

        Args:
            queries: (n_queries, full) float32.
            lists: how many of an inverted file to look into; None for its own choice.
        """


@dataclass(frozen=True, eq=False)
class Exact:
    """Scores every document's code against the query.

    Attributes:
        codes: of `truncate(documents, codec.dim)`.
    """

    codec: Codec
    codes: Codes

    def candidates(
        self, queries: NDArray[np.float32], m: int, allowed: Allowed = None, lists: int | None = None
    ) -> NDArray[np.int64]:
        """See `Shortlist.candidates`. Equal scores go to the lower row."""
        asked, _ = self.codec.project(truncate(queries, self.codec.dim))
        rows = None if allowed is None else np.flatnonzero(allowed)
        n = len(self.codes) if rows is None else len(rows)
        found = np.full((len(queries), m), -1, dtype=np.int64)
        if not n or not len(queries):
            return found
        keep = min(m, n)
        best = np.full((len(queries), keep), -np.inf, dtype=np.float32)
        places = np.full((len(queries), keep), -1, dtype=np.int64)
        for start in range(0, n, BLOCK):
            some = slice(start, min(start + BLOCK, n)) if rows is None else rows[start : start + BLOCK]
            scores = asked @ self._vectors(self.codes[some]).T
            numbers = np.arange(start, start + scores.shape[1]) if rows is None else rows[start : start + BLOCK]
            joined = np.concatenate([best, scores], axis=1)
            order = np.argpartition(-joined, keep - 1, axis=1)[:, :keep] if joined.shape[1] > keep else None
            every = np.concatenate([places, np.broadcast_to(numbers, scores.shape)], axis=1)
            if order is not None:
                joined, every = np.take_along_axis(joined, order, axis=1), np.take_along_axis(every, order, axis=1)
            best, places = joined, every
        found[:, :keep] = places
        return found

    def ranks(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many documents score higher than each of `rows`, (n_queries, m) int64: 0 for the best."""
        asked, _ = self.codec.project(truncate(queries, self.codec.dim))
        own = self._vectors(self.codes[rows.ravel()]).reshape(*rows.shape, -1)
        least = np.einsum("qmd,qd->qm", own, asked)
        # So that a document is not above itself by the order in which a product is added up.
        least = least + np.abs(least) * ROUNDING
        ranks = np.zeros(rows.shape, dtype=np.int64)
        for start in range(0, len(self.codes), BLOCK):
            scores = asked @ self._vectors(self.codes[start : start + BLOCK]).T
            for place in range(rows.shape[1]):
                ranks[:, place] += (scores > least[:, place, None]).sum(axis=1)
        return ranks

    def _vectors(self, codes: Codes) -> NDArray[np.float32]:
        if self.codec.is_float:
            return codes.data.astype(np.float32)
        # The mean's share is the same for all documents of a query, so it moves no rank.
        scaled: NDArray[np.float32] = self.codec.integers(codes) * self.codec.steps(codes)[:, None]
        return scaled


@dataclass(frozen=True, eq=False)
class Inverted:
    """An inverted file of faiss: the library's own codes, in lists by nearest centre.

    int8 and int4 are its scalar quantizers; binary is RaBitQ (Gao and Long 2024, arXiv 2405.12497), on the axes that
    the codec turned. Chosen by measuring on a million vectors of real titles with variations, one thread: 48 dims of
    int8 are built in 15 s with 57 bytes a document and have .888 of the exact top 10 among 400 candidates in 0.5 ms;
    usearch's graph (int8, connectivity 16) took 315 s and 197 bytes for .895 in 0.7 ms.

    Attributes:
        index: faiss's, read into memory.
        exact: for filters that few documents pass.
        lists: how many of its lists a search looks into, unless told otherwise.
    """

    index: Any
    exact: Exact
    lists: int

    def candidates(
        self, queries: NDArray[np.float32], m: int, allowed: Allowed = None, lists: int | None = None
    ) -> NDArray[np.int64]:
        """See `Shortlist.candidates`."""
        faiss = library()
        if allowed is not None and np.count_nonzero(allowed) <= FEW:
            return self.exact.candidates(queries, m, allowed)
        options = {"nprobe": lists or self.lists}
        if allowed is not None:
            # The selector keeps no reference to the bits, so they are named here until the search is over.
            bits = np.packbits(allowed, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParametersIVF(**options)
        codec = self.exact.codec
        asked = truncate(queries, codec.dim)
        if codec.precision == "binary":
            asked, _ = codec.project(asked)
        rows: NDArray[np.int64] = self.index.search(asked, m, params=parameters)[1]
        return rows


def build_inverted(vectors: Any, codec: Codec, path: Path, *, block: int = 100_000) -> int:
    """Write an inverted file over the first `codec.dim` components of (n, full) vectors; return its number of lists.

    Raises:
        InputError: faiss is missing.
    """
    faiss = library()
    n, dim = len(vectors), codec.dim
    lists = max(1, int(LISTS_A_ROOT[codec.precision] * n**0.5))
    coarse = faiss.IndexFlatIP(dim)
    if codec.precision == "binary":
        index = faiss.IndexIVFRaBitQFastScan(coarse, dim, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        kind = getattr(faiss.ScalarQuantizer, SCALAR[codec.precision])
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = ROUNDS, TRAINED_ON, 1
    # For inner products faiss brings centres to length 1 unless told, and centred documents are far shorter than that:
    # codes, which hold what lies between a document and its centre, would hold the centre.
    index.cp.spherical = codec.precision != "binary"

    def rows(some: Any) -> NDArray[np.float32]:
        cut = truncate(np.asarray(vectors[some], dtype=np.float32), dim)
        if codec.mean is None or codec.rotation is None or codec.precision != "binary":
            return cut
        return np.asarray((cut - codec.mean) @ codec.rotation, dtype=np.float32)

    index.train(rows(np.sort(np.random.default_rng(0).permutation(n)[: TRAINED_ON * lists])))
    for start in range(0, n, block):
        index.add(rows(slice(start, start + block)))
    faiss.write_index(index, str(path))
    return lists


def has_library() -> bool:
    """Whether faiss is installed."""
    return find_spec("faiss") is not None


def library() -> Any:
    """Return faiss.

    Raises:
        InputError: it is not installed.
    """
    return needed("an index of more documents than --exact-up-to", "faiss")
