"""The dev figures during training: recall@10 and MRR@10 on the dev split, as an evaluator of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.models.load import ModelSource, load_model
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.vectors import truncate
from nestling.training.result import MEAN, selection
from nestling.training.steps.guard import Figures

MEASURES = (Measure.parse("recall@10"), Measure.parse("mrr@10"))
K = max(measure.k for measure in MEASURES)

Vectors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of dev's queries and documents, (n_queries, dim) and (n_documents, dim)."""


class DevEvaluator(SentenceEvaluator):  # type: ignore[misc]
    """Measures a model on dev, encoding once for all sizes.

    Args:
        qrels: the dev split's.
        dims: prefixes to measure beside the full size.
        encoder: stands in for `embed`.
    """

    def __init__(
        self,
        qrels: Qrels,
        dims: Sequence[int] = (),
        *,
        batch_size: int = 64,
        encoder: Callable[..., np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.primary_metric = selection(dims)
        self.qrels = qrels
        self.dims = dims
        self.batch_size = batch_size
        self.encoder = encoder or embed

    def __call__(
        self, model: SentenceTransformer, output_path: str | Path | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Return `dev_recall@10` and `dev_mrr@10` at full size, means over queries.

        With prefixes also the means over them and the full size, `dev_recall@10_mean` and `dev_mrr@10_mean`.
        """
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
        return (
            self.encoder(model, self.qrels.queries, kind="query", batch_size=self.batch_size),
            self.encoder(model, self.qrels.documents, kind="document", batch_size=self.batch_size),
        )

    def of_vectors(self, vectors: Vectors, dims: Sequence[int] = ()) -> Figures:
        """Return the measures of each dev query at full size and at the smaller ones of `dims`."""
        full = vectors[0].shape[1]
        by_size = []
        for dim in (full, *(dim for dim in dims if dim < full)):
            queries, documents = (truncate(side, dim) for side in vectors)
            ranking, _ = top_k(queries, documents, K)
            by_size.append([measure.per_query(ranking, self.qrels) for measure in MEASURES])
        return np.array(by_size)

    def of_base(self, base: ModelSource) -> dict[str, float]:
        """Return the same figures of a base model as it is loaded by itself."""
        return self(load_model(base))
