"""Exact top-k of queries among encoded documents, and exact scores for candidates: the two steps of a funnel."""

from __future__ import annotations

import platform
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.codec import Codec, Codes
from nestling.retrieval.exact_search import GROUP, MIN_ROWS, merge, top_k

if TYPE_CHECKING:
    from torch import Tensor

GATHERED = 64 * 2**20
"""Bytes of candidates' vectors that `rescore` holds at a time, about."""
EXACT_IN_FLOAT32 = 2**24


def top_k_codes(
    queries: NDArray[np.floating],
    codes: Codes,
    codec: Codec,
    k: int,
    *,
    query_block: int = 512,
    code_block: int = 8192,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `k` documents with the highest score for each query, best first; equal scores to the lower one.

    float32 and float16 score the query against the decoded document. int8, int4 and binary score in integers: the
    query too is rounded to int8, with a scale of its own, and integers are multiplied exactly, so the order depends
    on neither blocks, threads nor machine. Against float queries that changes 1 to 4 in 1,000 of the top 10 of int8
    codes and nothing measurable of the others; `rescore` has scores with the query itself. Bits against bits
    (Hamming) would be neither better nor, many queries at a time, faster.

    Args:
        queries: (n_queries, codec.dim) float, finite.
        codes: n_documents encoded by `codec`.
        k: how many; more than n_documents gives n_documents.
        query_block: queries in one product.
        code_block: documents decoded at a time, in one product. Working memory is about
            8 * query_block * code_block + 4 * code_block * dim bytes.

    Returns:
        indices: (n_queries, min(k, n_documents)) int64, and scores: the same shape, float32, descending.

    Raises:
        InputError: the codes are of another codec, or the queries of another size or not finite.
        ValueError: k or a block is below 1, or scores overflow float32.
    """
    if min(k, query_block, code_block) < 1:
        raise ValueError(f"k and the blocks must be 1 or more, got k={k}, blocks {query_block} and {code_block}")
    codec.check(codes)
    asked, shift = codec.project(queries)
    if codec.precision == "float32":
        return top_k(
            asked, codes.data.astype(np.float32, copy=False), k, query_block=query_block, corpus_block=code_block
        )
    import torch

    n_queries, n_documents = len(asked), len(codes)
    k = min(k, n_documents)
    scores = torch.full((n_queries, k), -torch.inf)
    indices = torch.full((n_queries, k), -1, dtype=torch.int64)
    if not n_queries or not n_documents:
        return indices.numpy(), scores.numpy()
    scale = np.ones(n_queries, dtype=np.float32)
    if not codec.is_float:
        rounded, scale = _round_queries(asked)
    sides = torch.from_numpy(asked if codec.is_float else rounded)
    width = min(-(-code_block // GROUP) * GROUP, -(-n_documents // GROUP) * GROUP)
    tiles = torch.empty(max(MIN_ROWS, min(query_block, n_queries)), width)
    for start in range(0, n_documents, width):
        block = codes[start : start + width]
        n_real = len(block)
        vectors, steps = _vectors(block, codec, width)
        for first in range(0, n_queries, query_block):
            some = sides[first : first + query_block]
            last = first + len(some)
            tile = _product(some, vectors, tiles)
            if steps is not None:
                tile.mul_(steps)
            tile[:, n_real:] = -torch.inf
            merge(tile, start, scores[first:last], indices[first:last])
    if bool((indices[:, -1] < 0).any()):
        raise ValueError("some scores overflow float32; normalise the embeddings first")
    # The same for all documents of a query, so it may come after the choice, where it costs nothing.
    with np.errstate(over="ignore"):
        final = scores.numpy() * scale[:, None] + shift[:, None]
    if not np.isfinite(final).all():
        raise ValueError("some scores overflow float32; normalise the embeddings first")
    return indices.numpy(), final


def rescore(
    queries: NDArray[np.floating],
    candidates: NDArray[np.int64],
    documents: NDArray[np.floating] | tuple[Codes, Codec],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Score candidates exactly and return the `k` best of each query; equal scores go to the lower document.

    The second step of a search in two: candidates come from few bytes or few dims, then are scored by more of them.
    A funnel over sizes is `top_k` on `truncate(x, small)`, then this on `truncate(x, large)`.

    Args:
        queries: (n_queries, dim) float.
        candidates: (n_queries, m) int64 rows of `documents`, none twice for one query; -1 for no candidate.
        documents: (n_documents, dim) float, or codes and their codec, which are scored against the query itself.
        k: how many; more than m gives m.

    Returns:
        indices: (n_queries, min(k, m)) int64, and scores: the same shape, float32, descending. A query with fewer
        candidates has -1 and -inf in its last places.

    Raises:
        InputError: the codes are of another codec, or the queries of another size or not finite.
        ValueError: k is below 1, shapes do not fit, or candidates lie outside the documents or repeat.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got k={k}")
    n_documents = len(documents[0]) if isinstance(documents, tuple) else len(documents)
    _refuse_candidates(candidates, len(queries), n_documents)
    shift = np.zeros(len(queries), dtype=np.float32)
    if isinstance(documents, tuple):
        codes, codec = documents
        codec.check(codes)
        asked, shift = codec.project(queries)
    else:
        if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
            raise ValueError(f"queries of shape {queries.shape} do not fit documents of shape {documents.shape}")
        asked = np.ascontiguousarray(queries, dtype=np.float32)
    width = min(k, candidates.shape[1])
    indices = np.full((len(queries), width), -1, dtype=np.int64)
    scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
    if not width or not n_documents:
        return indices, scores
    at_once = max(1, GATHERED // (4 * max(asked.shape[1], 1) * candidates.shape[1]))
    for start in range(0, len(queries), at_once):
        # Ascending documents and a stable sort break ties; -1 comes first here and last below, by its score.
        some = np.sort(candidates[start : start + at_once], axis=1)
        rows = some.clip(min=0).ravel()
        vectors = (
            documents[rows].astype(np.float32) if isinstance(documents, np.ndarray) else _decoded(codes[rows], codec)
        )
        # einsum adds up each product alike, wherever it lies, so equal vectors get equal scores.
        found = np.einsum("qmd,qd->qm", vectors.reshape(*some.shape, -1), asked[start : start + at_once])
        found += shift[start : start + at_once, None]
        if not np.isfinite(found).all():
            raise ValueError("some scores are NaN or overflow float32; normalise the embeddings first")
        found[some < 0] = -np.inf
        order = np.argsort(-found, axis=1, kind="stable")[:, :width]
        indices[start : start + at_once] = np.take_along_axis(some, order, axis=1)
        scores[start : start + at_once] = np.take_along_axis(found, order, axis=1)
    return indices, scores


def _round_queries(queries: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 queries and what one unit is worth in each; a query of zeros stays one."""
    unit = np.abs(queries).max(axis=1).astype(np.float64) / 127
    rounded = np.divide(queries, unit[:, None], out=np.zeros(queries.shape), where=unit[:, None] > 0)
    return np.rint(rounded).astype(np.int8), unit.astype(np.float32)


def _vectors(block: Codes, codec: Codec, width: int) -> tuple[Tensor, Tensor | None]:
    """Return a block as (width, dim) float32 or int8, filled up with zeros, and its steps where it has such."""
    import torch

    rows: NDArray[np.generic] = block.data.astype(np.float32) if codec.is_float else codec.integers(block)
    vectors = torch.from_numpy(np.pad(rows, ((0, width - len(block)), (0, 0))))
    if codec.is_float:
        return vectors, None
    return vectors, torch.from_numpy(np.pad(codec.steps(block), (0, width - len(block))))


def _product(queries: Tensor, vectors: Tensor, tiles: Tensor) -> Tensor:
    """Return queries @ vectors.T as float32, in the memory of `tiles`; of int8 exact up to float32's rounding."""
    import torch

    n, dim = queries.shape
    if queries.dtype == torch.float32:
        if n < MIN_ROWS:
            queries = torch.cat([queries, queries.new_zeros(MIN_ROWS - n, dim)])
        return torch.mm(queries, vectors.T, out=tiles[: len(queries)])[:n]
    if _has_integer_product(dim):
        return tiles[:n].copy_(torch._int_mm(queries, vectors.T))
    # Integers in floating point are exact while no sum passes 2 to the 24th.
    dtype = torch.float32 if dim * 127 * 127 < EXACT_IN_FLOAT32 else torch.float64
    return tiles[:n].copy_(torch.mm(queries.to(dtype), vectors.to(dtype).T))


@cache
def _has_integer_product(dim: int) -> bool:
    """Whether torch multiplies int8 of this size exactly, and by oneDNN: 2 to 5 times as fast as float32."""
    import torch

    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    # On other processors torch falls back on plain loops. At one dim torch 2.13 returns memory as it found it.
    if not built or platform.machine().lower() not in ("x86_64", "amd64") or dim < 2:
        return False
    # Without VNNI instructions sums of two products saturate at 16 bits, so large values show it.
    signs = np.random.default_rng(0).choice(np.array([-127, 127], dtype=np.int8), (MIN_ROWS + GROUP, dim))
    hard = torch.from_numpy(signs)
    exact = hard[:MIN_ROWS].double() @ hard[MIN_ROWS:].double().T
    return bool((torch._int_mm(hard[:MIN_ROWS], hard[MIN_ROWS:].T).double() == exact).all())


def _decoded(codes: Codes, codec: Codec) -> NDArray[np.float32]:
    """Return what projected queries are multiplied with, (n, dim) float32."""
    if codec.is_float:
        return codes.data.astype(np.float32)
    scaled: NDArray[np.float32] = codec.integers(codes) * codec.steps(codes)[:, None]
    return scaled


def _refuse_candidates(candidates: NDArray[np.int64], n_queries: int, n_documents: int) -> None:
    if candidates.ndim != 2 or len(candidates) != n_queries:
        raise ValueError(f"candidates of shape {candidates.shape} do not fit {n_queries} queries")
    if candidates.size and (candidates.min() < -1 or candidates.max() >= n_documents):
        raise ValueError(f"a candidate lies outside the {n_documents} documents")
    ordered = np.sort(candidates, axis=1)
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise ValueError("a query has a candidate twice")
