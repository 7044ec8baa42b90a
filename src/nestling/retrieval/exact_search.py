"""Exact top-k of a query matrix in a corpus matrix, in blocks that bound memory, ties to the lower column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 64
# A product of few rows runs other code, in which the last bit of a score depends on the column's place.
MIN_ROWS = 16


def top_k(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32],
    k: int,
    *,
    query_block: int = 512,
    corpus_block: int = 8192,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `k` corpus rows with the highest inner product for each query, best first.

    Equal scores go to the lower corpus row, also at the cut, whatever the blocks are. Equal corpus rows get equal
    scores: every product of a call has the same shape, as the last bit of one may depend on the other rows beside it.

    Each tile of scores is held against the k-th score so far. Groups of columns whose maximum does not pass are
    dropped unread, which leaves about k new candidates for each doubling of the corpus, so the cost stays near that
    of the matrix product.

    Args:
        queries: (n_queries, dim) float32, finite.
        corpus: (n_documents, dim) float32, finite.
        k: how many; more than n_documents gives n_documents.
        query_block: queries in one product.
        corpus_block: corpus rows in one product. Working memory beyond the inputs and the result is about
            query_block * corpus_block * 4 bytes, and several times that where candidates are many.

    Returns:
        indices: (n_queries, min(k, n_documents)) int64, and scores: the same shape, float32, descending.

    Raises:
        ValueError: k or a block is below 1, the shapes do not fit, or a value is NaN or infinite.
    """
    if min(k, query_block, corpus_block) < 1:
        raise ValueError(f"k and the blocks must be 1 or more, got k={k}, blocks {query_block} and {corpus_block}")
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries of shape {queries.shape} do not fit a corpus of shape {corpus.shape}")
    import torch

    asked, searched = _tensor(queries), _tensor(corpus)
    n_queries, n_documents = len(asked), len(searched)
    k = min(k, n_documents)
    # Unfilled places score below every document.
    scores = torch.full((n_queries, k), -torch.inf)
    indices = torch.full((n_queries, k), -1, dtype=torch.int64)
    if not n_queries or not n_documents:
        return indices.numpy(), scores.numpy()

    for start in range(0, n_queries, query_block):
        _refuse_non_finite(asked[start : start + query_block], "query", start)
    width = min(-(-corpus_block // GROUP) * GROUP, -(-n_documents // GROUP) * GROUP)
    buffer = torch.empty(max(MIN_ROWS, min(query_block, n_queries)), width)
    for start in range(0, n_documents, width):
        block = searched[start : start + width]
        _refuse_non_finite(block, "document", start)
        n_real = len(block)
        if n_real < width:
            block = torch.cat([block, block.new_zeros(width - n_real, block.shape[1])])
        for first in range(0, n_queries, query_block):
            some = asked[first : first + query_block]
            last = first + len(some)
            if len(some) < MIN_ROWS:
                some = torch.cat([some, some.new_zeros(MIN_ROWS - len(some), some.shape[1])])
            product = torch.mm(some, block.T, out=buffer[: len(some)])
            tile = product[: last - first]
            tile[:, n_real:] = -torch.inf
            merge(tile, start, scores[first:last], indices[first:last])
    if bool((indices[:, -1] < 0).any()):
        raise ValueError("some inner products overflow float32; normalise the embeddings first")
    return indices.numpy(), scores.numpy()


def merge(tile: Tensor, start: int, scores: Tensor, indices: Tensor) -> None:
    """Take into the best so far (`scores`, `indices`, in place) what of the tile passes their k-th score."""
    import torch

    k = scores.shape[1]
    bar = scores[:, -1]
    if tile.shape[1] > k and bool((bar == -torch.inf).any()):
        # The tile's own k-th value bounds the candidates of the first tile; what equals it must still pass.
        kth = tile.topk(k, dim=1, sorted=False).values.amin(dim=1)
        bar = torch.maximum(bar, torch.nextafter(kth, kth.new_tensor(-torch.inf)))
    groups = tile.view(len(tile), -1, GROUP)
    # Columns come in ascending order, so a score equal to the k-th so far has lost the tie: strictly greater it is.
    row, group = (groups.amax(dim=2) > bar[:, None]).nonzero(as_tuple=True)
    values = groups[row, group]
    place, offset = (values > bar[row, None]).nonzero(as_tuple=True)
    if not len(place):
        return
    row, column, value = row[place], start + group[place] * GROUP + offset, values[place, offset]

    active, counts = torch.unique_consecutive(row, return_counts=True)
    slot = torch.repeat_interleave(torch.arange(len(active)), counts)
    rank = k + torch.arange(len(row)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    merged = torch.full((len(active), k + int(counts.max())), -torch.inf)
    columns = torch.full(merged.shape, -1, dtype=torch.int64)
    merged[:, :k], columns[:, :k] = scores[active], indices[active]
    merged[slot, rank], columns[slot, rank] = value, column
    # Each row lists equal scores by ascending column, and a stable sort keeps them so.
    merged, order = merged.sort(dim=1, descending=True, stable=True)
    scores[active] = merged[:, :k]
    indices[active] = columns.gather(1, order[:, :k])


def _tensor(matrix: NDArray[np.float32]) -> Tensor:
    import torch

    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    if not matrix.flags.writeable:
        # torch warns of memory that it may not write, as of a memory-mapped file; nothing here writes to it.
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(matrix)
    return torch.from_numpy(matrix)


def _refuse_non_finite(block: Tensor, what: str, start: int) -> None:
    # The sum of a row is finite when its values are, and is much cheaper than a look at each of them.
    bad = (~block.sum(dim=1).isfinite()).nonzero()
    if len(bad):
        raise ValueError(f"the embedding of {what} {start + int(bad[0])} (counted from 0) holds NaN or infinite values")
