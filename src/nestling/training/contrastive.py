"""Recipes that tell right documents from wrong ones: multiple negatives ranking, and its graded successor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.training.batching import LengthBatches, PairCollator, Pairs
from nestling.training.job import Job, Material
from nestling.training.matryoshka import with_matryoshka
from nestling.training.mining import MinedNegatives
from nestling.training.tokens import TokenStore

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer


def mnrl(judgments: Judgments, job: Job, model: SentenceTransformer) -> Material:
    """Prepare multiple negatives ranking on the pairs above the threshold.

    With `fast` (the default) documents that are known to be relevant to a query are no negatives of it, texts are
    batched by length, and the loss is our own. Without, all of it is the library's.
    """
    if not job.settings.fast:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        loss = MultipleNegativesRankingLoss(model, scale=job.settings.scale)
        return Material(positive_pairs(judgments, job.threshold), with_matryoshka(model, loss, job))
    return _material(judgments, job, model, graded=False, symmetric=False, negatives=0)


def graded(judgments: Judgments, job: Job, model: SentenceTransformer) -> Material:
    """Prepare the graded contrastive loss: every relevant pair with its weight, documents judged low as negatives."""
    return _material(judgments, job, model, graded=True, symmetric=True, negatives=1)


def positive_pairs(judgments: Judgments, threshold: float) -> Dataset:
    """Return the pairs scored above the threshold, columns `anchor` (the query) and `positive` (the document).

    Raises:
        InputError: no pair is scored above the threshold.
    """
    from datasets import Dataset

    frame = judgments.above(threshold).frame
    if frame.is_empty():
        raise InputError(f"{judgments.source}: no training pair is scored above {threshold:g}; lower the threshold")
    return Dataset.from_dict({"anchor": frame["query"].to_list(), "positive": frame["document"].to_list()})


def _material(
    judgments: Judgments, job: Job, model: SentenceTransformer, *, graded: bool, symmetric: bool, negatives: int
) -> Material:
    from datasets import Dataset

    from nestling.training.losses import ContrastiveLoss, Relevance

    pairs = Pairs.from_judgments(judgments, threshold=job.threshold)
    if not len(pairs):
        raise InputError(f"{judgments.source}: no training pair is scored above {job.threshold:g}; lower the threshold")
    settings = job.settings
    limit = model.max_seq_length
    queries = TokenStore.build(pairs.queries, model.tokenizer, limit, cache=job.cache)
    documents = TokenStore.build(pairs.documents, model.tokenizer, limit, cache=job.cache)
    relevant = pairs.judged_score > job.threshold
    low, high = judgments.scale
    weight = (pairs.judged_score[relevant] - low) / (high - low) if graded else np.ones(int(relevant.sum()))
    relevance = Relevance(
        pairs.judged_query[relevant], pairs.judged_document[relevant], weight, n_documents=len(pairs.documents)
    )
    loss = ContrastiveLoss(
        model,
        relevance,
        scale=settings.scale,
        dims=job.matryoshka,
        dim_weights=job.weights,
        graded=graded,
        symmetric=symmetric if settings.symmetric is None else settings.symmetric,
    )
    wanted = negatives if settings.negatives is None else settings.negatives
    lengths = documents.lengths[pairs.document]
    mined = MinedNegatives(pairs, settings.mined) if settings.mined else None
    return Material(
        Dataset.from_dict({"row": np.arange(len(pairs))}),
        loss,
        PairCollator(pairs, queries, documents, wanted, settings.seed, mined.of if mined else None),
        lambda batch_size, seed: LengthBatches(lengths, batch_size, seed=seed),
        mined.refresh if mined else None,
    )
