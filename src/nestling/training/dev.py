"""The dev figures during training: recall@10 and MRR@10 on the dev split, as an evaluator of the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from nestling.evaluation.embed import embed, truncate
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.retrieve import top_k
from nestling.models import ModelSource, load_model

SELECTION = Measure.parse("recall@10")
MEASURES = (SELECTION, Measure.parse("mrr@10"))
K = max(measure.k for measure in MEASURES)


class DevEvaluator(SentenceEvaluator):  # type: ignore[misc]
    """Measures a model on dev, encoding once for all sizes.

    Args:
        qrels: the dev split's.
        dims: sizes to measure; the reported figures are means over them.
        encoder: stands in for `embed`.
    """

    def __init__(
        self,
        qrels: Qrels,
        dims: tuple[int, ...],
        *,
        batch_size: int = 64,
        encoder: Callable[..., np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.primary_metric = f"dev_{SELECTION}"
        self.qrels = qrels
        self.dims = dims
        self.batch_size = batch_size
        self.encoder = encoder or embed

    def __call__(
        self, model: SentenceTransformer, output_path: str | Path | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Return `dev_recall@10` and `dev_mrr@10`, each a mean over queries and then over the sizes."""
        queries = self.encoder(model, self.qrels.queries, kind="query", batch_size=self.batch_size)
        documents = self.encoder(model, self.qrels.documents, kind="document", batch_size=self.batch_size)
        values: dict[str, list[float]] = {}
        for dim in self.dims:
            ranking, _ = top_k(truncate(queries, dim), truncate(documents, dim), K)
            for measure in MEASURES:
                values.setdefault(f"dev_{measure}", []).append(float(measure.per_query(ranking, self.qrels).mean()))
        return {name: float(np.mean(each)) for name, each in values.items()}

    def of_base(self, base: ModelSource) -> dict[str, float]:
        """Return the same figures of a base model as it is loaded by itself."""
        return self(load_model(base))
