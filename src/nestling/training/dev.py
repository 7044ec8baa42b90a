"""The dev figures during training: recall@10 and MRR@10 on the dev split, as an evaluator of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.vectors import truncate
from nestling.training.result import MEAN, selection
from nestling.training.steps.guard import Figures

MEASURES = (Measure.parse("recall@10"), Measure.parse("mrr@10"))

Vectors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Embedded queries and documents, (n_queries, dim) and (n_documents, dim)."""


class DevEvaluator(SentenceEvaluator):  # type: ignore[misc]
    """Measures a model on dev, encoding once for all sizes: the full one and the prefixes `dims`."""

    def __init__(self, qrels: Qrels, dims: Sequence[int] = (), *, encoder: Callable[..., np.ndarray] = embed) -> None:
        super().__init__()
        self.primary_metric = selection(dims)
        self.qrels = qrels
        self.dims = dims
        self.encoder = encoder

    def __call__(self, model: SentenceTransformer, *_: Any, **__: Any) -> dict[str, float]:
        """Return `dev_recall@10` and `dev_mrr@10` at full size, and, with `_mean`, their means over all sizes."""
        means = self.per_query(model).mean(axis=2)
        figures = {f"dev_{measure}": float(value) for measure, value in zip(MEASURES, means[0], strict=True)}
        if len(self.dims) > 1:
            over_sizes = zip(MEASURES, means.mean(axis=0), strict=True)
            figures |= {f"dev_{measure}{MEAN}": float(value) for measure, value in over_sizes}
        return figures

    def per_query(self, model: SentenceTransformer) -> Figures:
        """Return the measures of each dev query at each size."""
        return self.of_vectors(self.vectors(model), self.dims)

    def vectors(self, model: SentenceTransformer) -> Vectors:
        """Return dev's queries and documents as the model embeds them."""
        queries, documents = self.qrels.queries, self.qrels.documents
        return self.encoder(model, queries, kind="query"), self.encoder(model, documents, kind="document")

    def of_vectors(self, vectors: Vectors, dims: Sequence[int] = ()) -> Figures:
        """Return the measures of each dev query at full size and at the smaller ones of `dims`."""
        full = vectors[0].shape[1]
        by_size = []
        for dim in (full, *(dim for dim in dims if dim < full)):
            ranking, _ = top_k(truncate(vectors[0], dim), truncate(vectors[1], dim), 10)
            by_size.append([measure.per_query(ranking, self.qrels) for measure in MEASURES])
        return np.array(by_size)
