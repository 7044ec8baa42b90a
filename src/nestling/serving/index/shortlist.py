"""The first step of a search: candidates from few bytes a document; how it is chosen to meet a target, and written."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.environment import needed
from nestling.progress import Observer
from nestling.retrieval.bm25 import PairScores
from nestling.retrieval.codec import FIT_ROWS, Codec, Codes, fit_codec
from nestling.retrieval.exact_search import Documents, rescore, top_k
from nestling.retrieval.fusion import Top
from nestling.retrieval.vectors import truncate
from nestling.serving.index import files

logger = logging.getLogger(__name__)

Allowed = NDArray[np.bool_] | None

BLOCK = 65_536
FEW = 50_000
"""So many allowed documents or fewer are scored one by one, whatever the index."""
LISTS_PER_ROOT = {"binary": 1, "int4": 4, "int8": 4}
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
    """Scores the codes of all documents, cut to the codec's size, against the query's own vector."""

    codec: Codec
    codes: Documents

    def top_k(self, queries: NDArray[np.float32], k: int, allowed: Allowed = None) -> Top:
        """Return the `k` best of (n, full) queries; equal scores go to the lower row."""
        rows = None if allowed is None else np.flatnonzero(allowed)
        return top_k(truncate(queries, self.codec.dim), self.codes, k, self.codec, rows=rows)

    def pair_scores(self, queries: NDArray[np.float32]) -> PairScores:
        """Return what scores pairs of (n, full) queries and documents."""
        cut = truncate(queries, self.codec.dim)
        return lambda rows, columns: np.einsum("nd,nd->n", cut[rows], self.codec.decode(self.codes[columns]))

    def candidates(self, queries: NDArray[np.float32], m: int, allowed: Allowed = None) -> NDArray[np.int64]:
        """Return rows for (n_queries, full) queries, (n_queries, m) int64, best first; -1 where there are no more."""
        rows, _ = self.top_k(queries, m, allowed)
        return np.pad(rows, ((0, 0), (0, m - rows.shape[1])), constant_values=-1)


@dataclass(frozen=True, eq=False)
class Inverted:
    """An inverted file of faiss: the library's own codes, in lists by nearest centre.

    int8 and int4 are its scalar quantizers; binary is RaBitQ (Gao and Long 2024, arXiv 2405.12497), on the axes that
    the codec rotated. `exact` is for filters that few documents pass.
    """

    index: Any
    exact: Exact
    lists: int

    def candidates(
        self, queries: NDArray[np.float32], m: int, allowed: Allowed = None, lists: int | None = None
    ) -> NDArray[np.int64]:
        """Return rows as `Exact.candidates` does; `lists` looks into another number of lists."""
        if allowed is not None and np.count_nonzero(allowed) <= FEW:
            return self.exact.candidates(queries, m, allowed)
        faiss, codec = library(), self.exact.codec
        options: dict[str, Any] = {"nprobe": lists or self.lists}
        if allowed is not None:
            # The selector keeps no reference to the bits, so they are named here until the search is over.
            bits = np.packbits(allowed, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)
        cut = truncate(queries, codec.dim)
        if codec.precision == "binary":
            cut, _ = codec.project(cut)
        rows: NDArray[np.int64] = self.index.search(cut, m, params=faiss.SearchParametersIVF(**options))[1]
        return rows


Shortlist = Exact | Inverted


def build_inverted(vectors: Any, exact: Exact, path: Path) -> Inverted:
    """Write an inverted file over the first components of (n, full) vectors, as many as the codes hold, and read it."""
    faiss = library()
    codec, n, dim = exact.codec, len(vectors), exact.codec.dim
    lists = max(1, int(LISTS_PER_ROOT[codec.precision] * n**0.5))
    coarse = faiss.IndexFlatIP(dim)
    if codec.precision == "binary":
        index = faiss.IndexIVFRaBitQFastScan(coarse, dim, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        kind = getattr(faiss.ScalarQuantizer, SCALAR[codec.precision])
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = ROUNDS, TRAINED_ON, 1
    # Centred documents are far shorter than 1, to which faiss brings centres by default: their codes, of what lies
    # between a document and its centre, would hold the centre.
    index.cp.spherical = codec.precision != "binary"

    def prepared(rows: Any) -> NDArray[np.float32]:
        cut = truncate(np.asarray(vectors[rows], dtype=np.float32), dim)
        if codec.mean is None or codec.rotation is None or codec.precision != "binary":
            return cut
        return np.asarray((cut - codec.mean) @ codec.rotation, dtype=np.float32)

    index.train(prepared(np.sort(np.random.default_rng(0).permutation(n)[: TRAINED_ON * lists])))
    for start in range(0, n, BLOCK):
        index.add(prepared(slice(start, start + BLOCK)))
    faiss.write_index(index, str(path))
    return Inverted(faiss.read_index(str(path)), exact, lists)


def has_library() -> bool:
    """Whether faiss is installed."""
    return find_spec("faiss") is not None


def library() -> Any:
    """Return faiss, or raise InputError where it is not installed."""
    return needed("an index of more documents than --exact-up-to", "faiss")


@dataclass(frozen=True)
class Calibrated:
    """Length of the shortlist, lists to look into (0 without an inverted file), and the share of the top 10 found."""

    shortlist: int
    lists: int
    agreement: float
    warning: str = ""


def write_shortlist(
    folder: Path,
    vectors: NDArray[np.float16],
    codec: Codec,
    queries: NDArray[np.float32],
    *,
    inverted: bool,
    target: float,
    observer: Observer,
) -> tuple[Codec, Calibrated]:
    """Write the first of an inverted file, all codes and whole vectors to meet the target, and return it."""
    missed = []
    ways = [("all codes", codec, False), ("whole vectors", Codec("float16", vectors.shape[1]), False)]
    if inverted:
        ways.insert(0, ("an inverted file", codec, True))
    for name, codec, is_inverted in ways:
        exact, file = _write_codes(folder, vectors, codec), None
        if is_inverted:
            observer.stage("inverted file", f"{len(vectors):,} documents")
            file = build_inverted(vectors, exact, folder / files.INVERTED)
        observer.stage("choose the shortlist's length")
        chosen = calibrate(queries, vectors, exact, file, target=target)
        if chosen.agreement >= target:
            break
        (folder / files.INVERTED).unlink(missing_ok=True)
        way = name if is_inverted else f"{codec.dim} dims of {codec.precision}, all scanned,"
        missed.append(f"{way} found {chosen.agreement:.1%}")
    if not missed:
        return codec, chosen
    warning = (
        f"{' and '.join(missed)} of the exact top 10 where the target is {target:.1%}, so a search scans {name}, which "
        "is slower and takes more memory; a lower --target allows the other"
    )
    observer.note(f"warning: {warning}")
    logger.warning("index %s: %s", folder.parent, warning)
    return codec, replace(chosen, warning=warning)


def _write_codes(folder: Path, vectors: NDArray[np.float16], codec: Codec) -> Exact:
    """Write a codec and its codes, made of the vectors as they are stored, so that updates change none."""
    codec.save(folder / files.CODEC)
    (folder / files.SCALES).unlink(missing_ok=True)
    codes = encode(vectors, codec)
    np.save(folder / files.CODES, codes.data)
    if codes.scales is not None:
        np.save(folder / files.SCALES, codes.scales)
    return Exact(codec, codes)


def calibrate(
    queries: NDArray[np.float32], vectors: Any, exact: Exact, inverted: Inverted | None, *, target: float
) -> Calibrated:
    """Choose the cheapest search that finds `target` of the exact top 10 of (n, full) queries.

    First the length, with all codes scanned, so that half of what may be missed is missed there; then the lists.
    """
    whole = Codec("float16", vectors.shape[1])
    rows, best = top_k(queries, Codes(vectors, None, whole.fingerprint), TOP, whole)
    # By scores, as of equal documents at the tenth place one is as good as the other.
    least = best.min(axis=1, keepdims=True) - SAME

    def agreement(candidates: NDArray[np.int64]) -> float:
        _, scores = rescore(queries, candidates, vectors, best.shape[1])
        return float((scores >= least).sum() / best.size)

    share = target if inverted is None else (1 + target) / 2
    lengths = [min(len(vectors), length) for length in LENGTHS]
    candidates = exact.candidates(queries, lengths[-1])
    places = np.concatenate([np.flatnonzero(np.isin(*each)) for each in zip(candidates, rows, strict=True)])
    shortlist = next((length for length in lengths if (places < length).sum() / rows.size >= share), lengths[-1])
    if inverted is None:
        return Calibrated(shortlist, 0, agreement(candidates[:, :shortlist]))
    for part in SHARES:
        lists = max(1, round(inverted.lists * part))
        chosen = Calibrated(shortlist, lists, agreement(inverted.candidates(queries, shortlist, None, lists)))
        if chosen.agreement >= target:
            break
    return chosen
