"""Contrastive training: positives against the rest of the batch, of equal weight (MNR loss) or weighted by score."""

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
from nestling.training.spec import Refresh, TrainingInputs, TrainingSpec

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer


def contrastive(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare multiple negatives ranking, or the graded loss, on pairs of the judgments.

    With `fast` (the default) documents that are known to be relevant to a query are no negatives of it, texts are
    batched by length, and the loss is our own. Without, `mnrl` is all the library's.

    Raises:
        InputError: no pair is a positive.
    """
    from datasets import Dataset

    from nestling.training.losses.bm25_teacher import teacher_for
    from nestling.training.losses.contrastive import ContrastiveLoss, Relevance

    settings, step = spec.settings, spec.settings.finetune
    graded = step.loss == "graded"
    if not graded and not settings.fast:
        return _stock(judgments, spec, model)
    pairs, threshold = positives(judgments, spec)
    make = partial(tokenised, model)
    stored = make(pairs.queries, kind="query", cache=spec.cache)
    documents = make(pairs.documents, kind="document", cache=spec.cache)
    queries: Tokens = stored
    of_epoch = QueriesOfEpoch(pairs, partial(make, kind="query"), crops=step.crops, seed=settings.seed)
    query, document = of_epoch.with_crops()
    refreshed: list[Refresh] = []
    if step.crops:
        queries = of_epoch
        refreshed.append(of_epoch.refresh)
    teacher = teacher_for(step, pairs.documents, of_epoch.texts)
    if teacher is not None:
        refreshed.append(teacher.refresh)
    loss = ContrastiveLoss(
        model,
        Relevance.from_pairs(pairs, threshold=threshold, scale=judgments.scale, graded=graded),
        scale=step.scale,
        dims=spec.matryoshka,
        dim_weights=spec.weights,
        graded=graded,
        teacher=teacher,
        teacher_weight=step.bm25,
    )
    vectors = embed(model, pairs.documents, kind="document")[document] if step.batches == "similar" else None
    return TrainingInputs(
        Dataset.from_dict({"row": np.arange(len(query))}),
        loss,
        PairCollator(pairs, query, document, queries, documents, step.negatives, settings.seed),
        sampler_for(documents.lengths[document], vectors),
        tuple(refreshed),
        np.unique(np.concatenate([stored.ids, documents.ids])),
    )


def positives(judgments: Judgments, spec: TrainingSpec) -> tuple[Pairs, float]:
    """Return the training pairs, and the score above which they are positives.

    Raises:
        InputError: no pair is one.
    """
    threshold = positives_above(judgments, spec)
    pairs = Pairs.from_judgments(judgments, threshold=threshold)
    if not len(pairs):
        raise InputError(f"{judgments.source}: no training pair is scored above {threshold:g}; lower the threshold")
    return pairs, threshold


def positives_above(judgments: Judgments, spec: TrainingSpec) -> float:
    """Return the score above which a pair is trained as a positive."""
    step = spec.settings.finetune
    if step.positives_above is not None:
        return step.positives_above
    if step.positives == "relevant":
        return spec.threshold
    low, high = judgments.scale
    # A little below the middle, as it shall count itself.
    return min(spec.threshold, (low + high) / 2 - (high - low) / 1000)


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


def _stock(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(model, scale=spec.settings.finetune.scale)
    return TrainingInputs(
        positive_pairs(judgments, positives_above(judgments, spec)), with_matryoshka(model, loss, spec)
    )
