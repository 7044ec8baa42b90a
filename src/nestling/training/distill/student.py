"""A second training, in which a cross-encoder teaches the transformer how a query's candidates rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestling.config.training import Distill
from nestling.judgments.table import Judgments
from nestling.training.batches.batching import Tokens, contrastive_batch
from nestling.training.batches.similar_documents import sampler_for
from nestling.training.batches.tokens import tokenised
from nestling.training.distill.candidates import Candidates
from nestling.training.inputs.contrastive import positives
from nestling.training.losses.contrastive import ContrastiveLoss, PairValues, Relevance
from nestling.training.spec import TrainingInputs, TrainingSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DRAWN = 8
"""Candidates of each query in a batch, and at most so many judged documents, drawn anew each time."""


def teacher_of(candidates: Candidates, *, n_documents: int, scale: float) -> PairValues:
    """Return what first model and cross-encoder together make of the candidates of queries, NaN for other pairs.

    Args:
        candidates: with logits.
        n_documents: how many documents there are.
        scale: of cosines.
    """
    query, document = candidates.pairs()
    scores = candidates.scores_of_both(scale).ravel()
    return PairValues(query, document, scores, n_documents=n_documents, missing=np.nan)


@dataclass(frozen=True)
class QueryBatches:
    """Makes the tensors of a batch of queries, with some documents that raters saw with each and some candidates.

    Called by the data loader with rows of `{"row": number of a query}`.

    Attributes:
        candidates: (n_queries, k) int64, documents by number.
        relevant: (n_judged,) bool, in the order of `judged_document`: whether the pair is a positive.
        judged_indptr, judged_document: CSR over queries: all documents that raters saw with each.
        query_tokens, document_tokens: give the tokens of queries and documents by number.
        seed: of the draw, which depends on the batch alone, so that a resumed training draws the same.
    """

    relevant: NDArray[np.bool_]
    judged_indptr: NDArray[np.int64]
    judged_document: NDArray[np.int64]
    candidates: NDArray[np.int64]
    query_tokens: Tokens
    document_tokens: Tokens
    seed: int = 0
    valid_label_columns: tuple[str, ...] = ("label",)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `anchor_*` and `document_*` tokens, and the numbers that the loss needs under `label`."""
        rows = np.array([example["row"] for example in examples], dtype=np.int64)
        rng = np.random.default_rng([self.seed, len(rows), int(rows[0]), int(rows.sum())])
        queries = np.unique(rows)
        width = self.candidates.shape[1]
        drawn = [self.candidates[query, rng.permutation(width)[:DRAWN]] for query in queries]
        judged = [
            rng.permutation(np.arange(self.judged_indptr[query], self.judged_indptr[query + 1]))[:DRAWN]
            for query in queries
        ]
        anchor, seen = np.repeat(np.arange(len(queries)), [len(each) for each in judged]), np.concatenate(judged)
        documents = np.unique(np.concatenate([*drawn, self.judged_document[seen]]))
        own = self.relevant[seen]
        label = {
            "query": queries,
            "document": documents,
            "anchor": anchor[own],
            "positive": np.searchsorted(documents, self.judged_document[seen[own]]),
        }
        return contrastive_batch(self.query_tokens, self.document_tokens, label)


def distilled(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare the contrastive loss on batches of queries with their candidates, a cross-encoder as its teacher.

    Args:
        spec: its folder of candidates holds `train.npz`, with logits, and the texts of invented queries.
    """
    from datasets import Dataset

    step, teacher = spec.settings.finetune, spec.settings.distill or Distill()
    pairs, threshold = positives(judgments, spec)
    graded = step.loss == "graded"
    candidates = Candidates.load(spec.candidate_file("train"))
    # The raters' queries keep their numbers.
    every = replace(pairs, queries=[*pairs.queries, *spec.invented_queries()])
    documents = tokenised(model, every.documents, kind="document", cache=spec.cache)
    queries = tokenised(model, every.queries, kind="query", cache=spec.cache)
    query, document = candidates.unjudged(every)
    n_documents = len(every.documents)
    loss = ContrastiveLoss(
        model,
        Relevance.from_pairs(pairs, threshold=threshold, scale=judgments.scale, graded=graded),
        scale=step.scale,
        dims=spec.matryoshka,
        dim_weights=spec.weights,
        graded=graded,
        # Likely enough to be right answers that no rater saw.
        ignored=Relevance(query, document, np.ones(len(query)), n_documents=n_documents),
        teacher=teacher_of(candidates, n_documents=n_documents, scale=step.scale),
        teacher_weight=teacher.weight,
    )
    order = np.argsort(pairs.judged_query, kind="stable")
    counts = np.bincount(pairs.judged_query, minlength=len(every.queries))
    return TrainingInputs(
        Dataset.from_dict({"row": np.arange(len(every.queries))}),
        loss,
        QueryBatches(
            pairs.judged_score[order] > threshold,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            pairs.judged_document[order],
            candidates.documents,
            queries,
            documents,
            spec.settings.seed,
        ),
        sampler_for(documents.lengths[candidates.documents].sum(axis=1), None),
        vocabulary=np.unique(np.concatenate([queries.ids, documents.ids])),
    )
