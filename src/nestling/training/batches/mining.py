"""Hard negatives: documents that the current model ranks high for a query and that nobody judged relevant to it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nestling import atomic
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.training.batches.batching import Pairs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

MARGIN = 0.05
"""A negative scores at most (1 - margin) of the positive: what scores as high may be an unjudged right answer."""
DEPTH = 50


class MinedNegatives:
    """The hard negatives of the epoch under way, kept on disk so that a resumed training has the same.

    Args:
        per_query: how many at most.
    """

    def __init__(self, pairs: Pairs, per_query: int) -> None:
        self.pairs = pairs
        self.per_query = per_query
        self.indptr = np.zeros(len(pairs.queries) + 1, dtype=np.int64)
        self.documents = np.zeros(0, dtype=np.int64)

    def refresh(self, model: SentenceTransformer, epoch: int, work: Path) -> None:
        """Mine with the model as it is, or read what an interrupted call mined before the same epoch."""
        path = work / f"mined-{epoch}.npz"
        if path.is_file():
            with np.load(path) as stored:
                self.indptr, self.documents = stored["indptr"], stored["documents"]
            return
        self.indptr, self.documents = mine(model, self.pairs, per_query=self.per_query)
        with atomic.new_file(path) as temporary:
            np.savez(temporary, indptr=self.indptr, documents=self.documents)
        logger.info("mined %d hard negatives before epoch %d", len(self.documents), epoch + 1)

    def of(self, query: int) -> np.ndarray:
        """Return the documents mined for a query, (at most per_query,) int64."""
        found: np.ndarray = self.documents[self.indptr[query] : self.indptr[query + 1]]
        return found


def mine(
    model: SentenceTransformer, pairs: Pairs, *, per_query: int, margin: float = MARGIN, depth: int = DEPTH
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hardest documents for each query, as the model sees them now.

    Of the `depth` documents nearest to a query those are taken that were not judged relevant to it and whose cosine is
    at most (1 - margin) times that of its least similar positive: the relative margin to the positive of NV-Retriever
    (Moreira et al. 2024, arXiv 2407.15831). Documents judged low are welcome. Queries without a positive get none.

    Args:
        pairs: the training data; its positives are what is never mined.
        per_query: how many at most.

    Returns:
        indptr (n_queries + 1,) int64 and documents (n_mined,) int64, CSR over queries, hardest first.
    """
    queries = embed(model, pairs.queries, kind="query")
    documents = embed(model, pairs.documents, kind="document")
    ranking, scores = top_k(queries, documents, depth)
    n_queries, n_documents = len(pairs.queries), len(pairs.documents)

    similar = np.einsum("ij,ij->i", queries[pairs.query], documents[pairs.document])
    least = np.full(n_queries, np.inf)
    np.minimum.at(least, pairs.query, similar)
    positive = np.sort(pairs.query * n_documents + pairs.document)
    keys = np.arange(n_queries)[:, None] * n_documents + ranking
    place = np.minimum(np.searchsorted(positive, keys), max(len(positive) - 1, 0))
    judged_relevant = positive[place] == keys if len(positive) else np.zeros(keys.shape, dtype=bool)
    # Below zero a share of the positive's cosine would lie above it.
    limit = np.where(least > 0, (1 - margin) * least, least - margin)
    wanted = ~judged_relevant & (scores <= limit[:, None]) & np.isfinite(least)[:, None]
    wanted &= np.cumsum(wanted, axis=1) <= per_query
    indptr = np.concatenate([[0], np.cumsum(wanted.sum(axis=1))]).astype(np.int64)
    return indptr, ranking[wanted]
