"""Recipes that tell right documents from wrong ones: multiple negatives ranking, and its graded successor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.models.torch_encoder import embed
from nestling.training.batches.batching import PairCollator, Pairs, Tokens
from nestling.training.batches.pseudo_queries import QueriesOfEpoch
from nestling.training.batches.similar_documents import sampler_for
from nestling.training.batches.tokens import tokenised
from nestling.training.losses.matryoshka import with_matryoshka
from nestling.training.spec import Job, Material, Refresh

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer


def mnrl(judgments: Judgments, job: Job, model: SentenceTransformer) -> Material:
    """Prepare multiple negatives ranking on the pairs above the threshold.

    With `fast` (the default) documents that are known to be relevant to a query are no negatives of it, texts are
    batched by length, and the loss is our own. Without, all of it is the library's.
    """
    threshold = positives_above(judgments, job)
    if not job.settings.fast:
        return _stock(judgments, job, model, threshold)
    return _material(judgments, job, model, threshold, graded=False, negatives=0)


def generous(judgments: Judgments, job: Job, model: SentenceTransformer) -> Material:
    """Prepare multiple negatives ranking on all pairs from the middle of the scale upwards."""
    threshold = positives_above(judgments, job, generous=True)
    if not job.settings.fast:
        return _stock(judgments, job, model, threshold)
    return _material(judgments, job, model, threshold, graded=False, negatives=0)


def graded(judgments: Judgments, job: Job, model: SentenceTransformer) -> Material:
    """Prepare the graded contrastive loss: pairs from the middle of the scale up, weighted by score, low ones against.

    Each relevant document of the batch is a positive with its own weight, and one document judged low for the same
    query is a hard negative.
    """
    threshold = positives_above(judgments, job, generous=True)
    return _material(judgments, job, model, threshold, graded=True, negatives=1)


def positives_above(judgments: Judgments, job: Job, *, generous: bool = False) -> float:
    """Return the score above which a pair is trained as a positive.

    Args:
        generous: take all from the middle of the scale upwards, though fewer are relevant in the evaluation.
    """
    if job.settings.positives_above is not None:
        return job.settings.positives_above
    if not generous:
        return job.threshold
    low, high = judgments.scale
    # A little below the middle, as it shall count itself.
    return min(job.threshold, (low + high) / 2 - (high - low) / 1000)


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


def _stock(judgments: Judgments, job: Job, model: SentenceTransformer, threshold: float) -> Material:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(model, scale=job.settings.scale)
    return Material(positive_pairs(judgments, threshold), with_matryoshka(model, loss, job))


def _material(
    judgments: Judgments,
    job: Job,
    model: SentenceTransformer,
    threshold: float,
    *,
    graded: bool,
    negatives: int,
) -> Material:
    from datasets import Dataset

    from nestling.training.losses.bm25_teacher import teacher_for
    from nestling.training.losses.contrastive import ContrastiveLoss, Relevance

    settings = job.settings
    pairs = Pairs.from_judgments(judgments, threshold=threshold)
    if not len(pairs):
        raise InputError(f"{judgments.source}: no training pair is scored above {threshold:g}; lower the threshold")
    make = partial(tokenised, model)
    if job.candidates is not None:
        from nestling.training.distill.student import distilled

        return distilled(judgments, job, model, pairs, threshold=threshold, graded=graded, tokens=make)
    stored = make(pairs.queries, kind="query", cache=job.cache)
    documents = make(pairs.documents, kind="document", cache=job.cache)
    queries: Tokens = stored
    of_epoch = QueriesOfEpoch(pairs, partial(make, kind="query"), crops=settings.crops, seed=settings.seed)
    query, document = of_epoch.with_crops()
    refreshed: list[Refresh] = []
    if settings.crops:
        queries = of_epoch
        refreshed.append(of_epoch.refresh)
    teacher = teacher_for(settings, pairs.documents, of_epoch.texts)
    if teacher is not None:
        refreshed.append(teacher.refresh)
    relevance = Relevance.from_pairs(pairs, threshold=threshold, scale=judgments.scale, graded=graded)
    loss = ContrastiveLoss(
        model,
        relevance,
        scale=settings.scale,
        dims=job.matryoshka,
        dim_weights=job.weights,
        graded=graded,
        teacher=teacher,
        teacher_weight=settings.bm25,
    )
    wanted = negatives if settings.negatives is None else settings.negatives
    vectors = embed(model, pairs.documents, kind="document")[document] if settings.alike else None
    return Material(
        Dataset.from_dict({"row": np.arange(len(query))}),
        loss,
        PairCollator(pairs, query, document, queries, documents, wanted, settings.seed),
        sampler_for(documents.lengths[document], vectors),
        tuple(refreshed),
        np.unique(np.concatenate([stored.ids, documents.ids])),
    )
