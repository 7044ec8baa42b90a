"""The first step of a search: few candidates from few bytes a document, exactly or by an inverted file; how many."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.environment import needed
from nestling.retrieval.codec import FIT_ROWS, Codec, Codes, fit_codec
from nestling.retrieval.exact_search import rescore, top_k
from nestling.retrieval.vectors import truncate

Allowed = NDArray[np.bool_] | None

BLOCK = 65_536
FEW = 50_000
"""So many allowed documents or fewer are scored one by one, whatever the index."""
LISTS_A_ROOT = {"binary": 1, "int4": 4, "int8": 4}
"""Lists of an inverted file: this times the root of the number of documents. Its keys can be so searched."""
TRAINED_ON = 64
"""Documents a list that the lists' centres are fitted on."""
ROUNDS = 10
SCALAR = {"int8": "QT_8bit", "int4": "QT_4bit"}

TOP = 10
LENGTHS = (50, 100, 200, 400, 800, 1_600, 2_400, 3_200, 4_800, 6_400, 9_600, 12_800, 25_600)
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1.0)
SAME = 1e-6
"""Scores that differ by less are equal but for the order of their terms."""


def fit(vectors: NDArray[np.float16], dim: int, precision: str) -> Codec:
    """Fit a codec on the first `dim` components of at most 16,384 of (n, full) vectors, evenly spaced."""
    sample = vectors[:: -(-len(vectors) // FIT_ROWS)].astype(np.float32)
    return fit_codec(precision, truncate(sample, dim))


def encode(vectors: NDArray[np.float16], codec: Codec) -> Codes:
    """Encode the first components of (n, full) vectors, block by block."""
    blocks = (vectors[start : start + BLOCK].astype(np.float32) for start in range(0, len(vectors), BLOCK))
    parts = [codec.encode(truncate(block, codec.dim)) for block in blocks]
    scales = [part.scales for part in parts if part.scales is not None]
    data = np.concatenate([part.data for part in parts])
    return Codes(data, np.concatenate(scales) if scales else None, codec.fingerprint)


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
        """Return rows, (n_queries, m) int64, best first, equal scores to the lower row; -1 where there are no more.

        Args:
            queries: (n_queries, full) float32.
            lists: of an inverted file alone.
        """
        rows = None if allowed is None else np.flatnonzero(allowed)
        best, _ = top_k(truncate(queries, self.codec.dim), self.codes, m, self.codec, rows=rows)
        return np.pad(best, ((0, 0), (0, m - best.shape[1])), constant_values=-1)


@dataclass(frozen=True, eq=False)
class Inverted:
    """An inverted file of faiss: the library's own codes, in lists by nearest centre.

    int8 and int4 are its scalar quantizers; binary is RaBitQ (Gao and Long 2024, arXiv 2405.12497), on the axes that
    the codec rotated. A graph (usearch) found the same in twenty times the time and three times the bytes.

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
        """Return rows, (n_queries, m) int64, -1 where there are no more.

        Args:
            queries: (n_queries, full) float32.
            lists: how many to look into; by default as many as the index was made for.
        """
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


Shortlist = Exact | Inverted
"""What finds candidates."""


def build_inverted(vectors: Any, exact: Exact, path: Path) -> Inverted:
    """Write an inverted file over the first components of (n, full) vectors, as many as the codes hold, and read it.

    Raises:
        InputError: faiss is missing.
    """
    faiss = library()
    codec, n, dim = exact.codec, len(vectors), exact.codec.dim
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
    for start in range(0, n, BLOCK):
        index.add(rows(slice(start, start + BLOCK)))
    faiss.write_index(index, str(path))
    return Inverted(faiss.read_index(str(path)), exact, lists)


@dataclass(frozen=True)
class Calibrated:
    """Length of the shortlist, lists to look into (0 without an inverted file), and the share of the top 10 found."""

    shortlist: int
    lists: int
    agreement: float


def calibrate(
    queries: NDArray[np.float32], vectors: Any, exact: Exact, inverted: Inverted | None, *, target: float
) -> Calibrated:
    """Choose the cheapest search that finds `target` of the exact top 10 of these queries.

    First the length, with all codes scanned, so that half of what may be missed is missed there; then the lists.

    Args:
        queries: (n, full) float32.
        vectors: (n_documents, full) float16 or float32.
    """
    whole = Codec("float16", vectors.shape[1])
    rows, best = top_k(queries, Codes(vectors, None, whole.fingerprint), TOP, whole)
    # By scores, as of equal documents at the tenth place one is as good as the other.
    least = best.min(axis=1, keepdims=True) - SAME

    def agreement(candidates: NDArray[np.int64]) -> float:
        _, scores = rescore(queries, candidates, vectors, best.shape[1])
        return float((scores >= least).sum() / best.size)

    wanted = target if inverted is None else (1 + target) / 2
    lengths = [min(len(vectors), length) for length in LENGTHS]
    found = exact.candidates(queries, lengths[-1])
    places = np.concatenate([np.flatnonzero(np.isin(*each)) for each in zip(found, rows, strict=True)])
    shortlist = next((length for length in lengths if (places < length).sum() / rows.size >= wanted), lengths[-1])
    if inverted is None:
        return Calibrated(shortlist, 0, agreement(found[:, :shortlist]))
    share, looked = 0.0, inverted.lists
    for part in SHARES:
        looked = max(1, round(inverted.lists * part))
        share = agreement(inverted.candidates(queries, shortlist, None, looked))
        if share >= target:
            break
    return Calibrated(shortlist, looked, share)


def has_library() -> bool:
    """Whether faiss is installed."""
    return find_spec("faiss") is not None


def library() -> Any:
    """Return faiss.

    Raises:
        InputError: it is not installed.
    """
    return needed("an index of more documents than --exact-up-to", "faiss")
