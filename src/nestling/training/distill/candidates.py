"""The documents nearest to each query, with what a cross-encoder makes of them: what a student is distilled from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestling import atomic
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.training.batches.batching import Pairs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Candidates:
    """For each query the documents that a first model ranks highest, best first.

    Attributes:
        documents: (n_queries, k) int64, by number.
        similarities: (n_queries, k) float32, the first model's cosines.
        logits: (n_queries, k) float32, a cross-encoder's; none before it has read them.
    """

    documents: NDArray[np.int64]
    similarities: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None

    @classmethod
    def nearest(
        cls, model: SentenceTransformer, queries: Sequence[str], documents: Sequence[str], k: int
    ) -> Candidates:
        """Return the `k` nearest of the documents to each query, or all where there are fewer."""
        ranking, scores = top_k(embed(model, queries, kind="query"), embed(model, documents, kind="document"), k)
        return cls(ranking, scores)

    @classmethod
    def load(cls, path: Path) -> Candidates:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in stored.files})

    def save(self, path: Path) -> None:
        """Write a NumPy archive; it appears whole or not at all."""
        arrays: dict[str, Any] = {"documents": self.documents, "similarities": self.similarities}
        if self.logits is not None:
            arrays["logits"] = self.logits
        with atomic.new_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def first(self, k: int) -> Candidates:
        """Return the best `k` of each query alone, without logits."""
        return replace(self, documents=self.documents[:, :k], similarities=self.similarities[:, :k], logits=None)

    def unjudged(self, pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return query and document of the candidates that no rater saw with their query, by number, (n,) each."""
        query, document = self.pairs()
        n_documents = len(pairs.documents)
        judged = pairs.judged_query * n_documents + pairs.judged_document
        free = ~np.isin(query * n_documents + document, judged)
        return query[free], document[free]

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return query and document of every candidate by number, query after query, (n_queries * k,) each."""
        return np.repeat(np.arange(len(self.documents)), self.documents.shape[1]), self.documents.ravel()

    def scores_of_both(self, scale: float) -> NDArray[np.float32]:
        """Return cosines times the scale of the contrastive loss, plus logits, (n_queries, k): a product of odds.

        Raises:
            ValueError: there are no logits.
        """
        if self.logits is None:
            raise ValueError("no cross-encoder has read these candidates")
        both: NDArray[np.float32] = (scale * self.similarities + self.logits).astype(np.float32)
        return both
