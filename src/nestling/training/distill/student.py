"""A second training, in which a cross-encoder teaches the transformer how a query's candidates rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from nestling.config.training import Distill
from nestling.judgments.table import Judgments
from nestling.training.batches.batching import Collator, LengthBatches
from nestling.training.batches.tokens import tokenised
from nestling.training.distill.cross_encoder import Candidates
from nestling.training.inputs.contrastive import positives
from nestling.training.losses.contrastive import PairValues, loss_for
from nestling.training.spec import TrainingInputs, TrainingSpec

DRAWN = 8
"""Candidates of each query in a batch, and at most so many judged documents, drawn anew each time."""


@dataclass(frozen=True)
class QueryCollator(Collator):
    """Batches of queries with some judged documents and some `candidates`, (n_queries, k) int64, of each."""

    candidates: NDArray[np.int64]

    def numbers(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """See Collator."""
        queries, pairs = np.unique(rows), self.pairs
        drawn = [self.candidates[query, rng.permutation(self.candidates.shape[1])[:DRAWN]] for query in queries]
        # Judged pairs are sorted by query.
        bounds = np.searchsorted(pairs.judged_query, [queries, queries + 1]).T
        judged = np.concatenate([rng.permutation(np.arange(*each))[:DRAWN] for each in bounds])
        documents = np.unique(np.concatenate([*drawn, pairs.judged_document[judged]]))
        own = judged[pairs.judged_score[judged] > pairs.threshold]
        return {
            "query": queries,
            "document": documents,
            "anchor": np.searchsorted(queries, pairs.judged_query[own]),
            "positive": np.searchsorted(documents, pairs.judged_document[own]),
        }


def distilled(
    judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer, candidates: Candidates, pseudo: list[str]
) -> TrainingInputs:
    """Prepare the contrastive loss on batches of queries with their candidates, a cross-encoder as its teacher.

    The library's distillation losses know no positives and no batch beside a query's own candidates.

    Args:
        candidates: with logits, of the raters' queries and of the pseudo-queries after them.
    """
    step, weight = spec.settings.finetune, (spec.settings.distill or Distill()).weight
    pairs = positives(judgments, spec)
    pairs = replace(pairs, queries=[*pairs.queries, *pseudo])
    documents = tokenised(model, pairs.documents, kind="document", cache=spec.cache)
    queries = tokenised(model, pairs.queries, kind="query", cache=spec.cache)
    n_documents = len(pairs.documents)
    query, document = candidates.pairs()
    teacher = PairValues(
        query, document, candidates.scores_of_both(step.scale).ravel(), n_documents=n_documents, missing=np.nan
    )
    judged = pairs.judged_query * n_documents + pairs.judged_document
    free = ~np.isin(query * n_documents + document, judged)
    # Likely enough to be right answers that no rater saw.
    ignored = PairValues(query[free], document[free], np.ones(free.sum()), n_documents=n_documents)
    loss = loss_for(model, pairs, spec, ignored=ignored, teacher=teacher, teacher_weight=weight)
    return TrainingInputs(
        Dataset.from_dict({"row": np.arange(len(pairs.queries))}),
        loss,
        QueryCollator(pairs, queries.batch, documents.batch, spec.settings.seed, candidates.documents),
        partial(LengthBatches, documents.lengths[candidates.documents].sum(axis=1)),
        vocabulary=np.unique(np.concatenate([queries.ids, documents.ids])),
    )
