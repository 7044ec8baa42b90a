"""Exact top-k in blocks that bound memory, ties to the lower row; and exact scores of candidates."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.codec import Codec, Codes
from nestling.retrieval.vectors import MIN_ROWS

GROUP = 64
GATHERED = 64 * 2**20
"""Bytes of candidates' vectors that `rescore` holds at a time, about."""
LOW = 2**32 - 1


class Documents(Protocol):
    """What can be searched: rows that come as codes, block by block."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | NDArray[np.int64], /) -> Codes: ...


def top_k(
    queries: NDArray[np.floating],
    documents: NDArray[np.float32] | Documents,
    k: int,
    codec: Codec | None = None,
    *,
    rows: NDArray[np.int64] | None = None,
    query_block: int = 512,
    corpus_block: int = 8192,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `k` documents of the highest scores for each query, best first.

    Scores are inner products with a matrix's rows, or what `Codec.scores` makes of codes. Equal scores go to the lower
    row, also at the cut, whatever the blocks are. Each block of scores is held against the k-th best so far, and groups
    of columns whose maximum does not pass are dropped unread, so the cost stays near that of the product.

    Args:
        queries: (n_queries, dim) float, finite.
        documents: (n_documents, dim) float32, finite; or codes, with their codec.
        k: how many; more than n_documents gives n_documents.
        rows: of the documents to search, rising; by default all.
        query_block: queries in one product.
        corpus_block: documents decoded at a time, in one product. Working memory is about
            4 * corpus_block * (query_block + dim) bytes, and several times that where candidates are many.

    Returns:
        indices: (n_queries, min(k, n_documents)) int64, and scores: the same shape, float32, descending.

    Raises:
        InputError: the codes are of another codec, or the queries of another size or not finite.
        ValueError: k or a block is below 1, shapes do not fit, a document is not finite, or scores overflow float32.
    """
    if min(k, query_block, corpus_block) < 1:
        raise ValueError(f"k and the blocks must be 1 or more, got k={k}, blocks {query_block} and {corpus_block}")
    if isinstance(documents, np.ndarray):
        if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
            raise ValueError(f"queries of shape {queries.shape} do not fit a corpus of shape {documents.shape}")
        _refuse_non_finite(queries, "query")
        _refuse_non_finite(documents, "document")
        codec = Codec("float32", documents.shape[1])
        documents = Codes(documents, None, codec.fingerprint)
    assert codec is not None
    prepared = codec.prepare(queries)
    n = len(documents) if rows is None else len(rows)
    k = min(k, n)
    best = np.full((len(queries), k), _keys(np.float32(-np.inf), np.int64(LOW)))
    width = -(-min(corpus_block, max(n, 1)) // GROUP) * GROUP
    # Every product of a call has the same shape, as the last bit of one may depend on the other rows beside it.
    tiles = np.empty((max(MIN_ROWS, min(query_block, len(queries))), width), dtype=np.float32)
    for start in range(0, n if len(queries) else 0, width):
        block = documents[slice(start, start + width) if rows is None else rows[start : start + width]]
        scores = codec.scores(block, width)
        for first in range(0, len(queries), query_block):
            part = slice(first, first + query_block)
            tile = scores(prepared.rows[part], tiles)
            tile[:, len(block) :] = -np.inf
            _merge(tile, start, best[part])
    best.sort(axis=1)
    found, indices = _values(best[:, ::-1])
    # The same for all documents of a query, so it may come after the choice, where it costs nothing.
    with np.errstate(over="ignore"):
        final = found * prepared.scale[:, None] + prepared.shift[:, None]
    if not np.isfinite(final).all():
        raise ValueError("some scores overflow float32; normalise the embeddings first")
    return indices if rows is None else rows[indices], final


def rescore(
    queries: NDArray[np.floating], candidates: NDArray[np.int64], documents: NDArray[np.floating], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Score candidates exactly and return the `k` best of each query; equal scores go to the lower document.

    The second step of a search in two: candidates come from few bytes or few dims, then are scored by more of them.
    A funnel over sizes is `top_k` on `truncate(x, small)`, then this on `truncate(x, large)`.

    Args:
        queries: (n_queries, dim) float.
        candidates: (n_queries, m) int64 rows of `documents`, none twice for one query; -1 for no candidate.
        documents: (n_documents, dim) float.
        k: how many; more than m gives m.

    Returns:
        indices: (n_queries, min(k, m)) int64, and scores: the same shape, float32, descending. A query with fewer
        candidates has -1 and -inf in its last places.

    Raises:
        ValueError: k is below 1, shapes do not fit, or candidates lie outside the documents or repeat.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got k={k}")
    _refuse_candidates(candidates, len(queries), len(documents))
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
        some = np.sort(candidates[part], axis=1)
        vectors = documents[some.clip(min=0).ravel()].astype(np.float32).reshape(*some.shape, -1)
        # einsum adds up each product alike, wherever it lies, so equal vectors get equal scores.
        found = np.einsum("qmd,qd->qm", vectors, queries[part].astype(np.float32))
        if not np.isfinite(found).all():
            raise ValueError("some scores are NaN or overflow float32; normalise the embeddings first")
        found[some < 0] = -np.inf
        indices[part], scores[part] = highest(some, found, width)
    return indices, scores


def highest(columns: NDArray[np.int64], scores: NDArray[Any], k: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the `k` columns of the highest scores in each row, best first; equal scores keep their order.

    Args:
        columns, scores: (n, m) each.

    Returns:
        columns and scores: (n, min(k, m)) each.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _merge(scores: NDArray[np.float32], start: int, best: NDArray[np.int64]) -> None:
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


def _keys(scores: NDArray[np.float32] | np.float32, columns: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    """Return whole numbers that sort as (score, column falling) does, of columns below 2 to the 32nd."""
    # Bits of floats sort as integers once those of negative ones are turned round; adding 0 makes -0 the same as 0.
    bits = (np.asarray(scores, dtype=np.float32) + np.float32(0)).view(np.int32)
    keys: NDArray[np.int64] = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32 | (LOW - columns)
    return keys


def _values(keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scores and columns of keys."""
    bits = (keys >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32), LOW - (keys & LOW)


def _refuse_non_finite(embeddings: NDArray[np.floating], what: str) -> None:
    # The sum of a row is finite when its values are, and is much cheaper than a look at each of them.
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(embeddings.sum(axis=1, dtype=np.float32)))
    if len(bad):
        raise ValueError(f"the embedding of {what} {bad[0]} (counted from 0) holds NaN or infinite values")


def _refuse_candidates(candidates: NDArray[np.int64], n_queries: int, n_documents: int) -> None:
    if candidates.ndim != 2 or len(candidates) != n_queries:
        raise ValueError(f"candidates of shape {candidates.shape} do not fit {n_queries} queries")
    if candidates.size and (candidates.min() < -1 or candidates.max() >= n_documents):
        raise ValueError(f"a candidate lies outside the {n_documents} documents")
    ordered = np.sort(candidates, axis=1)
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise ValueError("a query has a candidate twice")
