"""Exact top-k in blocks that bound memory, ties to the lower row; and exact scores of candidates."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.codec import Codec, Codes
from nestling.retrieval.vectors import MIN_ROWS, product

QUERY_BLOCK, CORPUS_BLOCK = 512, 8192
"""Queries and documents in one product; of its scores, and of as many decoded documents, is the working memory."""
GROUP = 64
GATHERED = 64 * 2**20
"""Bytes of candidates' vectors that `rescore` holds at a time, about."""
LOW = 2**32 - 1
Matrix = NDArray[np.float32]


class Documents(Protocol):
    """Documents to search: rows that come as codes, block by block."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | NDArray[np.int64], /) -> Codes: ...


def top_k(
    queries: NDArray[np.floating],
    documents: Matrix | Documents,
    k: int,
    codec: Codec | None = None,
    *,
    rows: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], Matrix]:
    """Return the `k` documents of the highest scores for each query, best first.

    Scores are inner products with a matrix's rows, or with what codes stand for, queries rounded to int8 where the
    codes are integers. Equal scores go to the lower row, also at the cut, whatever the blocks are. Each block of scores
    is held against the k-th best so far, and groups of columns whose maximum does not pass are dropped unread.

    Args:
        documents: (n_documents, dim) float32, finite; or codes, with their codec.
        rows: of the documents to search, rising; by default all.

    Returns indices, (n_queries, min(k, n_documents)) int64, and scores, the same shape, float32, descending.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got k={k}")
    if isinstance(documents, np.ndarray):
        if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
            raise ValueError(f"queries of shape {queries.shape} do not fit a corpus of shape {documents.shape}")
        _refuse_non_finite(queries, "query")
        _refuse_non_finite(documents, "document")
        codec = Codec("float32", documents.shape[1])
        documents = Codes(documents, None, codec.fingerprint)
    assert codec is not None
    rounded, unit, shift = _rounded(queries, codec)
    n = len(documents) if rows is None else len(rows)
    k = min(k, n)
    best = np.full((len(queries), k), _keys(np.float32(-np.inf), np.int64(LOW)))
    width = -(-min(CORPUS_BLOCK, max(n, 1)) // GROUP) * GROUP
    # Every product of a call has the same shape, as the last bit of one may depend on the other rows beside it.
    tiles = np.empty((max(MIN_ROWS, min(QUERY_BLOCK, len(queries))), width), dtype=np.float32)
    for start in range(0, n if len(queries) else 0, width):
        block = documents[slice(start, start + width) if rows is None else rows[start : start + width]]
        vectors, steps = _unpacked(block, codec, width)
        for first in range(0, len(queries), QUERY_BLOCK):
            part = slice(first, first + QUERY_BLOCK)
            tile = product(rounded[part], vectors, tiles)
            if steps is not None:
                tile *= steps
            tile[:, len(block) :] = -np.inf
            _merge(tile, start, best[part])
    best.sort(axis=1)
    scores, indices = _values(best[:, ::-1])
    # The same for all documents of a query, so it may come after the choice, where it costs nothing.
    with np.errstate(over="ignore"):
        scores = scores * unit[:, None] + shift[:, None]
    if not np.isfinite(scores).all():
        raise ValueError("some scores overflow float32; normalise the embeddings first")
    return indices if rows is None else rows[indices], scores


def _rounded(queries: NDArray[np.floating], codec: Codec) -> tuple[NDArray[Any], Matrix, Matrix]:
    """Return queries as they are multiplied, what a unit of each is worth, and what is added to its scores."""
    projected, shift = codec.project(queries)
    if codec.is_float:
        return projected, np.ones(len(queries), dtype=np.float32), shift
    # Integers are multiplied exactly, so their order depends on neither blocks, threads nor machine.
    unit = np.abs(projected).max(axis=1).astype(np.float64) / 127
    rounded = np.divide(projected, unit[:, None], out=np.zeros(projected.shape), where=unit[:, None] > 0)
    return np.rint(rounded).astype(np.int8), unit.astype(np.float32), shift


def _unpacked(codes: Codes, codec: Codec, width: int) -> tuple[NDArray[Any], Matrix | None]:
    """Return what codes are multiplied as, padded to `width` rows, and the steps of integers."""
    codec.check(codes)
    vectors: NDArray[Any] = codes.data.astype(np.float32, copy=False) if codec.is_float else codec.integers(codes)
    steps = None if codec.is_float else codec.steps(codes)
    if len(codes) < width:
        vectors = np.pad(vectors, ((0, width - len(codes)), (0, 0)))
        steps = None if steps is None else np.pad(steps, (0, width - len(codes)))
    return vectors, steps


def rescore(
    queries: NDArray[np.floating], candidates: NDArray[np.int64], documents: NDArray[np.floating], k: int
) -> tuple[NDArray[np.int64], Matrix]:
    """Score candidates exactly and return the `k` best of each query; equal scores go to the lower document.

    Candidates are (n_queries, m) int64 rows of `documents`, none twice for one query; -1 for no candidate. Returns
    indices, (n_queries, min(k, m)) int64, and scores, the same shape, float32, descending. A query with fewer
    candidates has -1 and -inf in its last places.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got k={k}")
    if candidates.ndim != 2 or len(candidates) != len(queries):
        raise ValueError(f"candidates of shape {candidates.shape} do not fit {len(queries)} queries")
    if candidates.size and candidates.max() >= len(documents):
        raise ValueError(f"a candidate lies outside the {len(documents)} documents")
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(f"queries of shape {queries.shape} do not fit documents of shape {documents.shape}")
    width = min(k, candidates.shape[1])
    indices = np.full((len(queries), width), -1, dtype=np.int64)
    scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
    if not width or not len(documents):
        return indices, scores
    at_once = max(1, GATHERED // (4 * max(queries.shape[1], 1) * candidates.shape[1]))
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        # Ascending documents and a stable sort break ties; -1 comes first here and last below, by its score.
        columns = np.sort(candidates[part], axis=1)
        vectors = documents[columns.clip(min=0).ravel()].astype(np.float32).reshape(*columns.shape, -1)
        # einsum adds up each product alike, wherever it lies, so equal vectors get equal scores.
        products = np.einsum("qmd,qd->qm", vectors, queries[part].astype(np.float32))
        if not np.isfinite(products).all():
            raise ValueError("some scores are NaN or overflow float32; normalise the embeddings first")
        products[columns < 0] = -np.inf
        indices[part], scores[part] = highest(columns, products, width)
    return indices, scores


def highest(columns: NDArray[np.int64], scores: NDArray[Any], k: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the `k` columns of the highest of (n, m) scores in each row, best first; equal scores keep their order."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _merge(scores: Matrix, start: int, best: NDArray[np.int64]) -> None:
    """Take into the best so far, keys of which the first is the least, in place, what of a block's scores passes it."""
    k = best.shape[1]
    bar, _ = _values(best[:, 0])
    if scores.shape[1] > k and np.isneginf(bar).any():
        # The block's own k-th value bounds the candidates of the first block; what equals it must still pass.
        kth = np.partition(scores, -k, axis=1)[:, -k]
        bar = np.maximum(bar, np.nextafter(kth, np.float32(-np.inf)))
    groups = scores.reshape(len(scores), GROUP, -1)
    # Blocks come in ascending order, so a score equal to the k-th so far has lost the tie: strictly greater it is.
    row, group = (groups.max(axis=1) > bar[:, None]).nonzero()
    values = groups[row, :, group]
    place, offset = (values > bar[row, None]).nonzero()
    if not len(place):
        return
    row, column = row[place], start + offset * groups.shape[2] + group[place]
    active, first, counts = np.unique(row, return_index=True, return_counts=True)
    merged = np.full((len(active), k + int(counts.max())), np.iinfo(np.int64).min)
    merged[:, :k] = best[active]
    slot = np.repeat(np.arange(len(active)), counts)
    merged[slot, k + np.arange(len(row)) - first[slot]] = _keys(values[place, offset], column)
    merged.partition(-k, axis=1)
    best[active] = merged[:, -k:]


def _keys(scores: Matrix | np.float32, columns: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    """Return whole numbers that sort as (score, column falling) does, of columns below 2 to the 32nd."""
    # Bits of floats sort as integers once those of negative ones are turned round; adding 0 makes -0 the same as 0.
    bits = (np.asarray(scores, dtype=np.float32) + np.float32(0)).view(np.int32)
    return np.asarray((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32 | (LOW - columns))


def _values(keys: NDArray[np.int64]) -> tuple[Matrix, NDArray[np.int64]]:
    """Return scores and columns of keys."""
    bits = (keys >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32), LOW - (keys & LOW)


def _refuse_non_finite(embeddings: NDArray[np.floating], what: str) -> None:
    # The sum of a row is finite when its values are, and is much cheaper than a look at each of them.
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(embeddings.sum(axis=1, dtype=np.float32)))
    if len(bad):
        raise ValueError(f"the embedding of {what} {bad[0]} (counted from 0) holds NaN or infinite values")
